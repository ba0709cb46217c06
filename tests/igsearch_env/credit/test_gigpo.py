"""GiGPO's two levels: by hand, in plain loops, and where a naive version goes wrong."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igsearch_env import Episode
from igsearch_env.credit import GRPO, GiGPO, GiGPOCode
from tests.igsearch_env.credit.rollouts import batches, on_tokens, per_turn, rollout

HALF = math.sqrt(0.5)  # a pair of different values, normalised with the unbiased deviation


def turns(credit: Any, batch: Sequence[Episode]) -> list[list[float]]:
    return [per_turn(e, array) for e, array in zip(batch, credit(batch), strict=True)]


class TestByHand:
    # Both start from the question; the first sees x, then y, the second x: the step after x is
    # common. Returns of the first .9025, .95, 1; of the second 0, 0.
    BATCH = (
        rollout("ssa", 1.0, observations=["x", "y", ""]),
        rollout("sa", 0.0, observations=["x", ""]),
    )

    def test_both_levels(self) -> None:
        first, second = turns(GiGPO(), self.BATCH)
        assert first == pytest.approx([HALF + HALF, HALF + HALF, HALF], abs=1e-5)
        assert second == pytest.approx([-HALF - HALF, -HALF - HALF], abs=1e-5)

    def test_omega(self) -> None:
        for mine, grpo in zip(GiGPO(omega=0.0)(self.BATCH), GRPO()(self.BATCH), strict=True):
            np.testing.assert_allclose(mine, grpo)
        first, _ = turns(GiGPO(omega=0.5), self.BATCH)
        assert first == pytest.approx([1.5 * HALF, 1.5 * HALF, HALF], abs=1e-5)

    def test_returns_are_discounted(self) -> None:
        # All succeed, one of them later: from the question on, sooner is better.
        batch = [rollout("a", 1.0), rollout("sa", 1.0)]
        first, second = turns(GiGPO(), batch)
        assert first == pytest.approx([HALF], abs=1e-4)
        assert second == pytest.approx([-HALF, 0.0], abs=1e-4)
        assert turns(GiGPO(gamma=1.0), batch) == [[0.0], [0.0, 0.0]]

    def test_an_invalid_step_pays_with_its_own_return_and_its_rollout(self) -> None:
        batch = [rollout("sia", 0.0, observations=["x", "c", ""]), rollout("sa", 0.0)]
        credit = GiGPO(omega=10.0, invalid_penalty=0.5, similarity=1.0)
        # Outcomes -.5 and 0. The first step of both has return 0: the penalty is not handed back.
        first, second = turns(credit, batch)
        assert first == pytest.approx([-HALF, -HALF, -HALF], abs=1e-5)
        assert second == pytest.approx([HALF, HALF], abs=1e-5)
        common = [batch[0], rollout("sa", 0.0, observations=["x", ""])]
        first, second = turns(credit, common)
        assert first == pytest.approx([-HALF, -11 * HALF, -HALF], abs=1e-4)
        assert second == pytest.approx([HALF, 11 * HALF], abs=1e-4)

    def test_states_are_alike_from_the_threshold_on(self) -> None:
        one, other = "abcdefghij", "abcdefghix"  # ratio .9
        batch = [
            rollout("sa", 1.0, observations=[one, ""]),
            rollout("sa", 0.0, observations=[other, ""]),
        ]
        assert turns(GiGPO(), batch)[0] == pytest.approx([2 * HALF, 2 * HALF], abs=1e-5)
        strict = turns(GiGPO(similarity=0.91), batch)
        assert strict[0] == pytest.approx([2 * HALF, HALF], abs=1e-5)

    def test_a_step_joins_the_first_state_that_fits(self) -> None:
        # b fits a, c fits b but not a: c opens a state of its own.
        a, b, c = "0123456789", "x123456789", "xy23456789"
        ratio = [difflib.SequenceMatcher(None, *pair).ratio() for pair in ((b, a), (c, b), (c, a))]
        assert ratio == pytest.approx([0.9, 0.9, 0.8])
        batch = [
            rollout("sa", float(n == 0), observations=[s, ""]) for n, s in enumerate((a, b, c))
        ]
        steps = turns(GiGPO(omega=1.0), batch)
        alone = turns(GiGPO(omega=0.0), batch)
        assert [x[1] - y[1] for x, y in zip(steps, alone, strict=True)] == pytest.approx(
            [HALF, -HALF, 0.0], abs=1e-5
        )

    def test_states_of_other_groups_are_other_states(self) -> None:
        batch = [rollout("sa", 1.0, "g"), rollout("sa", 0.0, "h")]
        assert turns(GiGPO(), batch) == [[0.0, 0.0], [0.0, 0.0]]

    def test_a_failed_rollout_counts_for_nobody(self) -> None:
        failed = rollout("sa", 1.0, observations=["x", ""], failed=True)
        with_it = turns(GiGPO(), [failed, *self.BATCH])
        assert with_it[0] == [0.0, 0.0]
        assert with_it[1:] == turns(GiGPO(), self.BATCH)

    def test_nothing_and_no_turns(self) -> None:
        assert GiGPO()([]) == []
        assert [a.shape for a in GiGPO()([rollout(""), rollout("")])] == [(0,), (0,)]

    def test_an_unfinished_episode_is_refused(self) -> None:
        with pytest.raises(ValueError, match="has no outcome yet"):
            GiGPO()([replace(rollout("sa"), outcome=None)])


class TestPitfalls:
    # One success of four turns, two failures of one.
    BATCH = (rollout("sssa", 1.0), rollout("a", 0.0), rollout("a", 0.0))

    def test_long_rollouts_weigh_no_more(self) -> None:
        # Over rollouts the mean is 1/3; over step rows 4/6, which would tell the success less.
        mine = turns(GiGPO(omega=0.0), self.BATCH)
        deviation = math.sqrt(1 / 3)
        assert mine[0] == pytest.approx([(2 / 3) / deviation] * 4, abs=1e-5)
        assert mine[1] == pytest.approx([(-1 / 3) / deviation], abs=1e-5)
        rows = [1.0] * 4 + [0.0] * 2
        naive = (1.0 - np.mean(rows)) / np.std(rows, ddof=1)
        assert abs(naive - mine[0][0]) > 0.4

    def test_the_released_code_counts_rows(self) -> None:
        rows = np.array([1.0] * 4 + [0.0] * 2)
        z = (rows - rows.mean()) / rows.std(ddof=1)
        code = turns(GiGPOCode(omega=0.0), self.BATCH)
        assert code[0] == pytest.approx([z[0]] * 4, abs=1e-5)
        assert code[1] == pytest.approx([z[-1]], abs=1e-5)

    def test_a_lone_row_keeps_its_score_in_the_code_alone(self) -> None:
        assert turns(GiGPOCode(), [rollout("a", 1.0)]) == [[1.0]]
        assert turns(GiGPO(), [rollout("a", 1.0)]) == [[0.0]]

    def test_an_invalid_row_pays_alone_in_the_code(self) -> None:
        batch = [rollout("ia", 0.0), rollout("a", 0.0)]
        rows = np.array([-0.5, 0.0, 0.0])
        z = (rows - rows.mean()) / rows.std(ddof=1)
        code = turns(GiGPOCode(omega=0.0, invalid_penalty=0.5), batch)
        assert [value for row in code for value in row] == pytest.approx(z.tolist(), abs=1e-5)

    def test_normalise_after_discounting(self) -> None:
        # Normalised first, equal outcomes would leave nothing to discount.
        first, second = turns(GiGPO(), [rollout("a", 1.0), rollout("sa", 1.0)])
        assert first[0] > 0 > second[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -0.1}, "gamma must lie between 0 and 1"),
        ({"rows": "tokens"}, "rows must be 'rollouts' or 'steps'"),
        ({"omega": -1.0}, "omega and invalid_penalty must be at least 0"),
        ({"similarity": 1.1}, "similarity between 0 and 1"),
        ({"invalid_penalty": float("nan")}, "omega and invalid_penalty must be at least 0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GiGPO(**options)


def slow_gigpo(batch: Sequence[Episode], credit: GiGPO) -> list[list[float]]:
    """Row by row, nothing shared with the library."""
    rows = []
    for number, episode in enumerate(batch):
        if any(step.retrieval_failed for step in episode.steps):
            continue
        last = len(episode.steps) - 1
        invalid = [step.action == "invalid" for step in episode.steps]
        for t in range(last + 1):
            state = episode.question.text
            if t:
                before = episode.steps[t - 1]
                state = before.observation.text if before.observation is not None else ""
                state += before.reflection.text if before.reflection is not None else ""
            assert episode.outcome is not None
            reward = credit.gamma ** (last - t) * episode.outcome
            counted = sum(invalid) if credit.rows == "rollouts" else invalid[t]
            rows.append(
                {
                    "episode": number,
                    "t": t,
                    "group": episode.group_id,
                    "state": state,
                    "return": reward - credit.invalid_penalty * invalid[t],
                    "score": episode.outcome - credit.invalid_penalty * counted,
                }
            )
    firsts: dict[Any, list[str]] = {}
    for row in rows:
        known = firsts.setdefault(row["group"], [])
        for place, first in enumerate(known):
            if difflib.SequenceMatcher(None, row["state"], first).ratio() >= credit.similarity:
                row["cluster"] = place
                break
        else:
            row["cluster"] = len(known)
            known.append(row["state"])

    def z(value: Any, values: list[Any], lone: float) -> float:
        if len(values) == 1:
            return lone
        mean = math.fsum(values) / len(values)
        variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
        return float((value - mean) / (math.sqrt(variance) + 1e-6))

    result = [[0.0] * len(episode.steps) for episode in batch]
    for row in rows:
        peers = [r for r in rows if r["group"] == row["group"]]
        if credit.rows == "rollouts":
            scores = [
                next(r["score"] for r in peers if r["episode"] == number)
                for number in sorted({r["episode"] for r in peers})
            ]
            whole = z(row["score"], scores, 0.0)
        else:
            whole = z(row["score"], [r["score"] for r in peers], row["score"])
        alike = [r["return"] for r in peers if r["cluster"] == row["cluster"]]
        result[row["episode"]][row["t"]] = whole + credit.omega * z(row["return"], alike, 0.0)
    return [on_tokens(episode, values) for episode, values in zip(batch, result, strict=True)]


OPTIONS = st.builds(
    GiGPO,
    omega=st.sampled_from([0.0, 1.0, 0.3]),
    gamma=st.sampled_from([0.5, 0.95, 1.0]),
    similarity=st.sampled_from([0.8, 0.9, 1.0]),
    invalid_penalty=st.sampled_from([0.0, 0.01, 0.5]),
    rows=st.sampled_from(["rollouts", "steps"]),
)
STATES = ("0123456789", "x123456789", "xy23456789", "else")


@settings(deadline=None, max_examples=60)
@given(batches(observations=STATES), OPTIONS)
def test_agrees_with_plain_loops(batch: list[Episode], credit: GiGPO) -> None:
    arrays = credit(batch)
    assert [array.shape for array in arrays] == [(e.policy_tokens,) for e in batch]
    for array, tokens in zip(arrays, slow_gigpo(batch, credit), strict=True):
        assert array.dtype == np.float64
        np.testing.assert_allclose(array, tokens, atol=1e-5)
