"""Training on text that nobody wrote for it: a fresh model, a BPE made on the spot, two steps.

A random model never writes a search, so it first imitates a scripted agent for a few seconds.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from agents.tokenization import SegmentTokenizer
from agents.transformers_policy import TransformersPolicy
from igsearch_env.answers import contains_answer, normalize_answer
from igsearch_env.baselines import RandomQueryAgent
from igsearch_env.completion import Completion
from igsearch_env.data.corpus import load_corpus
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Document, Episode, Question
from igsearch_env.protocol.names import get_protocol
from igsearch_env.rollout import collect
from trainers.config import TrainSettings, load_config
from trainers.local.grpo import GRPOTrainer
from trainers.setup import make_training_engine

DATA = os.environ.get("IGSEARCH_DATA", "")
Imitate = Callable[..., float]


def bpe(documents: Sequence[Document], protocol: str, size: int) -> SegmentTokenizer:
    """A byte-level BPE of passages and of the protocol's own words, as a chat model would have."""
    tags = "<search> who </search>\n<answer> Lima </answer>"
    texts = [f"{document.title}\n{document.text}" for document in documents]
    texts += [f"{get_protocol(protocol).prompt} {tags}"] * 200
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(texts, trainer)
    model = json.loads(backend.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    end = "<|endoftext|>"
    return SegmentTokenizer(
        Qwen2Tokenizer(
            model["vocab"],
            merges,
            unk_token=end,
            eos_token=end,
            pad_token=end,
        )
    )


def small_model(tokenizer: SegmentTokenizer) -> Qwen2ForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=4096,
                tie_word_embeddings=True,
                eos_token_id=tokenizer.tokenizer.eos_token_id,
                bos_token_id=None,
            )
        )


class Writer(RandomQueryAgent):
    """Searches once, for a few words of the question, in the tokens of the policy."""

    def __init__(self, protocol: str, tokenizer: SegmentTokenizer) -> None:
        super().__init__(protocol, searches=1)
        self.tokenizer = tokenizer

    def act(self, episodes: Sequence[Episode]) -> list[Completion]:
        turns = [self.tokenizer.encode_answer("", text)[1] for text in super().act(episodes)]
        return [Completion.from_tokens(ids, None, self.tokenizer.decode) for ids in turns]


def searching_policy(
    config: TrainSettings, engine: SearchQAEngine, corpus: Sequence[Document], imitate: Imitate
) -> TransformersPolicy:
    """A fresh model that imitates the scripted agent until it writes searches."""
    protocol = config.environment.protocol
    tokenizer = bpe(corpus[:1000], protocol, 1500)
    episodes = collect(engine, Writer(protocol, tokenizer), engine.questions[:24])
    policy = TransformersPolicy(
        small_model(tokenizer), tokenizer, protocol, max_new_tokens=config.policy.max_new_tokens
    )
    fresh = [engine.rules.begin(question) for question in engine.questions[:16]]
    assert not any("</search>" in turn for turn in policy.act(fresh))
    for _ in range(9):
        imitate(policy.model, tokenizer, episodes, 20, rate=1e-2, size=6)
        if sum("</search>" in turn for turn in policy.act(fresh)) >= 12:
            return policy
    raise AssertionError("the model did not learn to search")


def check_training(tmp_path: Path, imitate: Imitate, *settings: str) -> list[Episode]:
    """Teach a policy, train it for two steps, and check what came of it; returns the rollouts."""
    shared = [
        "policy.max_new_tokens=24",
        "optimization.steps=2",
        "optimization.questions_per_step=4",
        "optimization.group_size=3",
        "optimization.learning_rate=1e-3",
        "environment.floor=none",
        "environment.outcome=f1",
        "environment.max_searches=2",
        "run.threads=1",
        f"policy.path={json.dumps(str(tmp_path / 'start'))}",
        *settings,
    ]
    config = load_config(None, shared)
    corpus = load_corpus(config.environment.retriever)
    policy = searching_policy(config, make_training_engine(config, 0), corpus, imitate)
    policy.save_pretrained(tmp_path / "start")
    trainer = GRPOTrainer(config, tmp_path / "run")
    before = copy.deepcopy(trainer.policy.model.state_dict())
    rollouts: list[Episode] = []
    real = trainer.agent.advantages

    def watched(episodes: Sequence[Episode], progress: float) -> list[NDArray[np.float64]]:
        rollouts.extend(episodes)
        return real(episodes, progress)

    trainer.agent.advantages = watched  # type: ignore[method-assign]
    last = trainer.run()
    after = trainer.policy.model.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert math.isfinite(last["loss"])
    assert last["grad_norm"] > 0
    assert len(rollouts) == 24
    check_gains(rollouts, {document.id: document for document in corpus})
    return rollouts


def check_gains(rollouts: Sequence[Episode], corpus: dict[str, Document]) -> None:
    """Every search that found something is settled, against documents of other questions."""
    searches = [
        (episode.question, step)
        for episode in rollouts
        for step in episode.searches
        if step.documents
    ]
    assert len(searches) >= 3
    settled = [(q, step) for q, step in searches if step.information_gain is not None]
    assert len(settled) > 0.8 * len(searches)
    gains = [step.information_gain or 0.0 for _, step in settled]
    assert all(math.isfinite(gain) for gain in gains)
    assert sum(abs(gain) > 1e-4 for gain in gains) > len(gains) / 2
    for question, step in settled:
        for document in step.documents:
            assert corpus[document.id].text == document.text
        assert step.log_prob is not None
        assert step.baseline_log_probs is not None
        expected = step.log_prob - float(np.mean(step.baseline_log_probs))
        assert step.information_gain == pytest.approx(expected)
        found = {document.id for document in step.documents}
        for evidence in step.counterfactuals:
            assert evidence.question_id != question.id
            assert not found & {document.id for document in evidence.documents}
            check_no_answer(question, evidence.documents)


def check_no_answer(question: Question, documents: Sequence[Document]) -> None:
    if {normalize_answer(gold) for gold in question.golden_answers} <= {"yes", "no"}:
        return
    for document in documents:
        assert not contains_answer(f"{document.title} {document.text}", question.golden_answers)


@pytest.mark.skipif(not DATA, reason="IGSEARCH_DATA names no folder of question sets")
def test_two_steps_on_hotpotqa(tmp_path: Path, imitate: Imitate) -> None:
    rollouts = check_training(
        tmp_path,
        imitate,
        f"environment.questions={json.dumps(f'{DATA}/hotpotqa_train.questions.jsonl')}",
        f"environment.retriever={json.dumps(f'{DATA}/hotpotqa.corpus.jsonl')}",
        "environment.protocol=refine",
        "environment.top_k=1",
    )
    assert {episode.question.dataset for episode in rollouts} == {"hotpotqa"}


def test_two_steps_on_passages_written_for_this_test(tmp_path: Path, imitate: Imitate) -> None:
    places = ["Lima", "Quito", "Bogotá", "La Paz", "Caracas", "Montevideo", "Asunción", "Santiago"]
    countries = [
        "Peru",
        "Ecuador",
        "Colombia",
        "Bolivia",
        "Venezuela",
        "Uruguay",
        "Paraguay",
        "Chile",
    ]
    rivers = [
        "Rímac",
        "Machángara",
        "Bogotá River",
        "Choqueyapu",
        "Guaire",
        "Plata",
        "Paraná",
        "Mapocho",
    ]
    passages, questions = [], []
    for number, (city, country, river) in enumerate(zip(places, countries, rivers, strict=True)):
        passages += [
            f'"{city}"\n{city} is the capital of {country} – with many streets on the {river}.',
            f'"{country}"\n{country} lies in South America; its people vote & its flag is old.',
        ]
        questions += [
            (f"c{number}", f"Which city is the capital of {country}?", [city]),
            (
                f"r{number}",
                f"On which river does the capital of {country} lie?",
                [river, f"the {river}"],
            ),
        ]
    corpus, asked = tmp_path / "corpus.jsonl", tmp_path / "asked.jsonl"
    corpus.write_text(
        "".join(json.dumps({"id": f"p{i}", "contents": t}) + "\n" for i, t in enumerate(passages))
    )
    asked.write_text(
        "".join(
            json.dumps({"id": i, "question": text, "golden_answers": golds}) + "\n"
            for i, text, golds in questions
        )
    )
    check_training(
        tmp_path,
        imitate,
        f"environment.questions={json.dumps(str(asked))}",
        f"environment.retriever={json.dumps(str(corpus))}",
        "environment.protocol=refine-bare",
        "environment.top_k=2",
    )
