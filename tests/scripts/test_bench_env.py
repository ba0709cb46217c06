from __future__ import annotations

from typing import Any

import pytest

from scripts.benchmarks import env as bench_env
from scripts.benchmarks.env import (
    Player,
    Workload,
    make_arm,
    measure,
    plan,
    scoring_workload,
    verdict,
)


@pytest.fixture(scope="module")
def workload() -> Workload:
    return scoring_workload()


@pytest.fixture(scope="module")
def arms(workload: Workload) -> list[Player]:
    return [make_arm(workload, "single", 1), *(make_arm(workload, k, 3) for k in ("sync", "ours"))]


def test_every_arm_plays_the_same_turns_to_the_end(arms: list[Player]) -> None:
    for arm in arms:
        arm.round(0)
    single, sync, ours = (arm.env for arm in arms)
    episodes = [single.episode], [env.episode for env in sync.envs], list(ours.episodes)
    said = [[tuple(step.turn.text for step in e.steps) for e in played] for played in episodes]
    assert said[1] == said[2]
    assert said[0] == said[1][:1]
    for episode in (one for played in episodes for one in played):
        assert episode.terminated
        assert len(episode.searches) == bench_env.SEARCHES
        assert None not in episode.information_gains


def test_time_inside_retriever_and_scorer_is_taken(arms: list[Player]) -> None:
    for row in measure(arms, rounds=1):
        assert row["steps_per_second"] > 0
        assert row["steps_per_cpu_second"] > 0
        assert 0 < row["outside"] < 1


def at_64(sync: float, ours: float, outside: float) -> list[dict[str, Any]]:
    return [
        {
            "workload": name,
            "kind": kind,
            "rows": 64,
            "steps_per_cpu_second": speed,
            "outside": share,
        }
        for name in ("search", "scoring")
        for kind, speed, share in (("sync", sync, 0.5), ("ours", ours, outside))
    ]


def test_the_verdict_needs_both_aims() -> None:
    assert verdict(at_64(10.0, 30.0, 0.05)).startswith("met at 64 rows: ours is 3.0 times")
    assert verdict(at_64(10.0, 29.0, 0.05)).startswith("MISSED")
    assert verdict(at_64(10.0, 40.0, 0.06)).startswith("MISSED")


def test_gymnasiums_processes_play_it_too(workload: Workload) -> None:
    arm = make_arm(workload, "async", 2)
    (row,) = measure([arm], rounds=1)
    assert row["steps_per_second"] > 0
    assert row["outside"] is None
    assert ("async", 8) in plan(quick=False)
    assert ("async", 8) not in plan(quick=True)
