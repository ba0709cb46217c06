"""What a retriever is, and how it fails."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from igsearch_env.episode import Document


class RetrievalError(Exception):
    """A search that failed after its retries; the environment records it as a failed step.

    Args:
        message: What happened.
        found: Where only some of the queries failed: one entry per query, its documents or None.
            Left empty, all of them failed.
        refused: The places of those queries among them that failed because of what they are (too
            long, for instance) and would fail again: their turns are invalid, and the episode goes
            on. Those of other failed queries are left out of training.

    Attributes:
        found: The same, as a tuple.
        refused: The same, as a set.
    """

    def __init__(
        self,
        message: str = "",
        found: Sequence[Sequence[Document] | None] = (),
        refused: Iterable[int] = (),
    ) -> None:
        super().__init__(message)
        self.found = tuple(found)
        self.refused = frozenset(refused)


class Retriever(Protocol):
    """Finds documents for queries.

    An object that is handed to an environment should define ``__deepcopy__`` returning itself:
    Gymnasium copies the arguments of an environment each time its ``spec`` is read.
    """

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Search for several queries at once.

        Args:
            queries: The queries; may be empty.
            k: How many documents to return for each, at least 1.

        Returns:
            One list per query, best first, of at most ``k`` documents.

        Raises:
            RetrievalError: If the search failed for a reason outside of its arguments; it carries
                the documents of the queries that did not fail.
        """
        ...


@runtime_checkable
class IndexedRetriever(Retriever, Protocol):
    """A retriever that holds its corpus, as every saved index does."""

    @property
    def documents(self) -> Iterable[Document]:
        """The documents in the order of the corpus."""
        ...

    @property
    def corpus_sha256(self) -> str:
        """A hash of the documents, the same for every index of the same corpus."""
        ...

    @property
    def parameters(self) -> dict[str, Any]:
        """What the results depend on besides the corpus, as JSON-ready data."""
        ...

    def __len__(self) -> int:
        """Number of documents in the corpus."""
        ...


def fingerprint(retriever: Retriever) -> str | None:
    """Names what a retriever finds: 16 digits that change with its documents or parameters.

    None for a retriever that does not hold its documents.
    """
    if not isinstance(retriever, IndexedRetriever):
        return None
    what = [retriever.corpus_sha256, retriever.parameters]
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def check_alive(retriever: Retriever, query: str, k: int) -> None:
    """Search once, before work begins that is worth nothing without a retriever.

    Args:
        retriever: The retriever. One with a method ``check_ready``, which raises
            :class:`RetrievalError` if it is not, is asked that first.
        query: What to search for.
        k: How many documents are going to be asked for.

    Raises:
        ValueError: If it does not answer.
    """
    try:
        if hasattr(retriever, "check_ready"):
            retriever.check_ready()
        retriever.search([query], k)
    except RetrievalError as error:
        raise ValueError(
            f"the retriever does not answer a search ({error}); start it first (igsearch serve), "
            "or give another one"
        ) from error


def check_search(queries: Sequence[str], k: int, corpus_size: float = math.inf) -> None:
    """Check the arguments of a search.

    Args:
        queries: The queries.
        k: How many documents to return for each.
        corpus_size: How many documents there are, if that is known.

    Raises:
        ValueError: If ``k`` is out of range, or ``queries`` is a single string.
    """
    if isinstance(queries, str):
        raise ValueError(f"queries must be a sequence of strings, got {queries!r}; wrap it")
    if k < 1:
        raise ValueError(f"got k = {k}; set k to at least 1")
    if k > corpus_size:
        raise ValueError(f"got k = {k}; set k to at most {corpus_size}, the size of the corpus")
