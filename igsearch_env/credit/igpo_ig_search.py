"""IGPO and IG-Search together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from igsearch_env.credit.base import CreditAssignment, register_credit
from igsearch_env.credit.ig_search import IGSearch
from igsearch_env.credit.igpo import IGPO
from igsearch_env.episode import Episode


@register_credit("igpo_ig_search")
@dataclass(frozen=True)
class IGPOWithIGSearch(CreditAssignment):
    """IGPO's advantage of a turn, plus IG-Search's bonus on the tokens of its query.

    IGPO measures how much a turn moved the belief in the gold answer, IG-Search how much more its
    documents moved it than documents of other questions would have.

    Args:
        igpo: IGPO with its options.
        ig_search: IG-Search with its options. Only its bonus is used, not GRPO's advantage.
    """

    uses_belief = True

    igpo: IGPO = field(default_factory=IGPO)
    ig_search: IGSearch = field(default_factory=IGSearch)

    def at(self, progress: float) -> Self:
        """The method with IG-Search's weight at a point of training."""
        return replace(self, ig_search=self.ig_search.at(progress))

    def needs_gain(self, episodes: Sequence[Episode]) -> list[list[bool]]:
        """True for the searches whose gain IG-Search uses."""
        return self.ig_search.needs_gain(episodes)

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """One array of shape (policy tokens,) per episode."""
        bonuses = self.ig_search.bonuses(episodes)
        return [turn + bonus for turn, bonus in zip(self.igpo(episodes), bonuses, strict=True)]
