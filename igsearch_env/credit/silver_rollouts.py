"""Hindsight from the group: GRPO, plus a bonus for finding what successful siblings had found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from igsearch_env.credit.base import register_credit
from igsearch_env.credit.groups import rollout_groups
from igsearch_env.credit.query_bonus import QueryBonus, Signals
from igsearch_env.episode import Episode


@register_credit("silver_rollouts")
@dataclass(frozen=True)
class SilverRollouts(QueryBonus):
    """What the best new document of a search was worth to the other rollouts of the group.

    A document is worth the share of successful siblings that found it less the share of the failed
    ones, at least 0. A success is an outcome above 0. The rollout itself does not count, so that no
    search is paid for the outcome of its own rollout, which GRPO pays. Nothing is scored, nothing
    is annotated and the corpus is not looked at; a group without a success gives no bonus.
    """

    uses_information_gain = False

    def signals(self, episodes: Sequence[Episode]) -> Signals:
        """A number from 0 to 1 per search."""
        result = [[0.0] * len(episode.searches) for episode in episodes]
        found = [
            {
                name
                for step in e.searches
                for document in step.documents
                for name in document.known_by
            }
            for e in episodes
        ]
        for members in rollout_groups(episodes).values():
            for i in members:
                others = [k for k in members if k != i]
                good = [found[k] for k in others if (episodes[k].outcome or 0.0) > 0]
                bad = [found[k] for k in others if (episodes[k].outcome or 0.0) <= 0]
                known: set[object] = set()
                for number, step in enumerate(episodes[i].searches):
                    names = [document.known_by for document in step.documents]
                    new = [one for one in names if known.isdisjoint(one)]
                    known.update(*names)
                    worth = (_share(one, good) - _share(one, bad) for one in new)
                    result[i][number] = max(0.0, *worth) if new else 0.0
        return result


def _share(names: Iterable[object], rollouts: Sequence[set[object]]) -> float:
    """The share of rollouts that found a document by any of its names; 0 without any rollout."""
    if not rollouts:
        return 0.0
    return sum(not found.isdisjoint(names) for found in rollouts) / len(rollouts)
