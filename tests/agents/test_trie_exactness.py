"""The fast scorer against the plain one on episodes that the real environment played."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agents.inference import decoder
from agents.scoring import trie_forward
from agents.scoring.one_by_one import OneByOneScorer
from agents.scoring.trie_scorer import TrieScorer
from igsearch_env import BM25Retriever, Document, Episode, Question
from igsearch_env.completion import Completion
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Context, Segment
from igsearch_env.settings import make_engine
from tests.agents.conftest import FAMILIES, WORDS

MakeModel = Callable[..., PreTrainedModel]
Pairs = tuple[list[Context], list[str]]
SCORERS = [TrieScorer, OneByOneScorer]
OPENING = Segment("\n<answer>", "system")


def some_words(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choices([*WORDS, "Zürich", "日本", "🙂"], k=rng.randint(low, high)))


def play(tokenizer: PreTrainedTokenizerFast, searches: int, counterfactuals: int) -> list[Episode]:
    """Two rollouts of a question and one of another, with token ids in every turn."""
    rng = random.Random(10 * searches + counterfactuals)
    texts = [some_words(rng, 2, 14) for _ in range(12)]
    documents = [Document(f"d{i}", "", text) for i, text in enumerate(texts * 2)]
    questions = [
        Question(
            f"q{i}", some_words(rng, 2, 6), tuple(f"answer {i} {a}" for a in range(1 + 2 * (i % 2)))
        )
        for i in range(8)
    ]
    engine: SearchQAEngine = make_engine(
        questions,
        BM25Retriever.build(documents),
        None,
        protocol="refine-bare",
        max_searches=searches,
        top_k=2,
        num_counterfactuals=counterfactuals,
    )

    def complete(text: str) -> Completion:
        ids = tokenizer(text)["input_ids"]
        return Completion.from_tokens(ids, [0.0] * len(ids), tokenizer.decode)

    episodes = [engine.rules.begin(questions[i], f"q{i}") for i in (0, 0, 1)]
    for step in range(searches + 1):
        turns = []
        for _ in episodes:
            note = f"<refine> {some_words(rng, 0, 4)} </refine> " if rng.random() < 0.6 else ""
            search = f"<search> {some_words(rng, 1, 4)} </search>"
            answer = "<answer> lima </answer>"
            turns.append(complete(note + (search if step < searches else answer)))
        episodes = [episode for episode, _ in engine.step(episodes, turns)]
    assert all(len(episode.searches) == searches and episode.finished for episode in episodes)
    return episodes


def scoring_pairs(episodes: list[Episode]) -> Pairs:
    """Every context of information gain, each with every golden answer."""
    gain = make_engine(protocol="refine-bare").information_gain
    contexts: list[Context] = []
    answers: list[str] = []
    for episode in episodes:
        for index in range(len(episode.steps)):
            if gain.due(episode, index):
                for context in gain.contexts(episode, index):
                    contexts += [context] * len(episode.question.golden_answers)
                    answers += [f" {alias}" for alias in episode.question.golden_answers]
    return contexts, answers


@pytest.fixture(scope="module")
def pairs(bpe: PreTrainedTokenizerFast) -> Pairs:
    return scoring_pairs(play(bpe, searches=3, counterfactuals=3))


def score(scorer: TrieScorer | OneByOneScorer, pairs: Pairs) -> NDArray[np.float64]:
    return np.concatenate(scorer.log_probs(*pairs))


@pytest.mark.parametrize(("searches", "counterfactuals"), [(1, 5), (3, 3), (6, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_real_episodes_are_scored_exactly(
    make_model: MakeModel,
    bpe: PreTrainedTokenizerFast,
    family: str,
    searches: int,
    counterfactuals: int,
) -> None:
    model = make_model(family, len(bpe), max_position_embeddings=4_096)
    pairs = scoring_pairs(play(bpe, searches, counterfactuals))
    expected = score(OneByOneScorer(model, bpe), pairs)
    assert expected.std() > 1
    np.testing.assert_allclose(score(TrieScorer(model, bpe), pairs), expected, rtol=0, atol=1e-4)


def test_gains_are_the_same(make_model: MakeModel, bpe: PreTrainedTokenizerFast) -> None:
    model = make_model("llama", len(bpe), max_position_embeddings=4_096)
    episodes = play(bpe, searches=2, counterfactuals=2)
    gain = make_engine(protocol="refine-bare").information_gain
    settled = [gain.settle(episodes, kind(model, bpe)) for kind in SCORERS]
    fast, slow = (np.array([e.information_gains for e in part], float) for part in settled)
    assert fast.std() > 0.05
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-4)


def test_the_episodes_hold_every_case(bpe: PreTrainedTokenizerFast) -> None:
    episodes = play(bpe, searches=6, counterfactuals=2)
    steps = [step for episode in episodes for step in episode.steps]
    assert {bool(step.refinement.text) for step in steps[1:]} == {True, False}
    assert {len(episode.question.golden_answers) for episode in episodes} == {1, 3}
    searches = [step.documents for episode in episodes for step in episode.searches]
    assert len(set(searches)) < len(searches)  # the same documents in two searches
    texts = [tuple(document.text for document in documents) for documents in searches]
    assert any(len(set(pair)) < len(pair) for pair in texts)  # a passage twice in one search
    contexts, _ = scoring_pairs(episodes)
    lengths = {sum(len(segment.text) for segment in context) for context in contexts}
    assert len(lengths) > len(set(contexts)) / 2  # ragged


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_adds_little_noise(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast, pairs: Pairs, family: str
) -> None:
    options = {"initializer_range": 0.1, "max_position_embeddings": 4_096}
    model = make_model(family, len(bpe), **options)
    exact = score(OneByOneScorer(model, bpe), pairs)
    nn.Module.to(model, torch.bfloat16)
    slow, fast = (score(kind(model, bpe), pairs) for kind in (OneByOneScorer, TrieScorer))
    assert 0 < np.abs(fast - exact).mean() < 1.5 * np.abs(slow - exact).mean()


def _no_positions(inputs: dict[str, Any]) -> dict[str, Any]:
    return {**inputs, "position_ids": None}


def _no_padding(inputs: dict[str, Any]) -> dict[str, Any]:
    return {**inputs, "attention_mask": torch.zeros_like(inputs["attention_mask"])}


def _zeros_and_ones(inputs: dict[str, Any]) -> dict[str, Any]:
    mask = inputs["attention_mask"]
    return {**inputs, "attention_mask": (mask == 0).to(mask)}


@pytest.mark.parametrize("trap", [_no_positions, _no_padding, _zeros_and_ones])
def test_the_comparison_notices_each_trap(
    make_model: MakeModel,
    bpe: PreTrainedTokenizerFast,
    pairs: Pairs,
    monkeypatch: pytest.MonkeyPatch,
    trap: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    """Negative controls: what raises no error is a thousand times too far off."""
    model = make_model("qwen2", len(bpe), max_position_embeddings=4_096)
    expected = score(OneByOneScorer(model, bpe), pairs)

    def trapped(model: PreTrainedModel) -> Callable[..., Any]:
        inner = decoder(model)
        return lambda **inputs: inner(**trap(inputs))

    monkeypatch.setattr(trie_forward, "decoder", trapped)
    assert np.abs(score(TrieScorer(model, bpe), pairs) - expected).max() > 0.1


@pytest.mark.parametrize("scorer_class", SCORERS)
def test_bad_input_is_refused_before_any_work(
    make_model: MakeModel,
    bpe: PreTrainedTokenizerFast,
    scorer_class: type[TrieScorer | OneByOneScorer],
) -> None:
    model = make_model("qwen3", len(bpe), max_position_embeddings=20)
    scorer = scorer_class(model, bpe)
    other = make_model("qwen3", len(bpe) - 1)
    passes: list[nn.Module] = []
    for part in (model, decoder(model), other, decoder(other)):
        part.register_forward_pre_hook(lambda module, _: passes.append(module))
    good = (Segment("a", "system"), OPENING)
    long = (Segment("lima " * 30, "document"), OPENING)
    with pytest.raises(ValueError, match="no tokens"):
        scorer.log_probs([good, good], [" lima", ""])
    with pytest.raises(ValueError, match="at most 20"):
        scorer.log_probs([good, long], [" lima", " lima"])
    with pytest.raises(ValueError, match="largest id"):
        scorer_class(other, bpe)
    assert passes == []
    scorer.log_probs([good], [" a"])
    assert passes
