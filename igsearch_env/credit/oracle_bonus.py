"""A control: the ceiling, which knows the gold documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from igsearch_env.credit.base import register_credit
from igsearch_env.credit.query_bonus import QueryBonus, Signals, newly_found
from igsearch_env.episode import Episode


@register_credit("oracle_bonus")
@dataclass(frozen=True)
class OracleBonus(QueryBonus):
    """The ceiling: 1 for a search that finds a gold document that no earlier search found.

    Gold documents of every hop count. It needs ``gold_ids``, which real training questions seldom
    have. Where it does not beat GRPO, no credit for single searches can be expected to.
    """

    uses_information_gain = False

    def signals(self, episodes: Sequence[Episode]) -> Signals:
        """1.0 or 0.0 per search.

        Raises:
            ValueError: If a question does not name its gold documents.
        """
        return [_new_gold(episode) for episode in episodes]


def _new_gold(episode: Episode) -> list[float]:
    if not episode.question.gold_ids:
        raise ValueError(
            f"question {episode.question.id!r} has no gold_ids; oracle_bonus pays for finding "
            "them, so it needs questions that name their gold documents"
        )
    return newly_found(episode, episode.question.gold_ids)
