"""Playing questions in chunks that do not depend on each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from agents.transformers_policy import TransformersPolicy
from igsearch_env.baselines import make_scripted
from igsearch_env.data.world import World
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Episode, Question
from igsearch_env.evaluation.play import make_chunks, play_chunk, play_questions
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.settings import make_engine
from trainers.warm_start.tiny_policy import PROTOCOL

MakePolicy = Callable[..., TransformersPolicy]


@pytest.fixture
def engine(world: World) -> SearchQAEngine:
    """With a scorer: gains are settled."""
    retriever = BM25Retriever.build(world.documents)
    return make_engine(world.test_questions, retriever, protocol=PROTOCOL, max_searches=2)


@pytest.fixture
def questions(world: World) -> Sequence[Question]:
    return world.test_questions[:11]


def test_a_chunk_depends_on_the_seed_and_its_number_alone(
    engine: SearchQAEngine, questions: Sequence[Question], make_policy: MakePolicy
) -> None:
    policy = make_policy()

    def play(seed: int) -> list[list[Episode]]:
        chunks = make_chunks(questions, seed=seed, size=4)
        return [play_chunk(engine, policy.fresh(chunk.seed), chunk) for chunk in chunks]

    chunks = play(5)
    assert [len(chunk) for chunk in chunks] == [4, 4, 3]
    assert [e.question for chunk in chunks for e in chunk] == list(questions)
    last = make_chunks(questions, seed=5, size=4)[-1]
    assert play_chunk(engine, policy.fresh(last.seed), last) == chunks[-1]
    assert play(6) != chunks
    assert len(engine.pool) == 0
    assert not engine.pool.counts


def test_gains_are_settled_as_the_environment_does(
    engine: SearchQAEngine, questions: Sequence[Question]
) -> None:
    seconds: defaultdict[str, float] = defaultdict(float)
    (chunk,) = make_chunks(questions, seed=5, size=20)
    agent = make_scripted("search_once", PROTOCOL)
    settled = play_chunk(engine, agent, chunk, seconds=seconds)
    assert set(seconds) == {"rollout", "retrieval", "information_gain"}
    assert engine.scorer is not None
    engine.pool.seed(chunk.seed)
    online = [engine.rules.begin(question, question.id) for question in questions]
    for _ in range(2):
        turns = make_scripted("search_once", PROTOCOL).act(online)
        online = [episode for episode, _ in engine.step(online, turns)]
    assert settled == online
    assert all(gain is not None for episode in settled for gain in episode.information_gains)
    without = replace(engine, scorer=None)
    unsettled = play_chunk(without, agent, chunk)
    assert {gain for episode in unsettled for gain in episode.information_gains} == {None}


def test_play_questions_leaves_policy_and_engine_alone(
    engine: SearchQAEngine, questions: Sequence[Question], make_policy: MakePolicy
) -> None:
    policy = make_policy(batch_size=4, temperature=0.7)
    before = policy.state_dict()["generator"]
    ended: list[int] = []
    episodes = play_questions(engine, policy, questions, seed=1, progress=ended.append)
    assert sum(ended) == len(episodes) == len(questions)
    assert all(episode.finished for episode in episodes)
    steps = [step for episode in episodes for step in episode.steps]
    assert any(step.action == "search" for step in steps)
    assert not any(step.counterfactuals for step in steps)
    assert play_questions(engine, policy, questions, seed=1) == episodes
    assert play_questions(engine, policy, questions, seed=2) != episodes
    greedy = play_questions(engine, policy, questions, seed=1, greedy=True)
    assert play_questions(engine, policy, questions, seed=2, greedy=True) == greedy
    assert (policy.state_dict()["generator"] == before).all()
    assert len(engine.pool) == 0
