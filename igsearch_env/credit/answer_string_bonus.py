"""A control: a signal that costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from igsearch_env.answers import contains_answer
from igsearch_env.credit.base import register_credit
from igsearch_env.credit.query_bonus import QueryBonus, Signals
from igsearch_env.episode import Episode


@register_credit("answer_string_bonus")
@dataclass(frozen=True)
class AnswerStringBonus(QueryBonus):
    """1 for the first search whose documents contain a gold answer as words; no model scores it.

    Later searches that find the answer again get 0. Where the gold answer is yes or no, nearly
    every document contains it.
    """

    uses_information_gain = False

    def signals(self, episodes: Sequence[Episode]) -> Signals:
        """1.0 or 0.0 per search."""
        return [_first_answer(episode) for episode in episodes]


def _first_answer(episode: Episode) -> list[float]:
    signals: list[float] = []
    for step in episode.searches:
        texts = (f"{document.title} {document.text}" for document in step.documents)
        held = any(contains_answer(text, episode.question.golden_answers) for text in texts)
        signals.append(1.0 if held and 1.0 not in signals else 0.0)
    return signals
