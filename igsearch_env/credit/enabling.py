"""Enabling: IG-Search in which a search shares in the worth of the one that it made possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from igsearch_env.credit.base import register_credit
from igsearch_env.credit.ig_search import IGSearch
from igsearch_env.credit.query_bonus import Signals
from igsearch_env.episode import Episode


@register_credit("enabling")
@dataclass(frozen=True)
class Enabling(IGSearch):
    """A search hands a share of its worth to the search that made it possible.

    The worth of search t is w_t = IG_t + share * clip(E_t, 0, 1) * max(w_{t+1}, 0), and its query
    gets w_t less what it hands back itself, so that a chain of searches is paid a gain once.

    IG_t is the shaped information gain and E_t how much, in nats per token, the documents of search
    t raised the probability of query t+1 (:func:`igsearch_env.gain.enabling.settle_enabling`).
    Computed from the last search backwards. E_t is never paid alone: copying words of a document
    into the next query raises it too, and that is worth something only if the next search was.

    Args:
        share: How much of a search's worth goes to the search that made it possible.
    """

    uses_enabling = True

    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie between 0 and 1, got {self.share!r}")

    def signals(self, episodes: Sequence[Episode]) -> Signals:
        """The gain of each search, and its share in what came after it."""
        return [
            self._handed_back(episode, gains)
            for episode, gains in zip(episodes, super().signals(episodes), strict=True)
        ]

    def _handed_back(self, episode: Episode, gains: Sequence[float]) -> list[float]:
        worth = 0.0
        result: list[float] = []
        for step, gain in zip(reversed(episode.searches), reversed(gains), strict=True):
            # Without a value the next turn was no search, so nothing was made possible.
            enabled = 0.0 if step.enabling is None else min(max(step.enabling, 0.0), 1.0)
            handed = self.share * enabled * max(worth, 0.0)
            if result:
                result[-1] -= handed  # or a chain of searches would be paid the same gain each
            worth = gain + handed
            result.append(worth)
        return result[::-1]
