from __future__ import annotations

import pytest

from scripts.benchmarks import env as bench_env
from scripts.benchmarks.env import Player, managed_workload, measure, scoring_workload


@pytest.fixture(scope="module")
def arms() -> list[Player]:
    workload = scoring_workload()
    return [Player(workload, "single", 1), Player(workload, "sync", 3), Player(workload, "ours", 3)]


def test_every_arm_plays_the_same_turns_to_the_end(arms: list[Player]) -> None:
    for arm in arms:
        arm.round(0)
    episodes = [arm.episodes() for arm in arms]
    said = [[tuple(step.turn.text for step in e.steps) for e in played] for played in episodes]
    assert said[1] == said[2]
    assert said[0] == said[1][:1]
    for episode in (one for played in episodes for one in played):
        assert episode.terminated
        assert len(episode.searches) == bench_env.SEARCHES
        assert None not in episode.information_gains


def test_all_is_on_in_the_managed_workload() -> None:
    workload = managed_workload(scoring_workload())
    arm = Player(workload, "ours", 2)
    arm.round(0)
    for episode in arm.episodes():
        assert episode.terminated
        assert len(episode.searches) == 2 * bench_env.SEARCHES
        assert {step.call for step in episode.searches} == {0, 1}
        assert any(step.cut for step in episode.searches)
        assert episode.tokens > 0
        assert len(episode.training_sequences) > 1


def test_time_inside_retriever_and_scorer_is_taken(arms: list[Player]) -> None:
    for row in measure(arms, rounds=1):
        assert row["steps_per_cpu_second"] > 0
        assert 0 < row["outside"] < 1
