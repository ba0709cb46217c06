"""Enabling: how much the documents of a search raised the probability of the query that came next.

A bridge document often says nothing of the answer, so its information gain is small. But it names
what to search for next, and the policy that read it writes that query with a higher probability
than after other documents.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from igsearch_env.episode import Context, Episode, Segment, Step
from igsearch_env.gain.information_gain import InformationGain
from igsearch_env.gain.scorer import AnswerScorer


def settle_enabling(
    episodes: Sequence[Episode], scorer: AnswerScorer, information_gain: InformationGain
) -> list[Episode]:
    """Fill in ``enabling`` of each search that is followed by another one in the next turn.

    E_t is the mean log-prob per token of query t+1 after the documents of search t, less its mean
    after each of the counterfactual documents, in nats. What the policy wrote in turn t+1 before
    the query stands in all of these contexts. There is no value where a search failed or found
    nothing, has no counterfactuals, or where a context is too long for the scorer.

    Args:
        episodes: Finished episodes.
        scorer: Scores the queries, with the weights that sampled; one call is made.
        information_gain: Its protocol, floor and weights of leading tokens hold here too.
    """
    places = [
        (number, index)
        for number, episode in enumerate(episodes)
        for index in range(len(episode.steps))
        if information_gain.documents(episode, index) and _enables(episode, index)
    ]
    jobs = [_job(information_gain, episodes[number], index) for number, index in places]
    settled = [list(episode.steps) for episode in episodes]
    tables = information_gain.scores(jobs, scorer, lead="")
    for (number, index), table in zip(places, tables, strict=True):
        if table is not None:
            real, *others = table[0].tolist()
            value = float(real - np.mean(others))
            settled[number][index] = replace(settled[number][index], enabling=value)
    return [
        replace(episode, steps=tuple(steps))
        for episode, steps in zip(episodes, settled, strict=True)
    ]


def _following(episode: Episode, index: int) -> Step | None:
    """The first step of the turn after that of step ``index``."""
    place = episode.turn_of(index).stop
    return episode.steps[place] if place < len(episode.steps) else None


def _enables(episode: Episode, index: int) -> bool:
    step, following = episode.steps[index], _following(episode, index)
    searched = step.counterfactuals and not step.retrieval_failed
    return bool(
        searched
        and step.enabling is None
        and following is not None
        and following.action == "search"
        and following.attempt == step.attempt
        and following.query
    )


def _job(
    information_gain: InformationGain, episode: Episode, index: int
) -> tuple[list[Context], tuple[str, ...]]:
    """The contexts of the next query, the real one first, and the query as it was written."""
    following = _following(episode, index)
    assert following is not None  # see _enables
    assert following.query_span is not None  # searches have one
    start, end = following.query_span
    text = following.turn.text
    found = information_gain.shown(episode, index)
    # A scored context ends with what opens the answer, as system text: here all that stands before
    # the query in its turn.
    marks = [mark for pair in information_gain.protocol.actions for mark in pair if mark]
    pieces = re.split(f"({'|'.join(map(re.escape, marks))})", text[:start])
    parts = (Segment(one, "system" if one in marks else "policy") for one in pieces if one)
    opening = Segment(text[:start], "system", parts=tuple(parts))
    contexts: list[Context] = [
        (*context, opening) for context in information_gain.until_replies(episode, index, found)
    ]
    return contexts, (text[start:end],)
