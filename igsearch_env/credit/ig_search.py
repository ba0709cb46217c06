"""IG-Search: GRPO, plus each search's information gain on the tokens of its query."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from igsearch_env.credit.base import register_credit
from igsearch_env.credit.groups import check_choice
from igsearch_env.credit.query_bonus import QueryBonus, Signals
from igsearch_env.episode import Episode, Step
from igsearch_env.gain.information_gain import limited
from igsearch_env.gain.shaping import Shaping

Gains = list[list[float | None]]
"""The gain of each search of each episode, None where it is not settled."""


@register_credit("ig_search")
@dataclass(frozen=True)
class IGSearch(QueryBonus):
    """Advantage ``A_i + alpha * IG_t / |Q_t|`` on the tokens of query t, and A_i on all others.

    A_i is GRPO's advantage, IG_t the shaped information gain of search t (IG-Search, arXiv
    2604.15148). If every rollout of a group fails, or every one succeeds, A_i is 0 and the gains
    alone teach. ``ig_search_paper`` is the published form. The options of :class:`QueryBonus` can
    be set too.

    Args:
        shaping: How a gain is shaped, after ``measure``, ``scale`` and ``center``.
        measure: ``"log_prob"`` is the paper's: nats per answer token. ``"probability"`` is the gold
            answer's p given the real documents less its mean p given the counterfactual ones, where
            p is the exponential of the mean log-prob. It ignores changes among improbable answers,
            which are mostly noise; it also ignores a bridge document that lifts p from .01 to .05.
        scale: The gain is multiplied by this before it is shaped. Dead zone and clip are in units
            of the scaled gain, and differences of probabilities are small beside nats.
        center: What is subtracted from a gain: nothing (``"none"``, the paper), the mean gain of
            the group's searches of the same number (``"search"``), or of all searches of the group
            (``"group"``). Gains then compete within their group as outcomes do, and a search that
            found nothing beside a good one of another rollout turns negative. With ``"search"`` the
            only search of its number gets 0.
        new_only: If True, a search has a gain only if it found a document that no earlier search of
            its rollout found. Without it a policy can live on finding the same gold document again
            and again, since that has a gain each time. It does not help where the same gold
            document comes back beside a new one. With ``gamma`` a search without a gain of its own
            still shares in those of later searches.
        skip_last: If True, the last search of a rollout (not of each attempt) has no gain. Only the
            answer follows it, so the outcome shows what it was worth; much scoring is saved where
            there are few searches.
    """

    shaping: Shaping = field(default_factory=Shaping)
    measure: Literal["log_prob", "probability"] = "log_prob"
    scale: float = 1.0
    center: Literal["none", "search", "group"] = "none"
    new_only: bool = False
    skip_last: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise ValueError(f"scale must be above 0, got {self.scale!r}")
        check_choice("measure", self.measure, ("log_prob", "probability"))
        check_choice("center", self.center, ("none", "search", "group"))

    def signals(self, episodes: Sequence[Episode]) -> Signals:
        """The shaped gain of each search, 0 where there is none.

        Raises:
            ValueError: If the environment has already paid the gain in its reward.
        """
        for episode in episodes:
            _check_paid_once(episode)
        return [
            [0.0 if gain is None else self.shaping(gain) for gain in gains]
            for gains in self._centered(episodes, self.gains(episodes))
        ]

    def gains(self, episodes: Sequence[Episode]) -> Gains:
        """The scaled gain of each search by the chosen measure; None where it has none."""
        return [
            [
                self._gain(step) if counts else None
                for step, counts in zip(episode.searches, self._counts(episode), strict=True)
            ]
            for episode in episodes
        ]

    def needs_gain(self, episodes: Sequence[Episode]) -> list[list[bool]]:
        """True for the searches whose gain has an effect on the advantages."""
        return [
            [in_group and counts for in_group, counts in zip(row, self._counts(one), strict=True)]
            for row, one in zip(super().needs_gain(episodes), episodes, strict=True)
        ]

    def _counts(self, episode: Episode) -> list[bool]:
        """For each search, whether it may have a gain of its own."""
        last = len(episode.searches) - 1
        return [
            (new or not self.new_only) and not (self.skip_last and number == last)
            for number, new in enumerate(found_anew(episode))
        ]

    def _gain(self, step: Step) -> float | None:
        if step.information_gain is None:
            return None
        if self.measure == "log_prob":
            return self.scale * step.information_gain
        if step.log_prob is None or step.baseline_log_probs is None:
            raise ValueError(
                "measure='probability' needs the log_prob and baseline_log_probs of every settled "
                "step, as InformationGain.settle leaves them"
            )
        after = math.exp(step.log_prob)
        gain = after - float(np.mean(np.exp(step.baseline_log_probs)))
        best = None if step.best_log_prob is None else math.exp(step.best_log_prob)
        return self.scale * limited(gain, after, best)

    def _centered(self, episodes: Sequence[Episode], gains: Gains) -> Gains:
        """The gains less the mean gain of the searches that they are compared with."""
        if self.center == "none":
            return gains
        peers: dict[tuple[str, int], list[float]] = {}

        def place(episode: Episode, number: int) -> tuple[str, int]:
            return episode.group_id, number if self.center == "search" else 0

        for episode, row in zip(episodes, gains, strict=True):
            for number, gain in enumerate(row):
                if gain is not None and not episode.left_out:
                    peers.setdefault(place(episode, number), []).append(gain)
        return [
            [
                gain
                if gain is None or episode.left_out
                else gain - float(np.mean(peers[place(episode, number)]))
                for number, gain in enumerate(row)
            ]
            for episode, row in zip(episodes, gains, strict=True)
        ]


@register_credit("ig_search_paper")
@dataclass(frozen=True)
class IGSearchPaper(IGSearch):
    """IG-Search as published. Every option is set here, so that no changed default alters it.

    The paper damps negative gains (a factor below 1) but does not say how far; the values of
    shaping are our own. Two of its settings belong to the environment, not to credit: no floor of
    log-probs, and the alias with the highest real score
    (:meth:`igsearch_env.InformationGain.paper`).
    """

    alpha: float = 0.3
    normalizer: Literal["query", "batch_mean_query", "none"] = "query"
    gamma: float = 0.0
    baseline: Literal["none", "siblings"] = "none"
    groups: Literal["all", "all_fail", "not_all_success"] = "all"
    alpha_final: float | None = None
    alpha_from: float = 0.0
    alpha_until: float = 1.0
    shaping: Shaping = field(default_factory=lambda: Shaping(0.1, negative_scale=0.5, clip=1.0))
    measure: Literal["log_prob", "probability"] = "log_prob"
    scale: float = 1.0
    center: Literal["none", "search", "group"] = "none"
    new_only: bool = False
    skip_last: bool = False


def found_anew(episode: Episode) -> list[bool]:
    """For each search, whether it found a document that no earlier step of the episode found.

    What is known is known as :meth:`igsearch_env.Episode.new_documents` says.
    """
    return [
        bool(episode.new_documents(index))
        for index, step in enumerate(episode.steps)
        if step.action == "search"
    ]


def _check_paid_once(episode: Episode) -> None:
    # An environment with information_gain_weight above 0 adds gains to its rewards, which then no
    # longer sum to the outcome. With credit on top, each gain would count twice.
    paid = sum(step.reward for step in episode.steps)
    if episode.outcome is not None and abs(paid - episode.outcome) > 1e-9:
        raise ValueError(
            f"the rewards of question {episode.question.id!r} sum to {paid}, its outcome is "
            f"{episode.outcome}: the environment paid the information gain in its reward, and "
            "ig_search would pay it again; set information_gain_weight=0"
        )
