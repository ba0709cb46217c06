"""Belief shift: a bonus for each search by which the policy's belief in the gold answer grew.

It needs no counterfactual evidence, so only answer tokens are scored. What it lacks is information
gain's zero: the belief also drifts as a context grows, whatever was found, and a policy that is
paid the drift may learn to stop searching. The three methods differ in what they do about that.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from igsearch_env.credit.base import register_credit
from igsearch_env.credit.groups import check_choice, leave_one_out
from igsearch_env.credit.ig_search import found_anew
from igsearch_env.credit.query_bonus import QueryBonus, Signals
from igsearch_env.episode import Episode
from igsearch_env.gain.belief import belief_shifts
from igsearch_env.gain.shaping import Shaping

Shifts = list[list[float | None]]
"""The belief shift of each search of each episode, None where there is none."""


@dataclass(frozen=True)
class BeliefShift(QueryBonus):
    """Base of the methods that pay belief shifts: b_t - b_{t-1} of search t.

    b_t is the mean log-prob per token of the gold answer after search t, in nats, b_0 that after
    the prompt. A search without a belief (it found nothing, or its context is too long) has no
    shift; the next one is compared with the belief before it, so that the shifts of a rollout add
    up to the whole change.

    Args:
        measure: ``"log_prob"``, or ``"probability"`` for differences of exp(b).
        new_only: If True, a search has a shift only if it found a document that no earlier search
            of its rollout found.
        shaping: How a signal is shaped.
    """

    uses_information_gain = False
    uses_belief = True

    measure: Literal["log_prob", "probability"] = "log_prob"
    new_only: bool = False
    shaping: Shaping = field(default_factory=lambda: Shaping(0.0, clip=None))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("measure", self.measure, ("log_prob", "probability"))

    def signals(self, episodes: Sequence[Episode]) -> Signals:
        """The shaped signal of each search, 0 where there is none.

        Raises:
            ValueError: If beliefs were not computed.
        """
        if episodes and all(episode.prior_log_prob is None for episode in episodes):
            raise ValueError(
                f"{type(self).__name__} needs the policy's belief in the gold answer before the "
                "first search and after each one; call settle_belief(episodes, scorer, "
                "information_gain) first"
            )
        values = self.compared(episodes, [self.shifts(episode) for episode in episodes])
        return [[0.0 if v is None else self.shaping(v) for v in row] for row in values]

    def shifts(self, episode: Episode) -> list[float | None]:
        """The belief shift of each search of an episode."""
        shifts = belief_shifts(episode, math.exp if self.measure == "probability" else float)
        of_searches = [
            shift
            for step, shift in zip(episode.steps, shifts, strict=True)
            if step.action == "search"
        ]
        return [
            shift if new or not self.new_only else None
            for shift, new in zip(of_searches, found_anew(episode), strict=True)
        ]

    @abstractmethod
    def compared(self, episodes: Sequence[Episode], shifts: Shifts) -> Shifts:
        """What is paid for the shifts, before shaping."""


@register_credit("tips")
@dataclass(frozen=True)
class TIPS(BeliefShift):
    """The belief shifts from search t on, which sum to b_T - b_{t-1}: potential-based shaping.

    After TIPS (arXiv 2603.22293): reward .02 (b_t - b_{t-1}) per search, which leaves the best
    policy the best one. TIPS trains with PPO, by a frozen or refreshed copy of the policy; here the
    shaped return stands beside GRPO's advantage, and the policy itself is asked. The paper joins
    aliases by log-sum-exp (``environment.aliases = "logmeanexp"``: the constant cancels), its code
    takes the best one (``"max"``).
    """

    alpha: float = 0.02
    normalizer: Literal["query", "batch_mean_query", "none"] = "none"
    gamma: float = 1.0

    def compared(self, episodes: Sequence[Episode], shifts: Shifts) -> Shifts:
        """The shifts as they are."""
        return shifts


@register_credit("delta_belief")
@dataclass(frozen=True)
class DeltaBelief(BeliefShift):
    """max(b_t - b_{t-1}, 0) - penalty: a search is never punished for a drift downwards.

    After the reward of Delta-Belief-RL (arXiv 2602.12342), which normalises turn by turn; here the
    reward is a bonus beside GRPO's advantage. The values of the paper's penalties are not known to
    us, this one is our own.

    Args:
        penalty: What each search costs, in units of the shift. At 0, searching on pays: some
            document will raise the belief a little more.
    """

    penalty: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.penalty >= 0:
            raise ValueError(f"penalty must be at least 0, got {self.penalty!r}")

    def compared(self, episodes: Sequence[Episode], shifts: Shifts) -> Shifts:
        """The shifts that are positive, 0 for the others, less the penalty."""
        return [[None if v is None else max(v, 0.0) - self.penalty for v in row] for row in shifts]


@register_credit("belief_group")
@dataclass(frozen=True)
class BeliefGroup(BeliefShift):
    """The belief shift less the mean shift of sibling searches, those of the same number.

    Siblings are the other rollouts of the group. They read contexts of about the same length about
    the same question, so the drift of the belief cancels. A search without a sibling gets 0.
    """

    new_only: bool = True
    shaping: Shaping = field(default_factory=Shaping)

    def compared(self, episodes: Sequence[Episode], shifts: Shifts) -> Shifts:
        """Each shift less the mean of its siblings'."""
        places: dict[tuple[str, int], list[int]] = {}
        for index, (episode, row) in enumerate(zip(episodes, shifts, strict=True)):
            for number, value in enumerate(row):
                if value is not None and not episode.left_out:
                    places.setdefault((episode.group_id, number), []).append(index)
        result: Shifts = [[None] * len(row) for row in shifts]
        for (_, number), members in places.items():
            values = [shifts[i][number] or 0.0 for i in members]
            for i, value in zip(members, leave_one_out(values), strict=True):
                result[i][number] = value
        return result
