"""The gold answer's log-prob before the first search and after each: contexts and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from igsearch_env import Episode, InformationGain, settle_belief
from igsearch_env.episode import Context
from igsearch_env.gain.belief import belief_shifts
from igsearch_env.gain.information_gain import AliasOperator, answer_scores
from tests.igsearch_env.fakes import FakeScorer, fake_log_probs, text_of
from tests.igsearch_env.gain.test_information_gain import ALIAS_OPERATORS, slow_reduce
from tests.igsearch_env.gain.test_settle import (
    BARE,
    BEFORE,
    CUBA,
    OTHERS,
    PAPER,
    PERU_DOCUMENTS,
    PROMPT,
    TURNS,
    play,
)

GOLDS = (" Lima", " City of Kings")


def without_evidence(episode: Episode) -> Episode:
    return replace(episode, steps=tuple(replace(s, counterfactuals=()) for s in episode.steps))


CONTEXTS = (
    PROMPT + "\n<answer>",
    BEFORE[0] + PERU_DOCUMENTS + "\n<refine>Lima rules</refine>" + "\n<answer>",
    BEFORE[1] + OTHERS + "\n<answer>",
    BEFORE[3] + CUBA + "<refine>nothing</refine>" + "\n<answer>",
)


def test_the_prompt_and_every_search_are_scored_in_one_call() -> None:
    scorer = FakeScorer()
    episode = without_evidence(play(TURNS))
    settled = settle_belief([episode], scorer, InformationGain(BARE, **PAPER))
    assert scorer.asked == [(context, gold) for context in CONTEXTS for gold in GOLDS]
    assert len(scorer.calls) == len(settled) == 1
    values = [step.log_prob for step in settled[0].searches]
    assert values[2] is None  # the retriever failed
    assert all(value is not None for value in (settled[0].prior_log_prob, *values[:2], values[3]))
    assert settled[0].information_gains == (None,) * 4


def test_with_documents_alone_no_refinement_is_read() -> None:
    scorer = FakeScorer()
    gain = InformationGain(BARE, added_only=False)
    settle_belief([without_evidence(play(TURNS))], scorer, gain)
    contexts = [context for context, _ in scorer.asked[::2]]
    assert contexts[1] == BEFORE[0] + PERU_DOCUMENTS + "\n<answer>"
    assert contexts[3] == BEFORE[3] + CUBA + "\n<answer>"


@pytest.mark.parametrize("aliases", ALIAS_OPERATORS)
@pytest.mark.parametrize("floor", [None, -4.0, "uniform"])
def test_values_are_scored_as_gains_are(aliases: AliasOperator, floor: Any) -> None:
    rules: dict[str, Any] = {**PAPER, "floor": floor, "aliases": aliases}
    gain = InformationGain(BARE, **rules, head_tokens=1, head_weight=3.0)
    (settled,) = settle_belief([without_evidence(play(TURNS))], FakeScorer(), gain)
    low = -np.log(1000) if floor == "uniform" else floor
    values = [settled.prior_log_prob, *(s.log_prob for s in settled.searches if s.log_prob)]
    for value, context in zip(values, CONTEXTS, strict=True):
        told = [np.array(fake_log_probs(context, gold)) for gold in GOLDS]
        scores = answer_scores(told, 1, 3.0, low).tolist()
        _, expected, _ = slow_reduce(scores, [[0.0]] * len(scores), aliases)
        assert value == pytest.approx(expected)


def test_after_gains_were_settled_only_the_rest_is_scored() -> None:
    gain, scorer = InformationGain(BARE, **PAPER), FakeScorer()
    (gained,) = gain.settle([play(TURNS)], scorer)
    scorer.calls.clear()
    (settled,) = settle_belief([gained], scorer, gain)
    assert scorer.asked == [(CONTEXTS[0], gold) for gold in GOLDS]
    assert settled.steps == gained.steps
    assert settle_belief([settled], scorer, gain) == [settled]
    assert len(scorer.calls) == 1


def test_a_context_that_is_too_long_leaves_its_search_without_a_value() -> None:
    class Short(FakeScorer):
        def fits(self, contexts: Sequence[Context], answers: Sequence[str]) -> list[bool]:
            return [len(text_of(context)) < len(CONTEXTS[1]) for context in contexts]

    gain = InformationGain(BARE, **PAPER)
    (settled,) = settle_belief([without_evidence(play(TURNS))], Short(), gain)
    assert settled.prior_log_prob is not None
    assert [step.log_prob for step in settled.searches] == [None] * 4


def test_what_documents_change_is_measured_from_just_before_them() -> None:
    scorer = FakeScorer()
    turns = ["<search> Peru </search>", "<search>Peru</search>", "<search>Cuba</search>"]
    episode = without_evidence(play([*turns, "<answer>x</answer>"]))
    (settled,) = settle_belief([episode], scorer, InformationGain(BARE))
    peru = PROMPT + turns[0] + PERU_DOCUMENTS
    before = peru + turns[1] + PERU_DOCUMENTS + turns[2]  # search 1 found nothing new
    assert [text.removesuffix("\n<answer>") for text, _ in scorer.asked[::2]] == [
        PROMPT,
        peru,
        PROMPT + turns[0],
        before + CUBA,
        before,
    ]
    first, again, last, _ = settled.steps
    assert (again.log_prob, again.before_log_prob) == (None, None)
    assert None not in (first.before_log_prob, last.before_log_prob)
    scorer.calls.clear()
    assert settle_belief([settled], scorer, InformationGain(BARE)) == [settled]
    assert scorer.calls == []


def believed(prior: float, *searches: tuple[float | None, float | None]) -> Episode:
    """An episode of searches with a belief before and after their documents."""
    episode = play([*["<search>Peru</search>"] * len(searches), "<answer>x</answer>"])
    steps = [
        replace(step, before_log_prob=before, log_prob=after)
        for step, (before, after) in zip(episode.steps, searches, strict=False)
    ]
    return replace(episode, steps=(*steps, episode.steps[-1]), prior_log_prob=prior)


@pytest.mark.parametrize(
    ("prior", "searches", "expected"),
    [
        (-3.0, [(-3.0, -2.0), (-2.0, -1.0)], [1.0, 1.0]),
        (-3.0, [(-1.5, -1.0)], [0.5]),  # the query had raised it already
        (-3.0, [(-5.0, -2.0)], [1.0]),  # words that lower it are not made up for
        (-3.0, [(-3.0, -1.0), (-2.0, -1.0)], [2.0, 0.0]),  # nor is what was lost by reading
        (-3.0, [(-3.0, -4.0), (-4.0, -2.0)], [-1.0, 1.0]),
        (-3.0, [(-3.0, -1.0), (None, None), (-1.0, -0.5)], [2.0, None, 0.5]),
        (-3.0, [(None, -2.0), (None, -2.5), (None, -1.0)], [1.0, -0.5, 1.5]),  # the paper's
    ],
)
def test_belief_shifts_by_hand(prior: float, searches: Any, expected: list[float | None]) -> None:
    assert belief_shifts(believed(prior, *searches)) == [*expected, None]


def test_unfinished_episodes_are_refused_and_nothing_is_nothing() -> None:
    with pytest.raises(ValueError, match="'peru' has not ended; beliefs are settled for whole"):
        settle_belief([play(TURNS[:2])], FakeScorer(), InformationGain(BARE))
    scorer = FakeScorer()
    assert settle_belief([], scorer, InformationGain(BARE)) == []
    assert scorer.calls == []
