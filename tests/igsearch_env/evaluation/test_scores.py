"""Averages of scores written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igsearch_env.evaluation.scores import (
    ExampleScore,
    all_averages,
    calibration_error,
    macro_average,
    question_scores,
    summary,
)


def score(question: str, em: float, dataset: str = "nq", **rest: Any) -> ExampleScore:
    flags = {name: rest.pop(name, False) for name in ("failed", "yes_no")}
    values = {"em": em, "f1": em, "cover_em": em, "searches": 1.0, "tokens": 9.0, **rest}
    known = {name: value for name, value in values.items() if value is not None}
    return ExampleScore(question_id=question, dataset=dataset, values=known, **flags)


def test_micro_and_macro_averages_differ_where_data_sets_differ_in_size() -> None:
    scores = [score(f"a{i}", 1.0, "big") for i in range(6)]
    scores += [score("b0", 0.0, "small"), score("b1", 1.0, "small", gold_documents=0.5)]
    found = all_averages(scores)
    assert found["micro"]["em"] == pytest.approx(7 / 8)
    assert found["macro"]["em"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["macro"]["datasets"] == 2
    assert (found["macro"]["gold_documents"], found["macro"]["gold_documents_datasets"]) == (0.5, 1)
    assert "em_datasets" not in found["macro"]
    assert list(found["datasets"]) == ["big", "small"]
    assert found["datasets"]["small"]["n"] == 2
    low, high = found["macro"]["em_interval"]
    assert (low, high) == (0.5, 1.0)  # the small set's resamples: 0, 1/2 or 1; the big one's: 1


def test_a_question_counts_once_whatever_the_number_of_its_samples() -> None:
    scores = [score("a", em) for em in (1.0, 0.0, 0.0, 1.0)] + [score("b", 0.0) for _ in range(4)]
    found = summary(scores)
    assert (found["n"], found["em"]) == (2, 0.25)
    assert found["pass_at_1"] == pytest.approx(0.25)
    assert found["pass_at_2"] == pytest.approx((1 - 1 / 6) / 2)
    assert found["pass_at_4"] == 0.5
    assert "pass_at_3" not in found
    assert found["em_interval"] == [0.0, 0.5]  # over questions, not over samples
    assert "pass_at_1" not in summary([score("a", 1.0)])
    three = summary([score("a", em) for em in (1.0, 0.0, 0.0)])
    assert [name for name in three if name.startswith("pass") and "interval" not in name] == [
        "pass_at_1",
        "pass_at_2",
        "pass_at_3",
    ]


def test_failed_searches_leave_their_sample_out() -> None:
    scores = [score("a", 1.0), score("a", 0.0, failed=True), score("b", 1.0, failed=True)]
    found = all_averages(scores)
    assert (found["micro"]["n"], found["micro"]["failed"], found["micro"]["em"]) == (1, 2, 1.0)
    assert question_scores(scores).keys() == {"a"}
    nothing = all_averages([score("b", 1.0, failed=True)])
    assert nothing["micro"] == {"n": 0, "failed": 1}
    assert nothing["macro"] == {"datasets": 0}


def test_tokens_are_left_out_where_only_the_text_is_known() -> None:
    assert summary([score("a", 1.0, tokens=None)]).keys().isdisjoint({"tokens"})
    assert summary([score("a", 1.0, tokens=None), score("b", 1.0)])["tokens"] == 9.0


def test_yes_and_no_are_reported_apart() -> None:
    found = summary([score("a", 1.0, yes_no=True), score("b", 0.0)])
    assert found["yes_no"] == {"n": 1, "em": 1.0}
    assert "yes_no" not in summary([score("b", 0.0)])


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), min_size=1, max_size=30))
def test_averages_agree_with_plain_loops(drawn: list[tuple[int, float]]) -> None:
    scores = [score(f"q{i}", em, f"set{place}") for i, (place, em) in enumerate(drawn)]
    assert summary(scores)["em"] == pytest.approx(np.mean([em for _, em in drawn]))
    sets = {place for place, _ in drawn}
    means = [np.mean([em for other, em in drawn if other == place]) for place in sets]
    found = macro_average(scores)
    assert found["em"] == pytest.approx(np.mean(means))
    low, high = found["em_interval"]
    assert 0 <= low <= high <= 1


def test_macro_intervals_resample_the_data_sets_apart() -> None:
    """With the same draws in both sets the spread would be that of a single one."""
    rng = np.random.default_rng(0)
    values = rng.integers(2, size=200).astype(float)
    one = [score(f"a{i}", em, "one") for i, em in enumerate(values)]
    two = [score(f"b{i}", em, "two") for i, em in enumerate(values)]

    def width(scores: list[ExampleScore]) -> float:
        low, high = macro_average(scores)["em_interval"]
        return float(high - low)

    assert width(one + two) == pytest.approx(width(one) / np.sqrt(2), rel=0.15)


def test_calibration_by_hand() -> None:
    scores = [
        score("a", 1.0, confidence=0.95),
        score("b", 0.0, confidence=0.95),
        score("c", 1.0, confidence=0.3),
        score("d", 0.0),  # states none
    ]
    error = (2 * abs(0.95 - 0.5) + abs(0.3 - 1.0)) / 3
    assert summary(scores)["calibration_error"] == pytest.approx(error)
    assert "calibration_error" not in summary([score("d", 0.0)])


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=30),
    st.integers(1, 12),
)
def test_calibration_error_against_a_slow_form(pairs: list[tuple[float, int]], bins: int) -> None:
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = [(c, r) for c, r in pairs if low < c <= high or (number == 0 and c == 0)]
        if inside:
            gap = sum(c for c, _ in inside) / len(inside) - sum(r for _, r in inside) / len(inside)
            total += abs(gap) * len(inside) / len(pairs)
    confidences, right = zip(*pairs, strict=True)
    near_an_edge = any(abs(c * bins - round(c * bins)) < 1e-9 for c in confidences)
    if not near_an_edge:  # there rounding decides the bin
        assert calibration_error(confidences, right, bins) == pytest.approx(total)
