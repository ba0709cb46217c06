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
    measure,
    plan,
    summarise,
)

ROLLOUT = RolloutShape(2, 2, prompt=9, query=4, documents=20, refinement=6, opening=3, answer=4)
CASES = {method: ScoringCase(1, 128, method, ROLLOUT, rollouts=2) for method in METHODS}


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
    scores = [np.array(result.scores) for result in results.values()]
    assert scores[0].shape == (2 * ROLLOUT.contexts, ROLLOUT.answer)
    assert scores[0].std() > 0.5  # answers and contexts differ
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], atol=1e-4)


def test_contexts_matter(results: dict[str, Measurement]) -> None:
    rows = np.array(results["trie"].scores)[: 1 + ROLLOUT.counterfactuals]
    assert np.abs(rows - rows[0])[1:].max() > 100 * TOLERANCE


def test_the_summary(results: dict[str, Measurement]) -> None:
    timed = [
        replace(results[method], cpu_seconds=seconds)
        for method, seconds in zip(METHODS, (1.0, 2.0, 8.0, 12.0), strict=True)
    ]
    rows, worst = summarise(CASES, timed)
    assert [row["cpu_seconds"] for row in rows] == [5.0, 10.0, 40.0, 60.0]  # 2 of 10 rollouts
    assert [row["times"] for row in rows] == [1.0, 2.0, 8.0, 12.0]
    assert 0 < worst < 1e-4
    timed[2] = replace(timed[2], scores=[values + 1 for values in timed[2].scores])
    assert summarise(CASES, timed)[1] == pytest.approx(1, abs=1e-3)


def test_fewer_rollouts_are_compared_with_the_first_ones(results: dict[str, Measurement]) -> None:
    cases = {"trie": CASES["trie"], "padded": replace(CASES["padded"], rollouts=1)}
    part = measure(cases["padded"])
    rows, worst = summarise(cases, [results["trie"], part])
    assert rows[1]["tokens"] == 5 * results["padded"].tokens
    assert rows[1]["about"] == "~"
    assert worst < 1e-4


def test_a_case_runs_in_a_process_of_its_own(results: dict[str, Measurement]) -> None:
    ((name, found),) = kit.measure_apart({"one_by_one": CASES["one_by_one"]}, measure)
    assert name == "one_by_one"
    np.testing.assert_array_equal(found.scores, results["one_by_one"].scores)
    assert found.peak_mib > 50


def test_the_plan() -> None:
    cases = plan(threads=2).values()
    assert len(cases) == 2 * 3 * 4
    assert all(case.threads == 2 for case in cases)
    assert not any(c.rollouts < 10 for c in cases if c.layers == 4 or c.method == "trie")
