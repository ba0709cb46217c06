"""A small world by hand, and stand-ins for the parts around the environment that count and record.

The retriever and the scorer are fake; the environments, the pool and the protocol are real.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from igsearch_env import Completion, Document, Evidence, Question, RetrievalError, Segment
from igsearch_env.episode import Context, Episode, Step

CAPITALS = {
    "Peru": "Lima",
    "Italy": "Rome",
    "Norway": "Oslo",
    "Cuba": "Havana",
    "Kenya": "Nairobi",
    "Japan": "Tokyo",
    "Ghana": "Accra",
    "Fiji": "Suva",
}
DOCUMENTS = {
    country: Document(f"d-{country}", country, f"The seat of {country} is {city}.", 1.0)
    for country, city in CAPITALS.items()
}
QUESTIONS = tuple(
    Question(f"q-{country}", f"What is the capital of {country}?", (city,))
    for country, city in CAPITALS.items()
)
PERU, ITALY = QUESTIONS[0], QUESTIONS[1]
SWAP_PAIRS = (
    Evidence(
        (Document("k", "", "Nairobi is in Kenya."), Document("l", "", "So is Mombasa.")),
        Segment("<refine>Nairobi it is</refine>", "policy", (7, 8)),
        "kenya",
        "Capital of Kenya?",
    ),
    Evidence(
        (Document("j", "", "Tokyo is in Japan."),),
        Segment("<refine>Tokyo then</refine>", "policy", (9,)),
        "japan",
        "Capital of Japan?",
    ),
)
"""Evidence of other questions, to be swapped in."""


class FakeRetriever:
    """Finds the passages of the countries that a query names; remembers what it was asked.

    A query with "broken" in it fails; one with "short" makes it return too few lists.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[str, ...], int]] = []

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        self.calls.append((tuple(queries), k))
        if any("broken" in query for query in queries):
            raise RetrievalError("the search engine is down")
        found = [[d for name, d in DOCUMENTS.items() if name in query][:k] for query in queries]
        return found[1:] if any("short" in query for query in queries) else found


class FakeScorer:
    """Gives every token of every (context, answer) a log-probability of its own, and records all.

    The values follow from the whole text of the context, so that any other context shows.
    """

    def __init__(self, vocabulary_size: int = 1000) -> None:
        self.vocabulary_size = vocabulary_size
        self.calls: list[list[tuple[Context, str]]] = []

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    @property
    def asked(self) -> list[tuple[str, str]]:
        """Text of the context and answer of every pair so far."""
        return [(text_of(context), answer) for call in self.calls for context, answer in call]

    def log_probs(
        self, contexts: Sequence[Context], answers: Sequence[str]
    ) -> list[NDArray[np.float64]]:
        self.calls.append(list(zip(contexts, answers, strict=True)))
        return [
            np.array(fake_log_probs(text_of(context), answer))
            for context, answer in zip(contexts, answers, strict=True)
        ]


class CountingScorer:
    """p(word) = (its count in the context + .01) / (words of the context + 1), for sums by hand."""

    vocabulary_size = 10_000  # the floor of log-probs lies below all of them

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def log_probs(
        self, contexts: Sequence[Context], answers: Sequence[str]
    ) -> list[NDArray[np.float64]]:
        found = []
        for context, answer in zip(contexts, answers, strict=True):
            words = re.findall(r"\w+", text_of(context))
            shares = [(words.count(w) + 0.01) / (len(words) + 1) for w in answer.split()]
            found.append(np.log(np.array(shares)))
        return found


def fake_log_probs(context: str, answer: str) -> list[float]:
    """What :class:`FakeScorer` gives: one value in [-10, 0) per word of the answer."""
    return [
        -(zlib.crc32(f"{context}|{answer}|{number}".encode()) % 9999 + 1) / 1000
        for number in range(len(answer.split()))
    ]


def text_of(context: Context) -> str:
    return "".join(segment.text for segment in context)


def sampled(text: str, size: int = 3) -> Completion:
    """A turn with tokens: each tag is one, and what is between is cut every ``size`` characters."""
    pieces: list[str] = []
    for part in re.split(r"(</?\w+>)", text):
        if part.startswith("<"):
            pieces.append(part)
        else:
            pieces += [part[at : at + size] for at in range(0, len(part), size)]
    ids = [100 + number for number in range(len(pieces))]
    decode = dict(zip(ids, pieces, strict=True))
    log_probs = [-0.5 - 0.25 * number for number in range(len(pieces))]
    return Completion.from_tokens(ids, log_probs, lambda part: "".join(decode[i] for i in part))


def policy_step(
    action: Any, start: int, tokens: int, query: tuple[int, int] | None = None, **more: Any
) -> Step:
    """A step of ``tokens`` policy tokens that begins at token ``start`` of its episode."""
    first, last = query if query is not None else (0, 0)
    return Step(
        action=action,
        turn=Segment("turn", "policy", tuple(range(tokens))),
        observation=None,
        policy_tokens=slice(start, start + tokens),
        query_tokens=slice(start + first, start + last),
        **more,
    )


def finished(outcome: float, steps: Sequence[Step] = (), group: str = "g", **more: Any) -> Episode:
    """A finished episode whose last step was paid the outcome."""
    paid = [*steps[:-1], *(_paid(step, outcome) for step in steps[-1:])]
    return Episode(
        PERU,
        Segment("prompt", "system"),
        tuple(paid),
        group_id=group,
        outcome=outcome,
        terminated=True,
        **more,
    )


def _paid(step: Step, outcome: float) -> Step:
    return replace(step, reward=step.reward + outcome)
