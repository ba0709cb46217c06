"""The policy's belief in the gold answer before the first search and after each one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from igsearch_env.episode import Context, Episode, Segment
from igsearch_env.gain.information_gain import InformationGain, reduce_aliases
from igsearch_env.gain.scorer import AnswerScorer


def settle_belief(
    episodes: Sequence[Episode], scorer: AnswerScorer, information_gain: InformationGain
) -> list[Episode]:
    """Fill in ``prior_log_prob`` of each episode and ``log_prob`` of each of its searches.

    For credit methods that reward the growth of p(gold answer), as IGPO does; they need no
    counterfactual evidence. Values that :meth:`InformationGain.settle` has filled in are kept. The
    rules are the same: there is no value where a search failed or found nothing, or where a
    context is too long for the scorer.

    Args:
        episodes: Finished episodes.
        scorer: Scores answers, with the weights that sampled; one call is made.
        information_gain: Its floor, weights and alias operator hold here too, and it says whether
            the context after a search ends with the documents or with their refinement.

    Raises:
        ValueError: If an episode has not ended.
    """
    opening = Segment(information_gain.protocol.answer_opening, "system")
    places: list[tuple[int, int | None]] = []
    jobs: list[tuple[list[Context], tuple[str, ...]]] = []
    for number, episode in enumerate(episodes):
        if not episode.finished:
            raise ValueError(
                f"the episode of question {episode.question.id!r} has not ended; beliefs are "
                "settled for whole episodes"
            )
        golds = episode.question.golden_answers
        if episode.prior_log_prob is None:
            places.append((number, None))
            jobs.append(([(episode.prompt, opening)], golds))
        for index, step in enumerate(episode.steps):
            if step.documents and step.log_prob is None:  # a search that found something
                places.append((number, index))
                jobs.append((information_gain.contexts(episode, index)[:1], golds))
    settled = list(episodes)
    for (number, place), table in zip(places, information_gain.scores(jobs, scorer), strict=True):
        if table is None:
            continue
        value = float(reduce_aliases(table, information_gain.aliases)[0])
        if place is None:
            settled[number] = replace(settled[number], prior_log_prob=value)
        else:
            steps = list(settled[number].steps)
            steps[place] = replace(steps[place], log_prob=value)
            settled[number] = replace(settled[number], steps=tuple(steps))
    return settled
