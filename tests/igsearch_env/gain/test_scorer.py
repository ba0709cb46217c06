"""The reference scorer against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from igsearch_env.episode import Segment
from igsearch_env.gain.scorer import UnigramScorer
from igsearch_env.testing import check_scorer

LIMA = (Segment("Question: which city?\n", "system"), Segment("Lima, lima is big.", "document"))
# Words of LIMA: question : which city ? lima , is big .   -> 10, "lima" counting once.


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        (" Lima", [1]),
        (" LIMA ", [1]),
        (" Rome", [0]),
        (" big Lima.", [1, 1, 1]),
        (" Rome, Italy", [0, 1, 0]),
        (" lima lima", [1, 1]),
        (" lim", [0]),
    ],
)
def test_values_by_hand(answer: str, counts: list[int]) -> None:
    # P(word) = (1 or 0 + s / V) / (different words + s) with s = 2 and V = 100.
    (scores,) = UnigramScorer(100, 2.0).log_probs([LIMA], [answer])
    expected = [math.log((count + 0.02) / 12.0) for count in counts]
    assert scores.shape == (len(counts),)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_without_context_every_word_is_as_likely_as_a_guess() -> None:
    (scores,) = UnigramScorer(50, 3.0).log_probs([()], [" any words"])
    np.testing.assert_allclose(scores, [-math.log(50)] * 2, rtol=1e-12)


def test_the_probabilities_of_a_vocabulary_sum_to_one() -> None:
    words = ["lima", "is", "big", "rome", "old"]
    scorer = UnigramScorer(vocabulary_size=len(words), smoothing=0.7)
    context = (Segment("Lima is big, is", "document"),)
    (comma, *scores) = scorer.log_probs([context] * 6, [",", *words])
    # The comma is outside of this vocabulary of five: it takes what one more word takes.
    total = math.fsum(math.exp(score[0]) for score in scores) + math.exp(comma[0])
    assert total == pytest.approx(1.0 + 0.7 / 5 / (4 + 0.7))


def test_saying_it_again_makes_no_word_more_likely() -> None:
    again = (*LIMA, Segment("lima is big, lima is big", "document"))
    once, twice = UnigramScorer().log_probs([LIMA, again], [" lima"] * 2)
    assert once == twice


def test_it_keeps_the_promises_of_a_scorer() -> None:
    check_scorer(UnigramScorer())
    check_scorer(UnigramScorer(vocabulary_size=100, smoothing=0.1))


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_refuses_an_answer_without_words(answer: str) -> None:
    with pytest.raises(ValueError, match="has no words to score"):
        UnigramScorer().log_probs([LIMA], [answer])


@pytest.mark.parametrize(("contexts", "answers"), [([LIMA], []), ([], [" Lima"])])
def test_refuses_unequal_numbers_of_contexts_and_answers(contexts: Any, answers: Any) -> None:
    with pytest.raises(ValueError, match="zip"):
        UnigramScorer().log_probs(contexts, answers)


@pytest.mark.parametrize(("size", "smoothing"), [(1, 1.0), (0, 1.0), (100, 0.0), (100, -1.0)])
def test_refuses_impossible_arguments(size: int, smoothing: float) -> None:
    with pytest.raises(ValueError, match=f"got {size} and {smoothing}"):
        UnigramScorer(size, smoothing)
