"""The words of documents as numbers, and a BM25 index of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from igsearch_env.episode import Document
from igsearch_env.retrieval.bm25s_alone import bm25s
from igsearch_env.words import search_terms

PASSES = 3
"""How often bm25s goes over the documents: their lengths, their words, their scores."""
_REPORTED = 1000


@dataclass(frozen=True)
class WordTable:
    """Words of documents.

    Args:
        numbers: The words of all documents in order, as places in the vocabulary, shape (words,).
        lengths: How many words each document has, shape (documents,).
        vocabulary: Every word once, in the order in which they first occur.
    """

    numbers: NDArray[np.int32]
    lengths: NDArray[np.int32]
    vocabulary: tuple[str, ...]

    @classmethod
    def of(cls, documents: Iterable[Document], title_weight: int) -> Self:
        """Take documents apart, the words of a title ``title_weight`` times."""
        vocabulary: dict[str, int] = {}
        numbers: list[NDArray[np.int32]] = []
        for doc in documents:
            every = search_terms(doc.title) * title_weight + search_terms(doc.text)
            row = [vocabulary.setdefault(word, len(vocabulary)) for word in every]
            numbers.append(np.array(row, dtype=np.int32))
        lengths = np.array([len(row) for row in numbers], dtype=np.int32)
        return cls(_concatenated(numbers), lengths, tuple(vocabulary))

    @classmethod
    def joined(cls, tables: Iterable[Self]) -> Self:
        """The table of all documents from those of their parts, in order."""
        vocabulary: dict[str, int] = {}
        numbers, lengths = [], []
        for table in tables:
            places = [vocabulary.setdefault(word, len(vocabulary)) for word in table.vocabulary]
            numbers.append(np.array(places, dtype=np.int32)[table.numbers])
            lengths.append(table.lengths)
        return cls(_concatenated(numbers), _concatenated(lengths), tuple(vocabulary))


def check_bm25(k1: float, b: float, title_weight: int) -> None:
    """Check the parameters of BM25.

    Raises:
        ValueError: If one is out of range.
    """
    if not k1 >= 0 or not 0 <= b <= 1 or title_weight < 1:
        raise ValueError(
            "BM25 needs k1 >= 0, 0 <= b <= 1 and title_weight >= 1, "
            f"got {k1}, {b} and {title_weight}"
        )


def index_words(
    table: WordTable,
    k1: float,
    b: float,
    show_progress: bool = False,
    advance: Callable[[int], None] = lambda rows: None,
) -> Any:
    """A bm25s index in Lucene's variant.

    Args:
        table: The words of the documents.
        k1: See :class:`BM25Retriever`.
        b: See :class:`BM25Retriever`.
        show_progress: Whether bm25s shows bars of its own.
        advance: Called with how many documents were gone over since its last call, in
            :data:`PASSES` passes.

    Raises:
        ValueError: If there is no word.
    """
    if not table.vocabulary:
        raise ValueError(
            f"none of the {len(table.lengths)} documents has a word; there is nothing to index"
        )
    index = bm25s.BM25(k1=k1, b=b, method="lucene")
    vocabulary = {word: number for number, word in enumerate(table.vocabulary)}
    index.index(
        (_Rows(table, advance), vocabulary), create_empty_token=False, show_progress=show_progress
    )
    return index


class _Rows(list[list[int]]):
    """Words of each document; a list, as bm25s asks for, that makes its rows as they are read."""

    def __init__(self, table: WordTable, advance: Callable[[int], None]) -> None:
        super().__init__()
        self._advance = advance
        self._numbers = table.numbers
        self._ends = np.cumsum(table.lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        for number, end in enumerate(self._ends, start=1):
            yield self._numbers[start:end].tolist()
            start = end
            if number % _REPORTED == 0:
                self._advance(_REPORTED)


def _concatenated(arrays: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)
