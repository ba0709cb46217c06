"""Scoring an answer in a context: the protocol, and a reference scorer that needs no weights."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from igsearch_env.episode import Context


class AnswerScorer(Protocol):
    """Gives the log-probability of answers in contexts."""

    vocabulary_size: int

    def log_probs(
        self, contexts: Sequence[Context], answers: Sequence[str]
    ) -> Sequence[NDArray[np.float64] | None]:
        """Score ``answers[i]`` as the continuation of ``contexts[i]``.

        Args:
            contexts: Segments in reading order, the last of them the answer's opening tag.
            answers: What follows the opening tag, a leading blank included.

        Returns:
            One array per pair, shape (answer tokens,), in nats, at temperature 1; None where the
            score could not be had, such as from a server that failed.

        Raises:
            ValueError: If an answer has no tokens.
        """
        ...


@runtime_checkable
class BoundedScorer(AnswerScorer, Protocol):
    """An :class:`AnswerScorer` that cannot read contexts of any length, and says which."""

    def fits(self, contexts: Sequence[Context], answers: Sequence[str]) -> list[bool]:
        """For each context with its answer, whether it is short enough to be scored."""
        ...


class UnigramScorer:
    """A smoothed unigram model of the context: cheap, deterministic, free of weights.

    The probability of a word is ``(1 or 0 + s / V) / (different words in the context + s)``, 1 if
    the context holds it. So an answer whose words the documents hold is more likely than one that
    they do not hold, and saying it again does not make it more likely still.

    Args:
        vocabulary_size: V, the number of words that the smoothing spreads over.
        smoothing: s, in pseudo-counts.

    >>> from igsearch_env.episode import Segment
    >>> scorer = UnigramScorer(vocabulary_size=100, smoothing=1.0)
    >>> hit, miss = scorer.log_probs([(Segment("Lima is big", "document"),)] * 2, ["Lima", "Rome"])
    >>> bool(hit[0] > miss[0])
    True
    """

    def __init__(self, vocabulary_size: int = 50_000, smoothing: float = 1.0) -> None:
        if vocabulary_size < 2 or not 0 < smoothing < math.inf:
            raise ValueError(
                "UnigramScorer needs vocabulary_size >= 2 and a finite smoothing > 0, "
                f"got {vocabulary_size} and {smoothing}"
            )
        self.vocabulary_size = vocabulary_size
        self.smoothing = smoothing

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def log_probs(
        self, contexts: Sequence[Context], answers: Sequence[str]
    ) -> list[NDArray[np.float64]]:
        """Score each answer in its context; see :class:`AnswerScorer`."""
        return [self._score(c, a) for c, a in zip(contexts, answers, strict=True)]

    def _score(self, context: Context, answer: str) -> NDArray[np.float64]:
        words = _words(answer)
        if not words:
            raise ValueError(f"the answer {answer!r} has no words to score")
        known = {word for segment in context for word in _words(segment.text)}
        total = len(known) + self.smoothing
        floor = self.smoothing / self.vocabulary_size
        return np.array([math.log(((word in known) + floor) / total) for word in words])


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())
