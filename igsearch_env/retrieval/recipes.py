"""The kinds of index that can be built of a large corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
from igsearch_env.retrieval.word_table import PASSES, WordTable, check_bm25, index_words
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
    passes = PASSES

    def __post_init__(self) -> None:
        check_bm25(self.k1, self.b, self.title_weight)

    @property
    def parameters(self) -> dict[str, Any]:
        """What the index depends on besides the corpus, as JSON-ready data."""
        return asdict(self) | {"word_rule": WORD_RULE}

    def shard(self, documents: Sequence[Document]) -> Arrays:
        """The words of some documents."""
        table = WordTable.of(documents, self.title_weight)
        vocabulary = "\n".join(table.vocabulary).encode("utf-8")  # no word holds a line end
        return {
            "numbers": table.numbers,
            "lengths": table.lengths,
            "vocabulary": np.frombuffer(vocabulary, dtype=np.uint8),
        }

    def finish(
        self,
        shards: Callable[[], Iterator[Arrays]],
        count: int,
        folder: Path,
        advance: Callable[[int], None],
    ) -> None:
        """Score all words, and write the index."""
        table = WordTable.joined(
            WordTable(
                shard["numbers"],
                shard["lengths"],
                tuple(filter(None, shard["vocabulary"].tobytes().decode("utf-8").split("\n"))),
            )
            for shard in shards()
        )
        index_words(table, self.k1, self.b, advance=advance).save(folder)


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
