"""Baselines and the choice to stop: exact expected gradients of a policy with one decision.

A baseline whose number of terms depends on when a rollout stops shifts the gradient of that
decision (verl issue 7244). The policy here makes one choice, with probability P of the first arm,
and a group's expected gradient is computed by going through every combination of choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import pytest

from igsearch_env import Episode
from igsearch_env.credit import IGPO, CreditAssignment, IGPOPaper, MRSearch
from igsearch_env.credit.groups import less_siblings
from tests.igsearch_env.credit.rollouts import per_turn, rollout
from tests.igsearch_env.credit.test_ig_options import plain
from tests.igsearch_env.credit.test_ig_search import episode_of

P = 0.3
GROUP = 3
Arms = tuple[Callable[[], Episode], Callable[[], Episode]]


def expected_gradient(
    credit: CreditAssignment,
    arms: Arms,
    advantage: Callable[[CreditAssignment, list[Episode]], Sequence[float]],
) -> float:
    """E of the mean over the group of d log pi(choice) / dP times the choice's advantage."""
    total = 0.0
    for choices in product((0, 1), repeat=GROUP):
        chance = math.prod(P if choice == 0 else 1 - P for choice in choices)
        values = advantage(credit, [arms[choice]() for choice in choices])
        scores = [1 / P if choice == 0 else -1 / (1 - P) for choice in choices]
        total += chance * sum(s * v for s, v in zip(scores, values, strict=True)) / GROUP
    return total


def of_first_turn(credit: CreditAssignment, batch: list[Episode]) -> list[float]:
    return [per_turn(e, array)[0] for e, array in zip(batch, credit(batch), strict=True)]


def of_first_query(credit: CreditAssignment, batch: list[Episode]) -> list[float]:
    return [
        float(array[episode.searches[0].query_tokens.start])
        for episode, array in zip(batch, credit(batch), strict=True)
    ]


class TestIGPO:
    """Search once more, which raises the belief by .2, or answer at once: F1 is 0 either way."""

    ARMS: Arms = (
        lambda: rollout("ssa", 0.0, prior=math.log(0.1), log_probs=[math.log(0.5), math.log(0.7)]),
        lambda: rollout("sa", 0.0, prior=math.log(0.1), log_probs=[math.log(0.5)]),
    )
    TRUE = 0.2  # d/dP of E[.4 + .2 * (searched again)]

    def test_the_joint_mean_punishes_a_search_that_helped(self) -> None:
        """Each turn is charged the group's mean reward, which the first search has raised."""
        assert expected_gradient(IGPOPaper(), self.ARMS, of_first_turn) < 0

    def test_leave_one_out_is_exact(self) -> None:
        credit = IGPO()
        assert expected_gradient(credit, self.ARMS, of_first_turn) == pytest.approx(self.TRUE)


class TestQueryBonus:
    """A first query after which the policy searches again, gain 1, or one after which it stops."""

    ARMS: Arms = (
        lambda: episode_of(0.0, (1, 2.0), (1, 1.0)),
        lambda: episode_of(0.0, (1, 2.0)),
    )

    def test_centring_by_search_hides_the_second_search(self) -> None:
        credit = plain(gamma=1.0, center="search")
        assert expected_gradient(credit, self.ARMS, of_first_query) == pytest.approx(0.0)

    def test_siblings_are_exact(self) -> None:
        credit = plain(gamma=1.0, baseline="siblings")
        assert expected_gradient(credit, self.ARMS, of_first_query) == pytest.approx(1.0)

    def test_no_baseline_is_exact_too(self) -> None:
        assert expected_gradient(plain(gamma=1.0), self.ARMS, of_first_query) == pytest.approx(1.0)

    def test_by_hand(self) -> None:
        batch = [
            episode_of(0.0, (1, 4.0), (1, 2.0)),  # returns 6, 2
            episode_of(0.0, (1, 3.0)),  # 3, and 0 for the search that it did not make
            episode_of(0.0),  # 0
            episode_of(0.0, (1, 9.0), group="alone"),
            episode_of(0.0, (1, 9.0), failed=0),  # counts for nobody
        ]
        credit = plain(gamma=1.0, baseline="siblings")
        found = [
            [float(a[s.query_tokens.start]) for s in e.searches]
            for e, a in zip(batch, credit(batch), strict=True)
        ]
        assert found == [[4.5, 2.0], [0.0], [], [0.0], [0.0]]


def test_attempts_that_a_rollout_ends_by_itself_are_charged_by_mr_search() -> None:
    """With a fixed number of attempts, as the environment plays them, it is exact."""
    arms: Arms = (
        lambda: rollout("a|a", 1.0, attempts=(0.0, 1.0)),
        lambda: rollout("a|a", 0.5, attempts=(0.0, 0.5)),
    )
    assert expected_gradient(MRSearch(), arms, of_first_turn) == pytest.approx(0.5)


def test_less_siblings_against_plain_loops() -> None:
    rows = [[3.0, 1.0, 0.5], [2.0], [], [1.0, -1.0]]
    slow = [
        [
            value
            - sum(other[t] if t < len(other) else 0.0 for j, other in enumerate(rows) if j != i) / 3
            for t, value in enumerate(row)
        ]
        for i, row in enumerate(rows)
    ]
    assert [pytest.approx(row) for row in slow] == less_siblings(rows)
    assert less_siblings([[1.0, 2.0]]) == [[0.0, 0.0]]
