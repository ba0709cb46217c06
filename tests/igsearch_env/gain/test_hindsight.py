"""Hindsight: which turns are scored in which contexts, exactly, and the values."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest

from igsearch_env import InformationGain
from igsearch_env.gain.hindsight import settle_hindsight
from tests.igsearch_env.fakes import CountingScorer, FakeScorer, fake_log_probs
from tests.igsearch_env.gain.test_settle import (
    BARE,
    BEFORE,
    CORRECTION,
    CUBA,
    FAILED,
    OTHERS,
    PERU_DOCUMENTS,
    PROMPT,
    TURNS,
    play,
)

TOLD = "The answer to the question below is: Lima\n\n"
SEEN = (
    PROMPT,
    BEFORE[0] + PERU_DOCUMENTS,
    BEFORE[1] + OTHERS,
    BEFORE[1] + OTHERS + TURNS[2] + CORRECTION,
    BEFORE[2] + FAILED,
    BEFORE[3] + CUBA,
)
GAIN = InformationGain(BARE, floor=None)


def test_each_turn_is_scored_with_the_answer_told_and_without() -> None:
    scorer = FakeScorer()
    (settled,) = settle_hindsight([play(TURNS)], scorer, GAIN)
    pairs = list(zip(SEEN, TURNS, strict=True))
    assert scorer.asked == [(told + seen, turn) for seen, turn in pairs for told in (TOLD, "")]
    assert len(scorer.calls) == 1
    for step, (seen, turn) in zip(settled.steps, pairs, strict=True):
        told, plain = (fake_log_probs(before + seen, turn) for before in (TOLD, ""))
        expected = sum(told) / len(told) - sum(plain) / len(plain)
        assert step.hindsight_shift == pytest.approx(expected)


def test_the_calls_of_a_turn_are_scored_as_the_turn_that_they_are() -> None:
    first, second, third = (one := play(TURNS[:3])).steps
    several = replace(one, steps=(first, replace(second, call=1), third))
    scorer = FakeScorer()
    (settled,) = settle_hindsight([several], scorer, GAIN)
    assert [step.hindsight_shift is None for step in settled.steps] == [True, False, False]
    texts = [text for _, text in scorer.asked]
    assert texts == [TURNS[0] + TURNS[1]] * 2 + [TURNS[2]] * 2
    assert scorer.asked[1][0] == PROMPT


def test_a_turn_is_scored_in_the_context_that_its_policy_saw() -> None:
    """Documents that have left the context are not in it."""
    scorer = FakeScorer()
    episode = play(TURNS[:4], keep_documents=1)
    settle_hindsight([episode], scorer, GAIN)
    seen = [context for context, _ in scorer.asked[1::2]]
    assert seen == ["".join(s.text for s in episode.context_before(t)) for t in range(4)]
    assert PERU_DOCUMENTS in seen[1]
    assert PERU_DOCUMENTS not in seen[3]


def test_what_is_told_stands_before_a_document_and_is_no_system_text() -> None:
    scorer = FakeScorer()
    settle_hindsight([play(TURNS[:1])], scorer, GAIN)
    context, _ = scorer.calls[0][0]
    assert [segment.source for segment in context][:2] == ["document", play(()).prompt.source]
    assert (context[-1].text, context[-1].source) == ("", "system")


def test_a_turn_of_the_answers_words_is_more_probable_once_they_are_told() -> None:
    """By hand: p(word) = (its count + .01) / (words of the context + 1)."""
    episode = play(["Lima", "<answer>x</answer>"])
    (settled,) = settle_hindsight([episode], CountingScorer(), GAIN)
    words, told = 4, 8  # question Capital of Peru; The answer to the question below is Lima
    expected = log(1.01 / (words + told + 1)) - log(0.01 / (words + 1))
    assert settled.steps[0].hindsight_shift == pytest.approx(expected)


def test_floor_and_weights_are_those_of_the_gain() -> None:
    gain = InformationGain(BARE, floor=-4.0, head_tokens=1, head_weight=3.0)
    (settled,) = settle_hindsight([play(TURNS[1:2])], FakeScorer(), gain)
    values = []
    for before in (TOLD, ""):
        first, *rest = (max(v, -4.0) for v in fake_log_probs(before + PROMPT, TURNS[1]))
        values.append((3 * first + sum(rest)) / (3 + len(rest)))
    assert settled.steps[0].hindsight_shift == pytest.approx(values[0] - values[1])


def test_what_is_there_is_kept_and_a_turn_without_text_has_none() -> None:
    scorer = FakeScorer()
    episodes = [play(TURNS), play(["  ", TURNS[0]])]
    settled = settle_hindsight(episodes, scorer, GAIN)
    assert [step.hindsight_shift is None for step in settled[1].steps] == [True, False]
    assert settle_hindsight(settled, scorer, GAIN) == settled
    assert len(scorer.calls[1:]) == 0
    assert replace(settled[0].steps[0], hindsight_shift=None) == episodes[0].steps[0]
