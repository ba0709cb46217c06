"""The example that trains a reranker, on a few questions of a small world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from igsearch_env import load_corpus, load_questions
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.open import open_retriever
from igsearch_env.retrieval.rerank import CrossEncoderReranker, Reranker, open_reranker
from scripts.examples.train_reranker import examples, main

WORLD_TINY = Path(__file__).parents[2] / "agents" / "world-tiny"


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    BM25Retriever.build(load_corpus("world:30")).save(tmp_path / "index")
    file = tmp_path / "some.questions.jsonl"
    rows = [
        {"id": one.id, "question": one.text, "golden_answers": ["x"], "gold_ids": one.gold_ids}
        for one in load_questions("world-train:30", 8)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--questions", str(file), "--index", str(tmp_path / "index"), "--depth", "8"]
    return [*words, "--negatives", "3", "--out", str(tmp_path / "trained"), "--max-length", "48"]


def margin(reranker: Reranker, command: list[str]) -> float:
    """By how much gold documents are ahead of the others of the first stage, on average."""
    questions = load_questions(command[1])
    documents = {one.id: one for one in load_corpus("world:30")}
    found = open_retriever(command[3]).search([one.text for one in questions], 8)
    margins = []
    for question, best in zip(questions, found, strict=True):
        others = [one for one in best if one.id not in question.gold_ids]
        gold = [documents[name] for name in question.gold_ids]
        scores = reranker.scores([(question.text, one) for one in (*gold, *others)])
        margins.append(scores[: len(gold)].mean() - scores[len(gold) :].mean())
    return float(np.mean(margins))


def test_a_language_model_learns_in_its_last_layers(command: list[str], tmp_path: Path) -> None:
    rate = ["--learning-rate", "2e-3", "--epochs", "3", "--train-layers", "1"]
    main([*command, "--model", str(WORLD_TINY), *rate])
    trained = open_reranker(str(tmp_path / "trained"), 48)
    assert margin(trained, command) > margin(open_reranker(str(WORLD_TINY), 48), command) + 0.1
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (WORLD_TINY, tmp_path / "trained")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    last = max(int(name.split(".")[2]) for name in before if name.startswith("model.layers."))
    assert {name.rpartition(f".{last}.")[0] for name in changed} == {"model.layers"}


def test_a_cross_encoder_is_trained_and_opened(
    command: list[str], minilm: str, tmp_path: Path
) -> None:
    main([*command, "--model", minilm, "--epochs", "1"])
    assert isinstance(open_reranker(str(tmp_path / "trained"), 48), CrossEncoderReranker)


def test_examples_are_gold_documents_and_others_that_were_found(command: list[str]) -> None:
    questions = load_questions(command[1])
    retriever = open_retriever(Path(command[3]))
    texts = {one.id: f"{one.title}\n{one.text}".rstrip() for one in retriever.documents}
    found = retriever.search([one.text for one in questions], 8)
    made = list(examples(questions, retriever, 8, 3, 0))
    for question, best, one in zip(questions, found, made, strict=True):
        assert one.question == question.text
        assert set(one.right) == {texts[name] for name in question.gold_ids}
        others = {texts[doc.id] for doc in best if doc.id not in question.gold_ids}
        assert len(one.wrong) == min(3, len(others))
        assert set(one.wrong) <= others
    assert made == list(examples(questions, retriever, 8, 3, 0))
