"""Hindsight from the group: GRPO, plus a bonus for finding what successful siblings had found."""

from __future__ import annotations

from collections.abc import Sequence
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
            {document.id for step in episode.searches for document in step.documents}
            for episode in episodes
        ]
        for members in rollout_groups(episodes).values():
            for i in members:
                others = [k for k in members if k != i]
                good = [found[k] for k in others if (episodes[k].outcome or 0.0) > 0]
                bad = [found[k] for k in others if (episodes[k].outcome or 0.0) <= 0]
                known: set[str] = set()
                for number, step in enumerate(episodes[i].searches):
                    new = {document.id for document in step.documents} - known
                    known |= new
                    worth = (_share(id_, good) - _share(id_, bad) for id_ in new)
                    result[i][number] = max(0.0, *worth) if new else 0.0
        return result


def _share(id_: str, rollouts: Sequence[set[str]]) -> float:
    """The share of rollouts that found a document; 0 without any rollout."""
    return sum(id_ in found for found in rollouts) / len(rollouts) if rollouts else 0.0
