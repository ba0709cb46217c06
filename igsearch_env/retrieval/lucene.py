"""BM25 indexes that Pyserini or Anserini have built, as they are."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from igsearch_env.data.corpus import document_of
from igsearch_env.data.rows import Row
from igsearch_env.episode import Document
from igsearch_env.extras import import_extra
from igsearch_env.retrieval.base import check_search
from igsearch_env.retrieval.index_directory import CorruptIndexError
from igsearch_env.text import clean_text, read_json


def is_lucene(folder: Path) -> bool:
    """Whether a folder holds an index of Lucene."""
    return folder.is_dir() and any(folder.glob("segments_*"))


class LuceneRetriever:
    """Searches an index of Lucene with Pyserini, by BM25 with Pyserini's parameters.

    Any number of threads may use it; they take turns.

    Args:
        folder: The index. It must hold the documents as they were indexed (``-storeRaw``), in JSON
            with ``contents``, or ``title`` and ``text``.

    Raises:
        ImportError: If the extra ``lucene`` is not installed.
        CorruptIndexError: If Lucene cannot open it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        library = import_extra("pyserini.search.lucene", "lucene")
        try:
            self._searcher: Any = library.LuceneSearcher(str(self.folder))
        except Exception as error:  # Java's exceptions
            raise CorruptIndexError(f"Lucene cannot open {folder} ({error})") from error
        self._lock = threading.Lock()

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Find the best documents for each query.

        Args:
            queries: The queries; may be empty.
            k: How many documents to return for each at most, from 1 to the size of the corpus.

        Returns:
            One list per query, best first, with BM25 scores.

        Raises:
            ValueError: If ``k`` is out of range, or ``queries`` is a single string.
            CorruptIndexError: If the index does not hold a document as it was indexed.
        """
        check_search(queries, k, len(self))
        with self._lock:
            return [self._search(clean_text(query), k) for query in queries]

    def _search(self, query: str, k: int) -> list[Document]:
        hits = self._searcher.search(query, k) if query.strip() else []
        return [self._document(str(hit.docid), float(hit.score)) for hit in hits]

    def _document(self, name: str, score: float) -> Document:
        stored = self._searcher.doc(name)
        raw = stored.raw() if stored is not None else None
        if raw is None:
            raise CorruptIndexError(
                f"the index in {self.folder} does not hold document {name!r} as it was indexed; "
                "build it with -storeRaw"
            )
        columns = read_json(raw)
        row = Row({"id": name, **columns}, 0, f"{self.folder}, document {name!r}")
        found = document_of(row)
        return Document(name, found.title, found.text, score)

    def __len__(self) -> int:
        """Number of documents in the corpus."""
        return int(self._searcher.num_docs)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.folder,)
