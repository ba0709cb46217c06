"""Silver chains: GRPO, plus a bonus for each search that finds new silver evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from igsearch_env.credit.base import register_credit
from igsearch_env.credit.query_bonus import QueryBonus, Signals, newly_found
from igsearch_env.episode import Episode


@register_credit("silver_chain")
@dataclass(frozen=True)
class SilverChain(QueryBonus):
    """1 for a search that finds silver evidence which no earlier search of its rollout has found.

    Silver evidence comes from question, answer and corpus alone
    (:func:`igsearch_env.data.silver.find_silver`): nothing is annotated and no model scores
    anything. A question without a chain gives no bonus, so its rollouts learn as GRPO's do.
    """

    uses_information_gain = False
    uses_silver = True

    def signals(self, episodes: Sequence[Episode]) -> Signals:
        """1.0 or 0.0 per search.

        Raises:
            ValueError: If silver evidence was never looked for.
        """
        return [_new_silver(episode) for episode in episodes]


def _new_silver(episode: Episode) -> list[float]:
    if episode.question.silver_ids is None:
        raise ValueError(
            f"question {episode.question.id!r} has no silver_ids; fill them in with "
            "igsearch_env.data.silver.with_silver(questions, documents)"
        )
    return newly_found(episode, episode.question.silver_ids)
