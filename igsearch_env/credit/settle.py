"""Computing what a credit method reads, before it is called."""

from __future__ import annotations

from collections.abc import Sequence

from igsearch_env.credit.base import CreditAssignment
from igsearch_env.episode import Episode
from igsearch_env.gain.belief import settle_belief
from igsearch_env.gain.enabling import settle_enabling
from igsearch_env.gain.hindsight import settle_hindsight
from igsearch_env.gain.information_gain import InformationGain
from igsearch_env.gain.scorer import AnswerScorer


def settle_for(
    credit: CreditAssignment,
    episodes: Sequence[Episode],
    information_gain: InformationGain,
    scorer: AnswerScorer,
    *,
    whole_groups: bool = True,
) -> list[Episode]:
    """Compute what a credit method reads: gains, beliefs, hindsight shifts, or nothing.

    Call it with the weights that sampled, before they change: gain and belief are defined under
    the policy that acted.

    Args:
        credit: The method, as it is at this point of training.
        episodes: Finished episodes.
        information_gain: How gain and belief are computed.
        scorer: Scores answers with the policy's weights.
        whole_groups: Whether all rollouts of each group are among the episodes. If not, every
            search is scored, since which ones a method needs may depend on the others.

    Returns:
        The episodes in the same order. Searches that the method does not need stay as they are.
    """
    settled = list(episodes)
    # The gain comes first: it leaves the log-prob under the real context behind, which is the
    # belief after that search, so that no context is scored twice.
    if credit.uses_information_gain:
        needed = credit.needs_gain(settled) if whole_groups else None
        settled = information_gain.settle(settled, scorer, needed)
    if credit.uses_belief:
        settled = settle_belief(settled, scorer, information_gain)
    if credit.uses_enabling:
        settled = settle_enabling(settled, scorer, information_gain)
    if credit.uses_hindsight_shift:
        settled = settle_hindsight(settled, scorer, information_gain)
    return settled
