"""The kinds of index that can be built of a large corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from igsearch_env.episode import Document
from igsearch_env.retrieval import bm25, dense
from igsearch_env.retrieval.building import Arrays
from igsearch_env.retrieval.encoder import SentenceEncoder
from igsearch_env.retrieval.vector_index import (
    build_vector_index,
    empty_vector_index,
    set_search,
    write_vector_index,
)
from igsearch_env.retrieval.word_table import WordTable, check_bm25, write_index
from igsearch_env.words import WORD_RULE


@dataclass(frozen=True)
class BM25Recipe:
    """BM25, as :meth:`BM25Retriever.build` makes it.

    Args:
        k1: How slowly repeated words saturate, at least 0.
        b: How much long documents are discounted, from 0 to 1.
        title_weight: How often the words of a title count, at least 1.
    """

    k1: float = 0.9
    b: float = 0.4
    title_weight: int = 2

    format = bm25.FORMAT
    version = bm25.VERSION
    passes = 2
    shard_size = 32_768

    def __post_init__(self) -> None:
        check_bm25(self.k1, self.b, self.title_weight)

    @property
    def parameters(self) -> dict[str, Any]:
        """What the index depends on besides the corpus, as JSON-ready data."""
        return asdict(self) | {"word_rule": WORD_RULE}

    def shard(self, documents: Sequence[Document]) -> Arrays:
        """Which of some documents have each word, and how often."""
        return WordTable.of(documents, self.title_weight).postings()

    def finish(
        self,
        shards: Callable[[], Iterator[Arrays]],
        count: int,
        folder: Path,
        advance: Callable[[int], None],
    ) -> None:
        """Score all words, and write the index."""
        write_index(shards, count, folder, self.k1, self.b, advance)


class DenseRecipe:
    """Vectors of an encoder, in an index that a FAISS factory string describes.

    Args:
        encoder: Makes the vectors.
        factory: See :func:`build_vector_index`.
        search: How thoroughly the index is searched; None for a default.
    """

    format = dense.FORMAT
    version = dense.VERSION
    passes = 1
    shard_size = 1024

    def __init__(
        self, encoder: SentenceEncoder, factory: str = "Flat", search: str | None = None
    ) -> None:
        self._encoder = encoder
        self.parameters = dense.dense_parameters(encoder, factory, search)
        empty_vector_index(encoder.dimension, factory, self.parameters["search"])  # fails early

    def shard(self, documents: Sequence[Document]) -> Arrays:
        """The vectors of some documents."""
        return {"vectors": self._encoder.encode_documents(documents)}

    def finish(
        self,
        shards: Callable[[], Iterator[Arrays]],
        count: int,
        folder: Path,
        advance: Callable[[int], None],
    ) -> None:
        """Put all vectors into the index, and write it."""
        index = build_vector_index(
            lambda: (shard["vectors"] for shard in shards()),
            count,
            self.parameters["factory"],
            advance,
        )
        set_search(index, self.parameters["search"])
        write_vector_index(index, folder)
