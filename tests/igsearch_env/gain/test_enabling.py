"""Enabling: which contexts are scored with which query, exactly, and the values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from igsearch_env import InformationGain
from igsearch_env.gain.enabling import settle_enabling
from igsearch_env.record import episode_from_record, to_record
from tests.igsearch_env.fakes import FakeScorer, fake_log_probs, text_of
from tests.igsearch_env.gain.test_settle import (
    BARE,
    BEFORE,
    JAPAN,
    KENYA,
    PAPER,
    PERU_DOCUMENTS,
    TURNS,
    play,
)

# Search 0 is followed by search 1; 1 by an invalid turn; 2 failed; 3 by the answer.
OPENING = "\n<refine>Lima rules</refine><search>"
CONTEXTS = [BEFORE[0] + documents + OPENING for documents in (PERU_DOCUMENTS, KENYA, JAPAN)]


def test_the_next_query_is_scored_after_each_set_of_documents() -> None:
    scorer = FakeScorer()
    (settled,) = settle_enabling([play(TURNS)], scorer, InformationGain(BARE, **PAPER))
    assert scorer.asked == [(context, "Italy Norway") for context in CONTEXTS]
    real, *others = (sum(fake_log_probs(c, "Italy Norway")) / 2 for c in CONTEXTS)
    assert settled.searches[0].enabling == pytest.approx(real - sum(others) / 2)
    assert [step.enabling for step in settled.searches[1:]] == [None, None, None]
    assert settled.information_gains == (None,) * 4


def test_floor_and_weights_are_those_of_the_gain() -> None:
    gain = InformationGain(BARE, **PAPER, floor=-4.0, head_tokens=1, head_weight=3.0)
    (settled,) = settle_enabling([play(TURNS)], FakeScorer(), gain)
    values = []
    for context in CONTEXTS:
        first, second = (max(v, -4.0) for v in fake_log_probs(context, "Italy Norway"))
        values.append((3 * first + second) / 4)
    expected = values[0] - (values[1] + values[2]) / 2
    assert settled.searches[0].enabling == pytest.approx(expected)


def test_documents_that_are_known_enable_nothing() -> None:
    scorer = FakeScorer()
    episode = play([*["<search>Peru</search>"] * 3, "<answer>x</answer>"])
    (settled,) = settle_enabling([episode], scorer, InformationGain(BARE))
    assert [step.enabling is None for step in settled.searches] == [False, True, True]
    shown = KENYA.replace("\n So is Mombasa.", "")  # one document, as the search found
    assert scorer.asked[1][0].endswith(shown + "<search>")


def test_what_is_there_is_kept() -> None:
    scorer = FakeScorer()
    gain = InformationGain(BARE)
    (settled,) = settle_enabling([play(TURNS)], scorer, gain)
    assert settle_enabling([settled], scorer, gain) == [settled]
    assert len(scorer.calls) == 1


def test_searches_that_enable_nothing() -> None:
    """No counterfactuals, nothing found, another attempt: nothing to compare, or nothing next."""
    episode = play(TURNS)
    first, *rest = episode.steps
    lone = [
        replace(episode, steps=(replace(first, counterfactuals=()), *rest)),
        replace(episode, steps=(replace(first, documents=()), *rest)),
        replace(episode, steps=(first, *(replace(step, attempt=1) for step in rest))),
        play([TURNS[0]]),
    ]
    scorer = FakeScorer()
    settled = settle_enabling(lone, scorer, InformationGain(BARE))
    assert settled == lone
    assert scorer.asked == []


def test_a_context_that_is_too_long_leaves_no_value() -> None:
    class Bounded(FakeScorer):
        def fits(self, contexts: Any, answers: Any) -> list[bool]:
            return ["Nairobi" not in text_of(context) for context in contexts]

    scorer = Bounded()
    (settled,) = settle_enabling([play(TURNS)], scorer, InformationGain(BARE))
    assert settled.searches[0].enabling is None
    assert scorer.asked == []


def test_a_record_keeps_it_and_an_older_one_lacks_it() -> None:
    (settled,) = settle_enabling([play(TURNS)], FakeScorer(), InformationGain(BARE))
    record = to_record(settled)
    assert episode_from_record(record) == settled
    for step in record["steps"]:
        del step["enabling"]
    assert [step.enabling for step in episode_from_record(record).searches] == [None] * 4
