"""A control: the placebo, which has the gains of IG-Search at the wrong searches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from igsearch_env.credit.base import register_credit
from igsearch_env.credit.ig_search import Gains, IGSearch
from igsearch_env.episode import Episode


@register_credit("ig_permuted")
@dataclass(frozen=True)
class IGPermuted(IGSearch):
    """The placebo: IG-Search with the gains of the whole batch permuted at random.

    The gains of all searches that have one change places, across questions and rollouts; rollouts
    with a failed search are left out. The permutation follows from ``seed`` and the queries of the
    batch, so that the same batch is always permuted in the same way.

    Args:
        seed: Seed of the permutation.
    """

    seed: int = 0

    def gains(self, episodes: Sequence[Episode]) -> Gains:
        """The gains, permuted among the searches that have one."""
        gains = super().gains(episodes)
        places = [
            (row, number)
            for row, episode in enumerate(episodes)
            if not episode.left_out
            for number, gain in enumerate(gains[row])
            if gain is not None
        ]
        values = [gains[row][number] for row, number in places]
        queries = "\n".join(step.query for episode in episodes for step in episode.searches)
        digest = hashlib.sha256(queries.encode("utf-8", "surrogatepass")).digest()
        rng = np.random.default_rng([self.seed, int.from_bytes(digest[:8])])
        for (row, number), source in zip(places, rng.permutation(len(places)), strict=True):
            gains[row][number] = values[int(source)]
        return gains
