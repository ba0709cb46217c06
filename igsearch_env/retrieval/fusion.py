"""Hybrid retrieval: the rankings of several retrievers fused into one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Self

from igsearch_env.episode import Document
from igsearch_env.retrieval.base import IndexedRetriever, check_search


class FusionRetriever:
    """Reciprocal-rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009).

    The score of a document is the sum of 1 / (constant + rank) over the retrievers that have it
    among their best ``depth``, ranks counted from 1. Scores of different retrievers need not
    compare; only their order counts.

    Args:
        retrievers: What to fuse, at least one, all of the same corpus.
        constant: How much the first ranks stand out; small values trust them more.
        depth: How many documents of each retriever are fused (more where more are asked for).

    Raises:
        ValueError: If there is no retriever, they search different corpora, or a number is out of
            range.
    """

    def __init__(
        self, retrievers: Sequence[IndexedRetriever], constant: int = 60, depth: int = 100
    ) -> None:
        if not retrievers:
            raise ValueError("fusion needs at least one retriever, got none")
        if constant < 0:
            raise ValueError(f"constant must be at least 0, got {constant}")
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if len({retriever.corpus_sha256 for retriever in retrievers}) > 1:
            raise ValueError(
                "the retrievers to fuse search different corpora; build their indexes from one"
            )
        self.retrievers = tuple(retrievers)
        self.constant = constant
        self.depth = depth

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Find the best documents for each query.

        Args:
            queries: The queries; may be empty.
            k: How many documents to return for each at most, from 1 to the size of the corpus.

        Returns:
            One list per query, best first, with fused scores; ties in the order of the first
            retriever that found them.

        Raises:
            ValueError: If ``k`` is out of range, or ``queries`` is a single string.
            RetrievalError: If a retriever failed.
        """
        check_search(queries, k, len(self))
        depth = min(max(self.depth, k), len(self))
        rankings = [retriever.search(queries, depth) for retriever in self.retrievers]
        return [self._fuse(found, k) for found in zip(*rankings, strict=True)]

    def _fuse(self, rankings: Sequence[Sequence[Document]], k: int) -> list[Document]:
        scores: defaultdict[str, float] = defaultdict(float)
        documents: dict[str, Document] = {}
        for ranking in rankings:
            for rank, document in enumerate(ranking, start=1):
                scores[document.id] += 1.0 / (self.constant + rank)
                documents.setdefault(document.id, document)
        best = sorted(documents.values(), key=lambda document: -scores[document.id])[:k]
        return [Document(doc.id, doc.title, doc.text, scores[doc.id]) for doc in best]

    @property
    def parameters(self) -> dict[str, Any]:
        """What the results depend on besides the corpus, as JSON-ready data."""
        return {
            "constant": self.constant,
            "depth": self.depth,
            "retrievers": [retriever.parameters for retriever in self.retrievers],
        }

    @property
    def documents(self) -> Iterable[Document]:
        """The documents in the order of the corpus."""
        return self.retrievers[0].documents

    @property
    def corpus_sha256(self) -> str:
        """A hash of the documents, the same for every index of the same corpus."""
        return self.retrievers[0].corpus_sha256

    def __len__(self) -> int:
        """Number of documents in the corpus."""
        return len(self.retrievers[0])

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self
