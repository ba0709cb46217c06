"""Scoring answers with an engine that gives the log-probabilities of a prompt's tokens."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from igsearch_env.episode import Context

NONE_AT_ALL = -9_999.0
"""A log-probability of at most this stands for -inf, which JSON lacks (vLLM writes -9999)."""

Pair = tuple[tuple[int, ...], int]
"""Ids of a context with its answer, and how many of them, at the end, are the answer's."""


class ScoringTokenizer(Protocol):
    """What a scorer needs of a tokenizer; ``agents.tokenization.SegmentTokenizer`` has it."""

    def __len__(self) -> int:
        """Number of tokens that it knows."""
        ...

    def encode_all_scored(
        self, contexts: Sequence[Context], answers: Sequence[str]
    ) -> tuple[list[tuple[list[int], int]], int]:
        """The ids of each context with its answer, the number of the answer's, and the longest."""
        ...


class PromptScorer(ABC):
    """Scores an answer by the log-probabilities of its tokens at the end of a prompt.

    Each different prompt is scored once. They are in the order of their ids, so that those that
    share a prefix are neighbours.

    Args:
        tokenizer: The policy's tokenizer.
        max_length: The longest prompt and reply that the engine takes, in tokens; None if it is
            not known.

    Attributes:
        vocabulary_size: Number of tokens that the tokenizer knows.
    """

    def __init__(self, tokenizer: ScoringTokenizer, max_length: int | None = None) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.vocabulary_size = len(tokenizer)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def fits(self, contexts: Sequence[Context], answers: Sequence[str]) -> list[bool]:
        """For each context with its answer, whether the engine can read it and reply to it."""
        pairs, _ = self.tokenizer.encode_all_scored(contexts, answers)
        return [self.max_length is None or len(ids) < self.max_length for ids, _ in pairs]

    def log_probs(
        self, contexts: Sequence[Context], answers: Sequence[str]
    ) -> list[NDArray[np.float64] | None]:
        """Score ``answers[i]`` as the continuation of ``contexts[i]``.

        Returns:
            One array per pair, shape (answer tokens,), in nats, at temperature 1; None where the
            engine gave no values.
        """
        encoded, _ = self.tokenizer.encode_all_scored(contexts, answers)
        pairs = [(tuple(ids), count) for ids, count in encoded]
        different = sorted(set(pairs))
        found = dict(zip(different, self.score(different), strict=True))
        return [None if (one := found[pair]) is None else one.copy() for pair in pairs]

    @abstractmethod
    def score(self, pairs: Sequence[Pair]) -> Sequence[NDArray[np.float64] | None]:
        """The log-probabilities of each answer, in order; None where the engine gave none."""


def answer_log_probs(known: Any, pair: Pair) -> NDArray[np.float64] | None:
    """The values of an answer's tokens in vLLM's table of a prompt.

    Args:
        known: For each token of the prompt a mapping from ids (numbers or their text) to what has a
            ``logprob``, as an attribute or a key; None for the first token.
        pair: The prompt.

    Returns:
        The log-probabilities in nats, shape (answer tokens,); None if the table does not hold them.
    """
    ids, count = pair
    if not isinstance(known, list) or len(known) < len(ids):
        return None
    values = []
    for at in range(len(ids) - count, len(ids)):
        row = known[at] if isinstance(known[at], Mapping) else {}
        found = row.get(ids[at], row.get(str(ids[at])))
        if isinstance(found, Mapping):
            values.append(found.get("logprob"))
        else:
            values.append(getattr(found, "logprob", None))
    return checked(values)


def checked(values: Sequence[Any]) -> NDArray[np.float64] | None:
    """Log-probabilities as an array; None if one is no number of at most 0.

    Rounding above 0 is allowed, and what stands for -inf becomes it.
    """
    if not all(isinstance(v, Real) and not isinstance(v, bool) for v in values):
        return None
    numbers = [-math.inf if value <= NONE_AT_ALL else float(value) for value in values]
    if not all(number <= 1e-6 for number in numbers):  # nor is NaN
        return None
    return np.array(numbers)
