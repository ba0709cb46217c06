"""Controls for IG-Search: a ceiling, a signal that costs nothing, and a placebo.

They differ from :class:`igsearch_env.credit.ig_search.IGSearch` in what a search is worth only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from igsearch_env.answers import contains_answer
from igsearch_env.credit.ig_search import Gains, IGSearch
from igsearch_env.credit.query_bonus import QueryBonus, Signals, newly_found
from igsearch_env.credit.registry import register_credit
from igsearch_env.episode import Episode


@register_credit("oracle_bonus")
@dataclass(frozen=True)
class OracleBonus(QueryBonus):
    """The ceiling: 1 for a search that finds a gold document no earlier search has found.

    Documents of every hop count. It needs ``gold_ids``, which real training questions seldom
    have; where this does not beat GRPO, no credit of single searches can be expected to.
    """

    uses_information_gain: ClassVar[bool] = False

    def signals(self, episodes: Sequence[Episode]) -> Signals:
        """1.0 or 0.0 per search.

        Raises:
            ValueError: If a question does not name its gold documents.
        """
        return [_new_gold(episode) for episode in episodes]


@register_credit("answer_string_bonus")
@dataclass(frozen=True)
class AnswerStringBonus(QueryBonus):
    """Free of scoring: 1 for the first search whose documents hold a gold answer as words.

    Further searches that find it again get nothing. Where the gold is yes or no, nearly any
    passage holds it.
    """

    uses_information_gain: ClassVar[bool] = False

    def signals(self, episodes: Sequence[Episode]) -> Signals:
        """1.0 or 0.0 per search."""
        return [_first_answer(episode) for episode in episodes]


@register_credit("ig_permuted")
@dataclass(frozen=True)
class IGPermuted(IGSearch):
    """The placebo: IG-Search with the gains of the whole batch dealt out anew at random.

    The gains of all settled searches keep their values but change places, over questions and
    rollouts; those of a rollout with a failed search stay out. The permutation follows from
    ``seed`` and the queries of the batch, so that the same batch is always dealt the same way.

    Args:
        seed: Of the permutation.
    """

    seed: int = 0

    def gains(self, episodes: Sequence[Episode]) -> Gains:
        """The gains, permuted among the searches that have one."""
        gains = super().gains(episodes)
        places = [
            (row, number)
            for row, episode in enumerate(episodes)
            if not episode.retrieval_failed
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


def _new_gold(episode: Episode) -> list[float]:
    if not episode.question.gold_ids:
        raise ValueError(
            f"question {episode.question.id!r} has no gold_ids; oracle_bonus pays for finding "
            "them, so it needs questions that name their gold documents"
        )
    return newly_found(episode, episode.question.gold_ids)


def _first_answer(episode: Episode) -> list[float]:
    signals: list[float] = []
    for step in episode.searches:
        texts = (f"{document.title} {document.text}" for document in step.documents)
        held = any(contains_answer(text, episode.question.golden_answers) for text in texts)
        signals.append(1.0 if held and 1.0 not in signals else 0.0)
    return signals
