"""The kinds of index that can be built of a large corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


class BM25Recipe:
    """BM25, with the parameters of :meth:`BM25Retriever.build`."""

    format = bm25.FORMAT
    version = bm25.VERSION
    passes = PASSES

    def __init__(self, k1: float = 0.9, b: float = 0.4, title_weight: int = 2) -> None:
        check_bm25(k1, b, title_weight)
        self.parameters: dict[str, Any] = {
            "k1": k1,
            "b": b,
            "title_weight": title_weight,
            "word_rule": WORD_RULE,
        }

    def shard(self, documents: Sequence[Document]) -> Arrays:
        """The words of some passages."""
        table = WordTable.of(documents, self.parameters["title_weight"])
        vocabulary = "\n".join(table.vocabulary).encode("utf-8")  # no word holds a line end
        return {
            "numbers": table.numbers,
            "lengths": table.lengths,
            "vocabulary": np.frombuffer(vocabulary, dtype=np.uint8),
        }

    def finish(
        self,
        shards: Callable[[], Iterator[Arrays]],
        passages: int,
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
        index_words(table, self.parameters["k1"], self.parameters["b"], advance=advance).save(
            folder
        )


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
        """The vectors of some passages."""
        return {"vectors": self._encoder.encode_passages(documents)}

    def finish(
        self,
        shards: Callable[[], Iterator[Arrays]],
        passages: int,
        folder: Path,
        advance: Callable[[int], None],
    ) -> None:
        """Put all vectors into the index, and write it."""
        index = build_vector_index(
            lambda: (shard["vectors"] for shard in shards()),
            passages,
            self.parameters["factory"],
            advance,
        )
        set_search(index, self.parameters["search"])
        write_vector_index(index, folder)
