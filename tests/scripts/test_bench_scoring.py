from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.scoring.flops import RolloutShape, one_by_one, padded, trie
from scripts.benchmarks import scoring as bench_scoring
from scripts.benchmarks.scoring import METHODS, plan, run_arms, summarise
from scripts.benchmarks.scoring_arms import Measurement, ScoringCase, count_unique, measure
from scripts.benchmarks.scoring_cost import cost

ROLLOUT = RolloutShape(2, 2, prompt=9, query=4, documents=20, refinement=6, opening=3, answer=4)
ARMS = [ScoringCase(1, 128, method, ROLLOUT, rollouts=3, run=2, repeats=1) for method in METHODS]


@pytest.fixture(autouse=True, scope="module")
def _threads_are_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def results() -> list[Measurement]:
    return [measure(arm) for arm in ARMS]


def test_the_arms_agree_and_count_their_tokens(results: list[Measurement]) -> None:
    works = [padded(ROLLOUT), padded(ROLLOUT), one_by_one(ROLLOUT), trie(ROLLOUT)]
    assert [result.tokens for result in results] == [2 * work.tokens for work in works]
    scores = [np.array(list(result.scores.values())) for result in results]
    assert scores[0].shape == (2 * ROLLOUT.contexts, ROLLOUT.answer)
    assert scores[0].std() > 0.5  # answers and contexts differ
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], atol=1e-4)


def test_contexts_matter(results: list[Measurement]) -> None:
    rows = np.array(list(results[-1].scores.values()))[: 1 + ROLLOUT.counterfactuals]
    assert np.abs(rows - rows[0])[1:].max() > 100 * bench_scoring.TOLERANCE


def test_part_of_a_rollout_is_scaled_up(results: list[Measurement]) -> None:
    arm = replace(ARMS[0], run=1, rows=2)
    part = measure(arm)
    assert arm.scale == 3 * ROLLOUT.contexts / 2
    assert part.tokens * arm.scale == results[0].tokens * ARMS[0].scale
    assert list(part.scores) == ["4", "5"]
    for number, values in part.scores.items():
        assert values == pytest.approx(results[0].scores[number], abs=1e-4)


def test_the_summary(results: list[Measurement]) -> None:
    arms = [replace(arm, rollout=replace(ROLLOUT, searches=4)) for arm in ARMS]
    seconds = [12.0, 8.0, 2.0, 1.0]
    timed = [replace(r, cpu_seconds=s) for r, s in zip(results, seconds, strict=True)]
    summary = summarise(arms, timed)
    assert summary["rows"][3].keys() == {
        *("searches", "layers", "hidden", "method", "tokens", "cpu_seconds", "peak_mb", "scaled")
    }
    assert [row["cpu_seconds"] for row in summary["rows"]] == [18.0, 12.0, 3.0, 1.5]
    assert [r["ratio"] for r in summary["ratios"]] == [12.0, 8.0, 2.0]
    assert [r["target"] for r in summary["ratios"]] == [6.0, None, 2.2]
    verdicts = [bench_scoring._verdict(ratio) for ratio in summary["ratios"]]
    assert "met" in verdicts[0]
    assert "target" not in verdicts[1]
    assert "MISSED" in verdicts[2]
    assert 0 < summary["largest_difference"] < 1e-4
    wrong = {number: [v + 1 for v in values] for number, values in timed[0].scores.items()}
    timed[0] = replace(timed[0], scores=wrong)
    assert summarise(arms, timed)["largest_difference"] == pytest.approx(1, abs=1e-3)


def test_arms_run_apart_and_are_kept(results: list[Measurement], tmp_path: Path) -> None:
    arms = ARMS[2:]
    (first,) = run_arms(arms[:1], tmp_path)
    assert first.scores == results[2].scores
    assert first.peak_mb > 50
    kept = next(tmp_path.iterdir())
    saved = json.loads(kept.read_text())
    saved["measurement"]["cpu_seconds"] = -1.0
    kept.write_text(json.dumps(saved))
    again, other = run_arms(arms, tmp_path)
    assert again.cpu_seconds == -1.0
    assert other.tokens == results[3].tokens
    with pytest.raises(ValueError, match="another benchmark"):
        run_arms([replace(arms[0], run=1)], tmp_path)


def test_finished_arms_are_not_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "arms").mkdir()
    (tmp_path / "arms" / "4x256-T2-packed.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["bench_scoring", "--quick", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="--resume"):
        bench_scoring.main()


def test_plans() -> None:
    quick, full = plan(quick=True, threads=2), plan(quick=False, threads=1)
    assert {(arm.layers, arm.rollout.searches) for arm in quick} == {(4, 2), (4, 4)}
    assert {(arm.layers, arm.rollout.searches) for arm in full} == {
        (layers, searches) for layers in (4, 8) for searches in (2, 4, 5)
    }
    assert all(arm.threads == 2 for arm in quick)
    assert not any(arm.scale > 1 for arm in full if arm.layers == 4 or arm.method == "packed")
    for arms in (quick, full):
        places = {(arm.layers, arm.rollout.searches) for arm in arms}
        assert len({(a.layers, a.rollout.searches, a.method) for a in arms}) == 4 * len(places)


def test_unique_tokens_that_are_followed() -> None:
    assert count_unique([[1, 2, 3], [1, 2, 4, 5], [2], [1, 2, 3]]) == 3


def test_the_cost_of_the_published_setting() -> None:
    rows = cost(RolloutShape(5), group=5)
    assert [row["method"] for row in rows] == list(METHODS)
    assert rows[0]["tokens"] == 5 * 70_160
    shares = [row["percent_of_update"] for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 6 * shares[3]
