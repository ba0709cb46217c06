"""BM25: search by words, with an index that is built in memory or read from disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from igsearch_env.episode import Document
from igsearch_env.retrieval.base import check_search
from igsearch_env.retrieval.bm25s_alone import bm25s
from igsearch_env.retrieval.document_file import DocumentFile, HoldsDocuments
from igsearch_env.retrieval.index_directory import (
    UNREADABLE,
    CorruptIndexError,
    IndexFiles,
    check_unreplaced,
    replacing_directory,
    write_manifest,
)
from igsearch_env.retrieval.word_table import (
    WordFile,
    WordTable,
    check_bm25,
    index_words,
    save_index,
)
from igsearch_env.words import WORD_RULE, query_words

FORMAT = "igsearch-env bm25"
VERSION = 3


class BM25Retriever(HoldsDocuments):
    """Ranks documents by BM25 in Lucene's variant, over title and text.

    The score of a document d for the words q of a query, where tf counts q in d, df counts the
    documents with q, N counts all documents, and the length ``|d|`` is in words::

        sum over q of idf * tf / (tf + k1 * (1 - b + b * |d| / mean)),
        idf = ln(1 + (N - df + 1/2) / (df + 1/2))

    >>> documents = [Document("1", "Lima", "The capital of Peru."), Document("2", "Rome", "Italy")]
    >>> retriever = BM25Retriever.build(documents)
    >>> [[document.title for document in found] for found in retriever.search(["Peru", "Oslo"], 2)]
    [['Lima'], []]
    """

    def __init__(
        self,
        index: Any,
        words: Mapping[str, int],
        documents: tuple[Document, ...] | DocumentFile,
        title_weight: int,
        files: IndexFiles | None = None,
    ) -> None:
        """Put the parts together; use :meth:`build` or :meth:`load` instead."""
        super().__init__(documents, files)
        self._index = index
        self._words = words
        self.k1: float = index.k1
        self.b: float = index.b
        self.title_weight = title_weight

    @classmethod
    def build(
        cls,
        documents: Iterable[Document],
        k1: float = 0.9,
        b: float = 0.4,
        title_weight: int = 2,
        show_progress: bool = False,
    ) -> Self:
        """Index documents.

        Args:
            documents: The documents; their ids must be unique.
            k1: How slowly repeated words saturate, at least 0.
            b: How much long documents are discounted, from 0 to 1.
            title_weight: How often the words of a title count, at least 1. Questions name the
                entities that pages are titled after; 1 is the textbook formula.
            show_progress: Whether to show bars on stderr.

        Raises:
            ValueError: If there are no documents or none has a word, two have the same id, or a
                parameter is out of range.
        """
        check_bm25(k1, b, title_weight)
        kept = tuple(documents)
        if len({document.id for document in kept}) < len(kept):
            raise ValueError("two documents have the same id; document ids must be unique")
        index = index_words(WordTable.of(kept, title_weight), k1, b, show_progress)
        return cls(index, index.vocab_dict, kept, title_weight)

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Find the best documents for each query.

        Args:
            queries: The queries; may be empty.
            k: How many documents to return for each at most, from 1 to the size of the corpus;
                fewer where fewer have a word of the query.

        Returns:
            One list per query, best first, ties in the order of the corpus, with BM25 scores.

        Raises:
            ValueError: If ``k`` is out of range, or ``queries`` is a single string.
            CorruptIndexError: If a document on disk is damaged, or a file was overwritten.
        """
        check_search(queries, k, len(self))
        with self._unchanged_files():
            return [self._search(query, k) for query in queries]

    def _search(self, query: str, k: int) -> list[Document]:
        numbers = [self._words.get(word) for word in query_words(query)]
        word_ids = [number for number in numbers if number is not None]
        if not word_ids:
            return []
        scores = self._index.get_scores_from_ids(word_ids)  # (documents,)
        found = []
        for number in _best(scores, k):
            doc = self._documents[number]
            found.append(Document(doc.id, doc.title, doc.text, float(scores[number])))
        return found

    def save(self, path: str | Path) -> None:
        """Write the index to a folder, whole or not at all.

        Args:
            path: The folder; an index that is there already is replaced.

        Raises:
            FileExistsError: If something other than an index is there.
        """
        with replacing_directory(Path(path)) as folder:
            save_index(self._index, self._words, folder)
            DocumentFile.write(self._documents, folder)
            content = {"passages": len(self), "parameters": self.parameters}
            write_manifest(folder, FORMAT, VERSION, content)

    @classmethod
    def load(cls, path: str | Path, mmap: bool = True) -> Self:
        """Read an index that :meth:`save` wrote; it answers exactly as the saved one did.

        Args:
            path: The folder.
            mmap: Map the files into memory and read documents as they are found, which makes
                loading fast; of files above 16 MiB only the sizes are checked then. Otherwise
                read everything at once and check the hashes.

        Raises:
            CorruptIndexError: If a file is missing, damaged, or does not fit the others.
        """
        folder = Path(path)
        files = IndexFiles(folder, FORMAT, VERSION, check_hashes=not mmap)
        manifest = files.manifest
        parameters = manifest.get("parameters")
        rule = parameters.get("word_rule") if isinstance(parameters, dict) else None
        if rule != WORD_RULE:
            raise CorruptIndexError(
                f"{folder} was built by the word rule {rule!r}, and queries are taken apart by "
                f"{WORD_RULE!r}; build it again with igsearch index"
            )
        documents = DocumentFile(folder)
        try:
            index = bm25s.BM25.load(folder, mmap=mmap, load_vocab=False)
            words = WordFile(folder)
            title_weight = manifest["parameters"]["title_weight"]
            scores = index.scores
            for name in ("data", "indices", "indptr"):
                scores[name] = np.asarray(scores[name])  # slices of a memmap object are slow
            fits = (
                len(scores["indptr"]) == len(words) + 1
                and len(scores["data"]) == len(scores["indices"]) == scores["indptr"][-1]
                and scores["num_docs"] == len(documents) == manifest["passages"]
            )
        except UNREADABLE as error:
            raise CorruptIndexError(f"cannot read {folder} ({error}); build it again") from error
        if not fits:
            raise CorruptIndexError(f"the files in {folder} do not fit together; build it again")
        kept = documents if mmap else tuple(documents)
        files.check_same()
        known = words if mmap else {word: number for number, word in enumerate(words)}
        return cls(index, known, kept, title_weight, files if mmap else None)

    @property
    def parameters(self) -> dict[str, Any]:
        """What the results depend on besides the corpus, as JSON-ready data."""
        return {
            "k1": self.k1,
            "b": self.b,
            "title_weight": self.title_weight,
            "word_rule": WORD_RULE,
        }

    def __reduce__(self) -> tuple[object, ...]:
        if self._files is not None:  # another process maps the same files
            return _reload, (type(self), self._files.folder, self._files.manifest)
        return (type(self), (self._index, self._words, self._documents, self.title_weight))


def _reload(kind: type[BM25Retriever], folder: Path, manifest: dict[str, Any]) -> BM25Retriever:
    check_unreplaced(folder, manifest)
    return kind.load(folder)


def _best(scores: NDArray[np.float32], k: int) -> list[int]:
    """Numbers of the ``k`` highest positive scores, ties in order of number."""
    candidates = np.flatnonzero(scores)  # few of many: partitioning mostly equal scores is slow
    if len(candidates) > k:
        values = scores[candidates]
        candidates = candidates[values >= np.partition(values, -k)[-k]]
    order = np.argsort(-scores[candidates], kind="stable")[:k]
    return [int(number) for number in candidates[order]]
