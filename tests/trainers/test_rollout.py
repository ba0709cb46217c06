"""Collecting episodes with agents that end at different times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest

from igsearch_env.completion import Completion
from igsearch_env.data.world import World
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Episode, Question
from igsearch_env.retrieval.base import RetrievalError
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.rollout import collect
from igsearch_env.settings import make_engine
from trainers.warm_start.tiny_policy import PROTOCOL


class Patient:
    """Searches as often as the last digit of its question's id says, then answers that number."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def act(self, episodes: Sequence[Episode]) -> list[Completion]:
        self.calls.append([episode.question.id for episode in episodes])
        return [Completion(self._turn(episode)) for episode in episodes]

    def _turn(self, episode: Episode) -> str:
        wanted = int(episode.question.id[-1])
        if len(episode.searches) < wanted:
            return f"<search> home {len(episode.searches)} </search>"
        return f"<answer> {wanted} </answer>"


@pytest.fixture
def engine(world: World) -> SearchQAEngine:
    return make_engine(
        world.train_questions,
        BM25Retriever.build(world.documents),
        None,
        protocol=PROTOCOL,
        num_counterfactuals=0,
    )


def questions(*numbers: int) -> list[Question]:
    return [Question(f"q{number}", f"what is {number} ?", (str(number),)) for number in numbers]


def test_episodes_come_in_the_order_of_the_questions(engine: SearchQAEngine) -> None:
    asked = questions(2, 0, 3, 1, 0)
    groups = ["b", "a", "b", "a", "c"]
    agent = Patient()
    ended: list[int] = []
    episodes = collect(engine, agent, asked, groups, progress=ended.append)
    assert [episode.question for episode in episodes] == asked
    assert [episode.group_id for episode in episodes] == groups
    assert [episode.answer for episode in episodes] == ["2", "0", "3", "1", "0"]
    assert [len(episode.searches) for episode in episodes] == [2, 0, 3, 1, 0]
    assert all(episode.em == 1.0 and episode.finished for episode in episodes)
    # The finished ones are not asked again.
    assert agent.calls == [["q2", "q0", "q3", "q1", "q0"], ["q2", "q3", "q1"], ["q2", "q3"], ["q3"]]
    assert ended == [2, 1, 1, 1]


def test_a_group_is_a_question_unless_told_apart(engine: SearchQAEngine) -> None:
    episodes = collect(engine, Patient(), questions(1, 1, 0))
    assert [episode.group_id for episode in episodes] == ["q1", "q1", "q0"]
    with pytest.raises(ValueError, match=r"zip\(\)"):
        collect(engine, Patient(), questions(1, 0), ["one group"])


def test_nothing_asked_nothing_played(engine: SearchQAEngine) -> None:
    agent = Patient()
    assert collect(engine, agent, []) == []
    assert agent.calls == []


def test_time_is_added_up_by_part(engine: SearchQAEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("igsearch_env.rollout.time.perf_counter", lambda: now[0])

    class Slow(Patient):
        def act(self, episodes: Sequence[Episode]) -> list[Completion]:
            now[0] += 2.0
            return super().act(episodes)

    search = engine.retriever.search

    def slow_search(queries: Sequence[str], k: int) -> object:
        now[0] += 0.5
        return search(queries, k)

    monkeypatch.setattr(engine.retriever, "search", slow_search)
    seconds = defaultdict[str, float](float, {"rollout": 10.0, "other": 1.0})
    collect(engine, Slow(), questions(1, 2), seconds=seconds)
    assert seconds == {"rollout": 16.0, "retrieval": 1.0, "other": 1.0}


def test_a_failing_retriever_is_recorded(
    engine: SearchQAEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def search(queries: Sequence[str], k: int) -> list[list[object]]:
        calls.append(list(queries))
        if len(calls) == 1:
            raise RetrievalError("the server is down")
        return [[] for _ in queries]

    monkeypatch.setattr(engine.retriever, "search", search)
    episodes = collect(engine, Patient(), questions(1, 2, 0))
    assert [episode.retrieval_failed for episode in episodes] == [True, True, False]
    assert [step.retrieval_failed for step in episodes[1].searches] == [True, False]
    assert all(episode.finished for episode in episodes)
