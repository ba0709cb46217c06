"""Ways to score are compared over the same contexts, and count the tokens that they run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from scripts.benchmarks import kit
from scripts.benchmarks.scoring import (
    METHODS,
    TOLERANCE,
    Measurement,
    RolloutShape,
    ScoringCase,
    count_unique,
    measure,
    plan,
    summarise,
)

ROLLOUT = RolloutShape(2, 2, prompt=9, query=4, documents=20, refinement=6, opening=3, answer=4)
CASES = {
    method: ScoringCase(1, 128, method, ROLLOUT, rollouts=3, run=2, repeats=1) for method in METHODS
}


@pytest.fixture(autouse=True, scope="module")
def _threads_are_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def results() -> dict[str, Measurement]:
    return {name: measure(case) for name, case in CASES.items()}


def test_the_methods_agree_and_count_their_tokens(results: dict[str, Measurement]) -> None:
    # By hand: 9 + 4 tokens, 20 + 6 of evidence, 3 + 4 of the answer; the second search comes 30
    # later. The trie shares all but evidence and answer, and never runs an answer's last token.
    first, second = 9 + 4 + 26 + 7, 9 + 4 + 30 + 26 + 7
    assert results["padded"].tokens == 2 * 6 * second
    assert results["padded_answer_logits"].tokens == 2 * 6 * second
    assert results["one_by_one"].tokens == 2 * 3 * (first + second)
    assert results["trie"].tokens == 2 * (9 + 2 * (4 + 3 * (26 + 6)))
    scores = [np.array(list(result.scores.values())) for result in results.values()]
    assert scores[0].shape == (2 * ROLLOUT.contexts, ROLLOUT.answer)
    assert scores[0].std() > 0.5  # answers and contexts differ
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], atol=1e-4)


def test_contexts_matter(results: dict[str, Measurement]) -> None:
    rows = np.array(list(results["trie"].scores.values()))[: 1 + ROLLOUT.counterfactuals]
    assert np.abs(rows - rows[0])[1:].max() > 100 * TOLERANCE


def test_part_of_a_rollout_is_scaled_up(results: dict[str, Measurement]) -> None:
    case = replace(CASES["padded"], run=1, rows=2)
    part = measure(case)
    assert case.scale == 3 * ROLLOUT.contexts / 2
    assert part.tokens * case.scale == results["padded"].tokens * CASES["padded"].scale
    assert list(part.scores) == ["4", "5"]
    for number, values in part.scores.items():
        assert values == pytest.approx(results["padded"].scores[number], abs=1e-4)


def test_the_summary(results: dict[str, Measurement]) -> None:
    seconds = dict(zip(METHODS, (12.0, 8.0, 2.0, 1.0), strict=True))
    timed = {name: replace(r, cpu_seconds=seconds[name]) for name, r in results.items()}
    summary = summarise(CASES, timed)
    assert [row["cpu_seconds"] for row in summary["rows"]] == [18.0, 12.0, 3.0, 1.5]
    assert [row["times"] for row in summary["rows"]] == [12.0, 8.0, 2.0, 1.0]
    assert 0 < summary["largest_difference"] < 1e-4
    wrong = {number: [v + 1 for v in values] for number, values in timed["padded"].scores.items()}
    timed["padded"] = replace(timed["padded"], scores=wrong)
    assert summarise(CASES, timed)["largest_difference"] == pytest.approx(1, abs=1e-3)


def test_a_case_runs_in_a_process_of_its_own(results: dict[str, Measurement]) -> None:
    ((name, found),) = kit.measure_apart({"one_by_one": CASES["one_by_one"]}, measure)
    assert name == "one_by_one"
    assert found.scores == results["one_by_one"].scores
    assert found.peak_mib > 50


def test_plans() -> None:
    quick, full = plan(quick=True, threads=2).values(), plan(quick=False, threads=1).values()
    assert {(case.layers, case.rollout.searches) for case in quick} == {(4, 2), (4, 4)}
    assert {(case.layers, case.rollout.searches) for case in full} == {
        (layers, searches) for layers in (4, 8) for searches in (2, 4, 5)
    }
    assert all(case.threads == 2 for case in quick)
    assert not any(c.scale > 1 for c in full if c.layers == 4 or c.method == "trie")
    assert (len(quick), len(full)) == (4 * 2, 4 * 6)


def test_unique_tokens_that_are_followed() -> None:
    assert count_unique([[1, 2, 3], [1, 2, 4, 5], [2], [1, 2, 3]]) == 3
