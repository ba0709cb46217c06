"""Information gain against hand-computed numbers and a slow implementation of the formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from igsearch_env.gain.information_gain import (
    AliasOperator,
    InformationGain,
    answer_scores,
    information_gain,
    reduce_aliases,
)

LN2 = math.log(2.0)
ALIAS_OPERATORS: tuple[AliasOperator, ...] = ("best_real", "max", "logmeanexp")


def logs(*probabilities: float) -> NDArray[np.float64]:
    return np.array([math.log(p) for p in probabilities])


def score_of(values: Any, *options: Any, **more: Any) -> float:
    """The score of a single answer."""
    return float(answer_scores([np.array(values)], *options, **more)[0])


class TestAnswerScore:
    @pytest.mark.parametrize(
        ("head_tokens", "head_weight", "floor", "expected"),
        [
            (0, 1.0, None, -2.0),  # (1 + 2 + 3) / 3
            (1, 3.0, None, -1.6),  # (3 * 1 + 2 + 3) / 5
            (2, 3.0, None, -12 / 7),  # (3 * 1 + 3 * 2 + 3) / 7
            (3, 3.0, None, -2.0),  # all tokens are head tokens: the weights cancel
            (9, 3.0, None, -2.0),
            (0, 3.0, None, -2.0),
            (0, 1.0, -1.5, -4 / 3),  # (1 + 1.5 + 1.5) / 3
            (1, 3.0, -2.5, -1.5),  # (3 * 1 + 2 + 2.5) / 5
            (0, 1.0, -9.0, -2.0),
        ],
    )
    def test_by_hand(
        self, head_tokens: int, head_weight: float, floor: float | None, expected: float
    ) -> None:
        score = score_of([-1.0, -2.0, -3.0], head_tokens, head_weight, floor)
        assert score == pytest.approx(expected, abs=1e-12)

    def test_the_floor_applies_before_averaging(self) -> None:
        # Floored after averaging this would be -5.0, untouched.
        assert score_of([0.0, -10.0], floor=-6.0) == pytest.approx(-3.0)

    def test_the_floor_catches_an_impossible_token(self) -> None:
        assert score_of([-1.0, -np.inf], floor=-5.0) == pytest.approx(-3.0)

    @given(
        st.lists(st.lists(st.floats(-20, 0), min_size=1, max_size=5), max_size=4),
        st.integers(0, 3),
        st.floats(0.1, 4),
        st.none() | st.floats(-10, -1),
    )
    def test_many_answers_are_scored_as_each_alone(
        self, rows: list[list[float]], head: int, weight: float, floor: float | None
    ) -> None:
        expected = []
        for row in rows:
            total = norm = 0.0
            for place, value in enumerate(row):
                w = weight if place < head else 1.0
                total += w * (value if floor is None else max(value, floor))
                norm += w
            expected.append(total / norm)
        found = answer_scores([np.array(row) for row in rows], head, weight, floor)
        assert found.shape == (len(rows),)
        assert found.tolist() == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ([], r"at least one token: .* got shape \(0,\)"),
            ([[-1.0]], r"got shape \(1, 1\)"),
            (-1.0, r"got shape \(\)"),
            ([-1.0, math.nan], "must be numbers of at most 0"),
            ([-1.0, 0.5], "must be numbers of at most 0"),
            ([-1.0, -math.inf], "-inf needs a floor"),
        ],
    )
    def test_refuses_what_is_no_log_probability(self, values: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            score_of(values)

    @pytest.mark.parametrize(("tokens", "weight"), [(-1, 2.0), (2, 0.0), (2, -1.0), (2, math.nan)])
    def test_refuses_impossible_weights(self, tokens: int, weight: float) -> None:
        with pytest.raises(ValueError, match="head_tokens must be at least 0 and head_weight abo"):
            score_of([-1.0], tokens, weight)


class TestInformationGainByHand:
    def test_one_alias(self) -> None:
        # l(real) = ln 1/2; baselines ln 1/4 and ln 1/16: mean -3 ln 2. The gain is 2 ln 2.
        gain = information_gain([logs(0.5)], [[logs(0.25), logs(1 / 16)]])
        assert gain == pytest.approx(2 * LN2)

    def test_it_is_a_mean_per_token(self) -> None:
        # l(real) = (ln 1/2 + ln 1/8) / 2 = -2 ln 2; the baseline is -3 ln 2.
        gain = information_gain([logs(0.5, 0.125)], [[logs(0.125, 0.125)]])
        assert gain == pytest.approx(LN2)

    def test_a_harmful_search_has_a_negative_gain(self) -> None:
        assert information_gain([logs(0.25)], [[logs(0.5)]]) == pytest.approx(-LN2)

    @pytest.mark.parametrize(
        ("operator", "expected"),
        [
            # Real: -2 and -1 (second alias best). Baselines of the second: -3, -4.
            ("best_real", 2.5),
            # Max per context: real -1; baselines -1.5 and -4.
            ("max", 1.75),
            (
                "logmeanexp",
                math.log((math.exp(-2) + math.exp(-1)) / 2)
                - (
                    math.log((math.exp(-1.5) + math.exp(-3)) / 2)
                    + math.log((math.exp(-5) + math.exp(-4)) / 2)
                )
                / 2,
            ),
        ],
    )
    def test_several_aliases(self, operator: AliasOperator, expected: float) -> None:
        real = [np.array([-2.0]), np.array([-1.0])]
        baselines = [[np.array([-1.5]), np.array([-5.0])], [np.array([-3.0]), np.array([-4.0])]]
        gain = information_gain(real, baselines, aliases=operator)
        assert gain == pytest.approx(expected)

    def test_aliases_of_a_context_alone(self) -> None:
        scores = np.log([[0.5, 0.25], [0.25, 0.125], [0.375, 0.0625]])  # (aliases, contexts)
        assert reduce_aliases(scores, "max") == pytest.approx(np.log([0.5, 0.25]))
        assert reduce_aliases(scores, "best_real") == pytest.approx(np.log([0.5, 0.25]))
        mean = [(0.5 + 0.25 + 0.375) / 3, (0.25 + 0.125 + 0.0625) / 3]
        assert reduce_aliases(scores, "logmeanexp") == pytest.approx(np.log(mean))

    def test_the_published_operator_is_the_default(self) -> None:
        real = [np.array([-2.0]), np.array([-1.0])]
        baselines = [[np.array([-1.5])], [np.array([-3.0])]]
        assert information_gain(real, baselines) == pytest.approx(2.0)

    def test_the_floor_bounds_both_sides(self) -> None:
        gain = information_gain([logs(0.5)], [[np.array([-50.0])]], floor=-math.log(100))
        assert gain == pytest.approx(math.log(50))

    @pytest.mark.parametrize("operator", ALIAS_OPERATORS)
    def test_equal_contexts_gain_nothing(self, operator: AliasOperator) -> None:
        real = [np.array([-2.0, -1.0]), np.array([-0.5])]
        baselines = [[values] * 3 for values in real]
        assert information_gain(real, baselines, aliases=operator) == pytest.approx(0.0)

    def test_noise_alone_favours_the_published_operator(self) -> None:
        # E[IG] > 0 under pure noise for "best_real", 0 for the others (see methods.md).
        rng = np.random.default_rng(0)
        means = {}
        for operator in ALIAS_OPERATORS:
            gains = []
            for _ in range(2000):
                real = [rng.uniform(-4, 0, 1) for _ in range(4)]
                rows = [[rng.uniform(-4, 0, 1) for _ in range(3)] for _ in range(4)]
                gains.append(information_gain(real, rows, aliases=operator))
            means[operator] = float(np.mean(gains))
        assert means["best_real"] > 1.0
        assert abs(means["max"]) < 0.1
        assert abs(means["logmeanexp"]) < 0.1


@pytest.mark.parametrize(
    ("real", "counterfactual", "message"),
    [
        ([], [], "got 0 real and 0 counterfactual"),
        ([[-1.0]], [], "got 1 real and 0 counterfactual"),
        ([[-1.0]], [[[-1.0]], [[-1.0]]], "got 1 real and 2 counterfactual"),
        ([[-1.0]], [[]], r"same number N >= 1 .* got \[0\]"),
        ([[-1.0], [-1.0]], [[[-1.0]], [[-1.0], [-2.0]]], r"same number N >= 1 .* got \[1, 2\]"),
        ([[]], [[[-1.0]]], "at least one token"),
        ([[-1.0]], [[[]]], "at least one token"),
    ],
)
def test_refuses_shapes_that_do_not_fit(real: Any, counterfactual: Any, message: str) -> None:
    rows = [[np.array(values) for values in alias] for alias in counterfactual]
    with pytest.raises(ValueError, match=message):
        information_gain([np.array(values) for values in real], rows)


def test_refuses_an_unknown_alias_operator() -> None:
    operator: Any = "mean"
    with pytest.raises(ValueError, match="'best_real', 'max' or 'logmeanexp', got 'mean'"):
        information_gain([logs(0.5)], [[logs(0.5)]], aliases=operator)


# The formulas once more, in plain Python: no numpy, one number at a time.


def slow_score(
    values: Sequence[float], head_tokens: int, head_weight: float, floor: float | None
) -> float:
    """(1/|a|) sum_k w_k max(log p_k, floor), the weights w renormalised to mean 1."""
    weights = [head_weight if k < head_tokens else 1.0 for k in range(len(values))]
    mean_weight = math.fsum(weights) / len(weights)
    total = 0.0
    for value, weight in zip(values, weights, strict=True):
        kept = value if floor is None or value > floor else floor
        total += weight / mean_weight * kept
    return total / len(values)


def slow_reduce(
    real: Sequence[float], baselines: Sequence[Sequence[float]], operator: AliasOperator
) -> tuple[float, float, list[float]]:
    """Gain, real score and baselines from the scores of each alias."""

    def reduce(scores: Sequence[float]) -> float:
        if operator == "max":
            return max(scores)
        return math.log(math.fsum(math.exp(score) for score in scores) / len(scores))

    count = len(baselines[0])
    if operator == "best_real":
        best = max(range(len(real)), key=lambda alias: real[alias])
        chosen, rows = real[best], list(baselines[best])
    else:
        chosen = reduce(real)
        rows = [reduce([alias[j] for alias in baselines]) for j in range(count)]
    return chosen - math.fsum(rows) / count, chosen, rows


VALUES = st.lists(st.floats(-12.0, 0.0), min_size=1, max_size=6)


@st.composite
def ragged(draw: st.DrawFn) -> tuple[list[list[float]], list[list[list[float]]]]:
    """Log-probs of 1 to 4 aliases of different lengths in one real and N other contexts."""
    count = draw(st.integers(1, 4))
    real, rows = [], []
    for _ in range(draw(st.integers(1, 4))):
        values = draw(VALUES)
        same = st.lists(st.floats(-12.0, 0.0), min_size=len(values), max_size=len(values))
        real.append(values)
        rows.append([draw(same) for _ in range(count)])
    return real, rows


@settings(deadline=None, max_examples=200)
@given(
    ragged(),
    st.integers(0, 7),
    st.floats(0.1, 5.0),
    st.one_of(st.none(), st.floats(-10.0, -0.1)),
    st.sampled_from(ALIAS_OPERATORS),
)
@example(([[-1.0], [-1.0, -3.0]], [[[-2.0]], [[-0.5, -0.5]]]), 1, 3.0, -2.5, "best_real")
def test_agrees_with_plain_loops(
    scores: tuple[list[list[float]], list[list[list[float]]]],
    head_tokens: int,
    head_weight: float,
    floor: float | None,
    operator: AliasOperator,
) -> None:
    real, rows = scores
    means = [slow_score(values, head_tokens, head_weight, floor) for values in real]
    if operator == "best_real":  # a tie could go either way in floating point
        first, *others = sorted(means, reverse=True)
        assume(not others or first - others[0] > 1e-9)
    table = [[slow_score(v, head_tokens, head_weight, floor) for v in alias] for alias in rows]
    expected, _, _ = slow_reduce(means, table, operator)
    gain = information_gain(
        [np.array(values) for values in real],
        [[np.array(values) for values in alias] for alias in rows],
        head_tokens,
        head_weight,
        floor,
        operator,
    )
    assert isinstance(gain, float)
    assert gain == pytest.approx(expected, abs=1e-6)


class TestSettings:
    def test_defaults(self) -> None:
        gain = InformationGain()
        assert (gain.counterfactual, gain.added_only) == ("documents", True)
        assert (gain.floor, gain.aliases) == ("uniform", "max")
        assert (gain.head_tokens, gain.head_weight) == (0, 1.0)

    def test_the_paper_has_no_floor_and_takes_the_best_real_alias(self) -> None:
        paper = InformationGain.paper()
        assert (paper.counterfactual, paper.added_only) == ("documents+refinement", False)
        assert (paper.floor, paper.aliases) == (None, "best_real")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"counterfactual": "refinement"}, "counterfactual must be .* got 'refinement'"),
            ({"floor": "none"}, "floor must be 'uniform', a number or None, got 'none'"),
            ({"floor": 0.0}, "a floor is a finite log-probability, below 0 nats, got 0.0"),
            ({"floor": 5}, "a floor is a finite log-probability, below 0 nats, got 5"),
            ({"aliases": "mean"}, "aliases must be .* got 'mean'"),
            ({"head_tokens": -1}, "head_tokens must be at least 0"),
            ({"head_weight": 0.0}, "head_weight above 0 and finite, got 0 and 0.0"),
        ],
        ids=str,
    )
    def test_refuses_impossible_settings(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            InformationGain(**options)
