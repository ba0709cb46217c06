"""The policy's belief in the gold answer before the first search and after each one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from igsearch_env.episode import Context, Episode, Segment, changed
from igsearch_env.gain.information_gain import (
    InformationGain,
    limited,
    reduce_aliases,
)
from igsearch_env.gain.scorer import AnswerScorer


def settle_belief(
    episodes: Sequence[Episode], scorer: AnswerScorer, information_gain: InformationGain
) -> list[Episode]:
    """Fill in ``prior_log_prob`` of each episode and ``log_prob`` of each of its searches.

    With ``information_gain.added_only`` the ``before_log_prob`` of each search is filled in too, so
    that :func:`belief_shifts` can tell what its documents changed from what the policy wrote.

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
    places: list[tuple[int, int | None, str]] = []
    jobs: list[tuple[list[Context], tuple[str, ...]]] = []
    for number, episode in enumerate(episodes):
        if not episode.finished:
            raise ValueError(
                f"the episode of question {episode.question.id!r} has not ended; beliefs are "
                "settled for whole episodes"
            )
        golds = episode.question.golden_answers
        if episode.prior_log_prob is None:
            places.append((number, None, "prior_log_prob"))
            jobs.append(([(episode.prompt, opening)], golds))
        for index, step in enumerate(episode.steps):
            if not information_gain.documents(episode, index):
                continue  # no search, or one that found nothing that counts
            if step.log_prob is None:
                places.append((number, index, "log_prob"))
                jobs.append((information_gain.contexts(episode, index)[:1], golds))
            if information_gain.added_only and step.before_log_prob is None:
                places.append((number, index, "before_log_prob"))
                jobs.append(([(*information_gain.before_reply(episode, index), opening)], golds))
    settled = list(episodes)
    tables = information_gain.scores(jobs, scorer)
    for (number, place, name), table in zip(places, tables, strict=True):
        if table is None:
            continue
        value = float(reduce_aliases(table, information_gain.aliases)[0])
        if place is None:
            settled[number] = changed(settled[number], prior_log_prob=value)
        else:
            steps = list(settled[number].steps)
            steps[place] = changed(steps[place], **{name: value})
            settled[number] = changed(settled[number], steps=tuple(steps))
    return settled


def belief_shifts(
    episode: Episode, measure: Callable[[float], float] = float
) -> list[float | None]:
    """By how much each turn changed the belief in the gold answer; None where it has none.

    Where ``before_log_prob`` is known, it is what the documents of a search changed, up to the
    highest belief before: words of the policy are not paid, nor is a belief that is regained.
    Elsewhere (the published methods) it is the whole change since the search before, so that the
    shifts of a rollout add up.

    Args:
        episode: An episode after :func:`settle_belief`.
        measure: What of a mean log-prob is compared, such as ``math.exp``.
    """
    before = best = episode.prior_log_prob
    shifts: list[float | None] = []
    for step in episode.steps:
        after = step.log_prob
        if before is None or best is None or after is None:
            shifts.append(None)
        elif step.before_log_prob is None:
            shifts.append(measure(after) - measure(before))
        else:
            shift = measure(after) - measure(step.before_log_prob)
            shifts.append(limited(shift, measure(after), measure(best)))
        before = before if after is None else after
        best = after if best is None or (after is not None and after > best) else best
    return shifts
