"""Budgets: how much an episode may read and how long it may take, and how text is cut to fit.

A cut falls between two tokens, and :data:`CUT` marks it in the text. Without a tokenizer, each word
and each punctuation mark counts as a token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import inf
from typing import Literal, Protocol

from igsearch_env.episode import Document

CUT = " [cut]"
"""What stands where text was cut."""

Budget = Literal["document", "observation", "episode", "snippet"]
"""What a text was cut for."""


class TokenCounter(Protocol):
    """Counts tokens; ``agents.tokenization.SegmentTokenizer`` does, and :class:`WordCounter`."""

    def token_ends(self, text: str) -> Sequence[int]:
        """Where each token of a text ends: the number of characters up to it, rising."""
        ...


class WordCounter:
    """Counts words and punctuation marks, for agents whose tokenizer is not at hand.

    >>> WordCounter().token_ends("Lima, Peru")
    [4, 5, 10]
    """

    def token_ends(self, text: str) -> list[int]:
        """Where each word or punctuation mark ends."""
        return [found.end() for found in re.finditer(r"\w+|[^\w\s]", text)]


@dataclass(frozen=True)
class Budgets:
    """Limits of an episode; None for no limit.

    What is counted of an observation is the text of its documents, or of a tool's result; titles,
    tags and the mark of a cut come on top.

    Args:
        document_tokens: Tokens of a document.
        observation_tokens: Tokens of an observation; the calls of one turn share it evenly. The
            document that crosses the limit is cut, and those after it are left out.
        episode_tokens: Tokens of the transcript. Observations are cut to what is left of it. Once
            it is used up no call is carried out, and the next turn is the last one.
        turns: Turns of an attempt.
        seconds: Seconds from the reset. A turn that comes later is the last one: its answer
            counts, its calls are not carried out.
        snippet_tokens: Tokens of a document among the results of a search; whole documents come
            from the tool ``get_document``.

    Raises:
        ValueError: If a limit is not a positive number, or not whole except for seconds.
    """

    document_tokens: int | None = None
    observation_tokens: int | None = None
    episode_tokens: int | None = None
    turns: int | None = None
    seconds: float | None = None
    snippet_tokens: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.name != "seconds"
            kinds = int if whole else (int, float)
            if value is None:
                continue
            if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < inf:
                kind = "whole number of at least 1" if whole else "number above 0"
                raise ValueError(f"{field.name} must be a {kind} or None, got {value!r}")

    @cached_property
    def cuts(self) -> bool:
        """Whether any text may be cut."""
        limits = (self.document_tokens, self.observation_tokens, self.episode_tokens)
        return any(limit is not None for limit in (*limits, self.snippet_tokens))


@dataclass(frozen=True)
class Room:
    """What one result may hold, in tokens.

    Args:
        document: Of each document, and what for.
        result: Of the whole result, and what for.
    """

    document: tuple[float, Budget] = (inf, "document")
    result: tuple[float, Budget] = (inf, "observation")

    def fit(
        self, documents: Sequence[Document], counter: TokenCounter
    ) -> tuple[tuple[Document, ...], tuple[Budget, ...]]:
        """The documents as far as they fit, and for which budgets something was cut.

        A document that was cut keeps its text in ``whole``. If documents were left out, the last
        one that is there has the mark, too.

        >>> documents = [Document("1", "", "Lima is big."), Document("2", "", "So is Quito.")]
        >>> shown, hit = Room(result=(6, "observation")).fit(documents, WordCounter())
        >>> [document.text for document in shown], hit
        (['Lima is big.', 'So is [cut]'], ('observation',))
        """
        left, for_result = self.result
        shown: list[Document] = []
        hit: dict[Budget, None] = {}
        for document in documents:
            if left <= 0:
                hit[for_result] = None
                if not shown[-1].text.endswith(CUT):
                    shown[-1] = _shortened(shown[-1], shown[-1].text)
                break
            most, budget = self.document if self.document[0] <= left else (left, for_result)
            # The mark of an earlier cut, which evidence from the pool has, is no part of the text.
            text = document.text if document.whole is None else document.text.removesuffix(CUT)
            ends = [] if most == inf else counter.token_ends(text)
            if len(ends) > most:
                document = _shortened(document, text[: ends[int(most) - 1]])
                hit[budget] = None
            left -= min(len(ends), most)
            shown.append(document)
        return tuple(shown), tuple(hit)


def _shortened(document: Document, text: str) -> Document:
    whole = document.text if document.whole is None else document.whole
    if text + CUT == document.text and document.whole is not None:
        return document  # evidence of the pool was cut to the same length before
    return Document(document.id, document.title, text + CUT, document.score, whole)


def room_for(budgets: Budgets, left: float, calls: int = 1, *, snippets: bool = False) -> Room:
    """What the result of one call may hold.

    Args:
        budgets: The limits.
        left: Tokens that are left of the episode's budget.
        calls: Calls of the turn.
        snippets: Whether its documents are results of a search, not whole documents on request.
    """
    document: tuple[float, Budget] = (budgets.document_tokens or inf, "document")
    if snippets and budgets.snippet_tokens is not None:
        document = min(document, (budgets.snippet_tokens, "snippet"), key=lambda limit: limit[0])
    observation: tuple[float, Budget] = (budgets.observation_tokens or inf, "observation")
    result = min(observation, (left, "episode"), key=lambda limit: limit[0])
    share = result[0] if result[0] == inf else max(1, int(result[0]) // calls)
    return Room(document, (share, result[1]))
