"""The words of documents as numbers, and BM25 indexes of them.

:func:`index_words` makes an index in memory, with bm25s. :func:`write_index` makes the same files
from shards, for corpora whose words do not fit into memory: the scores of a document need only its
own words, how many documents have each word, and the mean length.
"""

from __future__ import annotations

import math
import mmap
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from igsearch_env.episode import Document
from igsearch_env.retrieval.bm25s_alone import bm25s
from igsearch_env.retrieval.index_directory import NothingToIndexError
from igsearch_env.words import search_terms

BLOCK = 1 << 26
"""Postings (pairs of a word and a document with it) that :func:`write_index` holds at once."""
DATA, INDICES = "data.csc.index.npy", "indices.csc.index.npy"
WORDS, WORD_OFFSETS = "words.txt", "words.offsets.npy"
_VOCABULARY = "vocab.index.json"


@dataclass(frozen=True)
class WordTable:
    """Words of documents.

    Args:
        numbers: The words of all documents in order, as places in the vocabulary, shape (words,).
        lengths: How many words each document has, shape (documents,).
        vocabulary: Every word once, sorted.
    """

    numbers: NDArray[np.int32]
    lengths: NDArray[np.int32]
    vocabulary: tuple[str, ...]

    @classmethod
    def of(cls, documents: Iterable[Document], title_weight: int) -> Self:
        """Take documents apart, the words of a title ``title_weight`` times."""
        found: dict[str, int] = {}
        rows: list[NDArray[np.int32]] = []
        for doc in documents:
            every = search_terms(doc.title) * title_weight + search_terms(doc.text)
            row = [found.setdefault(word, len(found)) for word in every]
            rows.append(np.array(row, dtype=np.int32))
        lengths = np.array([len(row) for row in rows], dtype=np.int32)
        vocabulary = tuple(sorted(found))
        places = np.empty(len(found), dtype=np.int32)
        places[[found[word] for word in vocabulary]] = np.arange(len(found), dtype=np.int32)
        numbers = np.concatenate(rows) if rows else np.empty(0, dtype=np.int32)
        return cls(places[numbers], lengths, vocabulary)

    def postings(self) -> dict[str, NDArray[Any]]:
        """Which documents have each word, and how often; what a shard of a build holds.

        Returns:
            ``starts``, where the postings of each word begin, shape (vocabulary + 1,); ``docs``,
            documents by number, and ``counts``, how often the word is in each, shape (postings,);
            ``lengths``; and ``vocabulary`` in UTF-8, with line ends between words.
        """
        size = max(len(self.lengths), 1)
        docs = np.repeat(np.arange(size, dtype=np.int64)[: len(self.lengths)], self.lengths)
        pairs, counts = np.unique(self.numbers * np.int64(size) + docs, return_counts=True)
        places = np.arange(len(self.vocabulary) + 1, dtype=np.int64) * size
        text = "\n".join(self.vocabulary).encode("utf-8")  # no word holds a line end
        return {
            "starts": np.searchsorted(pairs, places).astype(np.int32),
            "docs": (pairs % size).astype(np.min_scalar_type(size)),
            "counts": counts.astype(np.min_scalar_type(int(counts.max(initial=0)))),
            "lengths": self.lengths,
            "vocabulary": np.frombuffer(text, dtype=np.uint8),
        }


class WordFile(Mapping[str, int]):
    """The vocabulary of an index on disk: from a word to its number, read where it is needed.

    Args:
        folder: A folder that :func:`write_words` has filled.

    Raises:
        ValueError: If the two files do not fit together.
    """

    def __init__(self, folder: Path) -> None:
        self._offsets = np.asarray(np.load(folder / WORD_OFFSETS, mmap_mode="r"))
        with (folder / WORDS).open("rb") as opened:
            self._bytes = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        offsets = self._offsets
        if offsets.ndim != 1 or offsets.size < 2 or offsets[-1] != len(self._bytes):
            raise ValueError(f"{WORD_OFFSETS} does not fit {WORDS}")

    def _word(self, number: int) -> bytes:
        return self._bytes[self._offsets[number] : self._offsets[number + 1] - 1]

    def __getitem__(self, word: str) -> int:
        """The number of a word; UTF-8 sorts as strings do, by code points."""
        wanted = word.encode("utf-8")
        number = bisect_left(range(len(self)), wanted, key=self._word)
        if number == len(self) or self._word(number) != wanted:
            raise KeyError(word)
        return number

    def __iter__(self) -> Iterator[str]:
        return (self._word(number).decode("utf-8") for number in range(len(self)))

    def __len__(self) -> int:
        return len(self._offsets) - 1


def write_words(words: Iterable[str], folder: Path) -> None:
    """Write a sorted vocabulary: one word a line, and where each line begins, in bytes."""
    with (folder / WORDS).open("wb") as file:
        sizes = np.fromiter((file.write(f"{word}\n".encode()) for word in words), dtype=np.int64)
    np.save(folder / WORD_OFFSETS, np.concatenate([[0], np.cumsum(sizes)]))


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


def index_words(table: WordTable, k1: float, b: float, show_progress: bool = False) -> Any:
    """A bm25s index in Lucene's variant.

    Args:
        table: The words of the documents.
        k1: See :class:`BM25Retriever`.
        b: See :class:`BM25Retriever`.
        show_progress: Whether bm25s shows bars of its own.

    Raises:
        ValueError: If there is no word.
    """
    _check_words(table.vocabulary, len(table.lengths))
    index = bm25s.BM25(k1=k1, b=b, method="lucene")
    vocabulary = {word: number for number, word in enumerate(table.vocabulary)}
    index.index((_Rows(table), vocabulary), create_empty_token=False, show_progress=show_progress)
    return index


def save_index(index: Any, words: Iterable[str], folder: Path) -> None:
    """Write a bm25s index and its vocabulary, which :class:`WordFile` reads, into a folder."""
    index.save(folder, show_progress=False)
    (folder / _VOCABULARY).unlink()  # it would have to be read as a whole
    write_words(words, folder)


def write_index(
    shards: Callable[[], Iterator[Mapping[str, NDArray[Any]]]],
    count: int,
    folder: Path,
    k1: float,
    b: float,
    advance: Callable[[int], None],
) -> None:
    """Write the index of all shards, as :func:`index_words` and :func:`save_index` would.

    It goes over the shards once to count words, and then once for each :data:`BLOCK` of postings,
    for the words in turn. In memory are one shard, one block, the vocabulary, and the length of
    each document.

    Args:
        shards: Reads the postings of each shard (:meth:`WordTable.postings`), in order.
        count: Number of documents.
        folder: Where the files go.
        k1: See :class:`BM25Retriever`.
        b: See :class:`BM25Retriever`.
        advance: Called with how many documents were gone over since its last call, in two passes.

    Raises:
        ValueError: If there is no word.
    """
    numbers: dict[str, int] = {}  # first, how many documents have each word
    lengths = np.empty(count, dtype=np.int32)
    done = 0
    for shard in shards():
        having = np.diff(shard["starts"]).tolist()
        for word, documents in zip(_vocabulary(shard), having, strict=True):
            numbers[word] = numbers.get(word, 0) + documents
        size = len(shard["lengths"])
        lengths[done : done + size] = shard["lengths"]
        done += size
        advance(size)
    _check_words(numbers, count)
    words = sorted(numbers)
    having_word = np.array([numbers[word] for word in words], dtype=np.int64)
    numbers.update((word, number) for number, word in enumerate(words))
    starts = np.concatenate([[0], np.cumsum(having_word)])
    idf = _idf(having_word, count)
    norm = k1 * ((1 - b) + b * lengths / lengths.mean())

    index = bm25s.BM25(k1=k1, b=b, method="lucene")
    empty = {"data": np.empty(0, np.float32), "indices": np.empty(0, np.int32)}
    index.scores = {**empty, "indptr": starts, "num_docs": count}
    index.vocab_dict, index.nonoccurrence_array = {}, None
    save_index(index, words, folder)
    with (folder / DATA).open("wb") as data, (folder / INDICES).open("wb") as indices:
        for file, dtype in ((data, "<f4"), (indices, "<i4")):
            header = {"descr": dtype, "fortran_order": False, "shape": (int(starts[-1]),)}
            np.lib.format.write_array_header_1_0(file, header)
        low = passed = 0
        while low < len(words):
            high = int(np.searchsorted(starts, starts[low] + BLOCK, "right")) - 1
            high = max(high, low + 1)
            scores = np.empty(starts[high] - starts[low], dtype=np.float32)
            docs = np.empty(len(scores), dtype=np.int32)
            heads = starts[low:high] - starts[low]  # where the next posting of each word goes
            done = 0
            for shard in shards():
                own = _vocabulary(shard)
                first = bisect_left(own, words[low])
                last = len(own) if high == len(words) else bisect_left(own, words[high])
                places = np.array([numbers[word] for word in own[first:last]], dtype=np.int64) - low
                begins = shard["starts"][first : last + 1].astype(np.int64)
                own_docs = shard["docs"][begins[0] : begins[-1]].astype(np.int32) + done
                counts = shard["counts"][begins[0] : begins[-1]].astype(np.float32)
                each = np.diff(begins)
                to = np.repeat(heads[places] - begins[:-1], each) + np.arange(begins[0], begins[-1])
                share = counts / (norm[own_docs] + counts)
                scores[to] = np.repeat(idf[low + places], each) * share
                docs[to] = own_docs
                heads[places] += each
                done += len(shard["lengths"])
            scores.tofile(data)
            docs.tofile(indices)
            low = high
            share_done = int(count * starts[high] // starts[-1])
            advance(share_done - passed)
            passed = share_done


def _vocabulary(shard: Mapping[str, NDArray[Any]]) -> list[str]:
    text = shard["vocabulary"].tobytes().decode("utf-8")
    return text.split("\n") if text else []


def _check_words(words: Sequence[str] | Mapping[str, int], documents: int) -> None:
    if not words:
        raise NothingToIndexError(
            f"none of the {documents} documents has a word; there is nothing to index"
        )


def _idf(having_word: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Inverse document frequencies in Lucene's variant, in the arithmetic of bm25s."""
    values, places = np.unique(having_word, return_inverse=True)
    logs = [math.log(1 + (count - df + 0.5) / (df + 0.5)) for df in values.tolist()]
    return np.array(logs, dtype=np.float32)[places]


class _Rows(list[list[int]]):
    """Words of each document; a list, as bm25s asks for, that makes its rows as they are read."""

    def __init__(self, table: WordTable) -> None:
        super().__init__()
        self._numbers = table.numbers
        self._ends = np.cumsum(table.lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        for end in self._ends:
            yield self._numbers[start:end].tolist()
            start = end
