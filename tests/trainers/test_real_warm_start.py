"""A warm start on real questions: what is shown, what is learned, and going on after a kill."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents.transformers_policy import TransformersPolicy
from igsearch_env.answers import contains_answer
from igsearch_env.data.world import World
from igsearch_env.engine import SearchQAEngine
from igsearch_env.protocol.tags import PROTOCOLS
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.rollout import collect
from igsearch_env.settings import make_engine
from trainers.warm_start.real_questions import GoldAgent, RealWarmStart, RealWarmStartSettings
from trainers.warm_start.tiny_policy import build_model, build_tokenizer

MakeEngine = Callable[..., SearchQAEngine]
SETTINGS = RealWarmStartSettings(
    steps=6, batch_size=3, learning_rate=3e-3, micro_batch_tokens=200, checkpoint_every=2
)


@pytest.fixture(scope="module")
def engine_for(world: World) -> MakeEngine:
    retriever = BM25Retriever.build(world.documents)

    def make(protocol: str = "refine-bare") -> SearchQAEngine:
        options = {"max_searches": 4, "top_k": 1, "num_counterfactuals": 0}
        return make_engine(world.train_questions, retriever, None, protocol=protocol, **options)

    return make


def fresh(protocol: str = "refine-bare") -> TransformersPolicy:
    model = build_model(0, layers=2, hidden=32)
    return TransformersPolicy(model, build_tokenizer(), protocol, max_new_tokens=16)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_agent_searches_for_titles_and_reads_answers_in_every_grammar(
    engine_for: MakeEngine, protocol: str
) -> None:
    engine = engine_for(protocol)
    agent = GoldAgent(fresh(protocol), 4, random.Random(0))
    episodes = collect(engine, agent, engine.questions[:60])
    assert all(step.valid for episode in episodes for step in episode.steps)
    assert all(episode.answer and episode.policy_tokens for episode in episodes)
    lengths = {len(episode.searches) for episode in episodes}
    assert {1, 2} <= lengths <= {1, 2, 3, 4}
    for episode in episodes:
        texts = [d.text for step in episode.searches for d in step.documents]
        read = any(contains_answer(text, episode.question.golden_answers) for text in texts)
        assert episode.em == float(read)
    queries = {step.query for episode in episodes for step in episode.searches}
    titles = {title for episode in episodes for title in episode.question.gold_titles}
    assert queries & titles
    assert queries - titles
    refined = any("<refine>" in step.turn.text for e in episodes for step in e.steps)
    assert refined == (protocol in ("refine", "browse"))


def test_it_learns_what_it_is_shown_and_goes_on_after_a_kill(
    engine_for: MakeEngine, tmp_path: Path
) -> None:
    def run(policy: TransformersPolicy, stop_after: int, file: Path | None) -> list[float]:
        losses: list[float] = []

        def note(number: int, loss: float) -> None:
            losses.append(loss)
            if number == stop_after:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            RealWarmStart(SETTINGS, policy, engine_for()).run(note, file)
        return losses

    whole = fresh()
    losses = run(whole, 0, None)
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.3
    cut = tmp_path / "warm_start.pt"
    assert run(fresh(), 5, cut) == losses[:5]
    resumed = fresh()
    assert run(resumed, 0, cut) == losses[5:]  # Ctrl-C kept the fifth
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight)
    other = replace(SETTINGS, learning_rate=1e-3)
    with pytest.raises(ValueError, match="other settings"):
        RealWarmStart(other, fresh(), engine_for()).run(lambda n, loss: None, cut)
    rounded = fresh()
    rounded.autocast = torch.bfloat16
    with pytest.raises(
        ValueError, match=r"in float32, and this one is in bfloat16-autocast; .* --precision"
    ):
        RealWarmStart(SETTINGS, rounded, engine_for()).run(lambda n, loss: None, cut)


def test_questions_without_gold_titles_are_refused(engine_for: MakeEngine, world: World) -> None:
    untitled = tuple(replace(question, gold_titles=()) for question in world.train_questions)
    engine = replace(engine_for(), questions=untitled)
    with pytest.raises(ValueError, match="no gold_titles"):
        RealWarmStart(SETTINGS, fresh(), engine)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        RealWarmStartSettings(batch_size=0)
