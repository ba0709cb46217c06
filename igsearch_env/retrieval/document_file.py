"""Documents in a file that is read where they are needed, not as a whole."""

from __future__ import annotations

import hashlib
import json
import mmap
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from igsearch_env.data.corpus import document_of
from igsearch_env.data.rows import Row
from igsearch_env.episode import Document
from igsearch_env.retrieval.index_directory import (
    MANIFEST,
    UNREADABLE,
    CorruptIndexError,
    IndexFiles,
)

DOCUMENTS = "documents.jsonl"
OFFSETS = "documents.offsets.npy"


class DocumentFile:
    """Documents of a folder, by number; any number of threads may read at once.

    The documents lie in ``documents.jsonl``, one a line, with any columns that
    :func:`igsearch_env.data.corpus.read_corpus` knows; ``documents.offsets.npy`` holds where each
    begins, in bytes, shape (documents + 1,).

    Args:
        folder: A folder that :meth:`write` has filled.

    Raises:
        CorruptIndexError: If the two files do not fit together.
    """

    def __init__(self, folder: Path) -> None:
        file = folder / DOCUMENTS
        try:
            self._offsets = np.asarray(np.load(folder / OFFSETS, mmap_mode="r"))
            with file.open("rb") as opened:
                self._bytes = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except UNREADABLE as error:
            raise CorruptIndexError(f"cannot read {file} and its offsets: {error}") from error
        offsets = self._offsets
        if offsets.ndim != 1 or offsets.size < 2 or offsets[-1] != len(self._bytes):
            raise CorruptIndexError(
                f"{folder / OFFSETS} does not fit {file}, which has {len(self._bytes)} bytes; "
                "build the index again"
            )
        self._file = file

    @staticmethod
    def write(documents: Iterable[Document], folder: Path) -> None:
        """Write documents, without their scores, into a folder."""
        offsets = array("q", [0])  # 8 bytes a document
        with (folder / DOCUMENTS).open("wb") as file:
            for doc in documents:
                offsets.append(offsets[-1] + file.write(_line(doc)))
        np.save(folder / OFFSETS, np.frombuffer(offsets, dtype=np.int64))

    @staticmethod
    def write_offsets(folder: Path) -> None:
        """Write where the documents begin in a ``documents.jsonl`` that is in the folder."""
        offsets, place = array("q"), 0
        with (folder / DOCUMENTS).open("rb") as lines:
            for line in lines:
                if line.strip():
                    offsets.append(place + (len(BOM_UTF8) if line.startswith(BOM_UTF8) else 0))
                place += len(line)
        offsets.append(place)
        np.save(folder / OFFSETS, np.frombuffer(offsets, dtype=np.int64))

    @staticmethod
    def sha256(documents: Iterable[Document]) -> str:
        """The hash that ``documents.jsonl`` has, or would have, with these documents."""
        digest = hashlib.sha256()
        for doc in documents:
            digest.update(_line(doc))
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of the files: Windows renames no folder of which a file is mapped."""
        self._bytes.close()
        del self._offsets

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> Document:
        """Read one document.

        Raises:
            IndexError: If there is no document of that number.
            CorruptIndexError: If it cannot be read.
        """
        row = Row(self.row(number), number, "its row")
        try:
            return document_of(row)
        except ValueError as error:
            raise CorruptIndexError(
                f"document {number} of {self._file} is damaged ({error}); build the index again"
            ) from error

    def row(self, number: int) -> dict[str, Any]:
        """Read the columns of one document, as its file has them.

        Raises:
            IndexError: If there is no document of that number.
            CorruptIndexError: If it cannot be read.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"no document {number}; the corpus has {len(self)}, from 0")
        start, end = self._offsets[number], self._offsets[number + 1]
        try:
            row = json.loads(self._bytes[start:end])
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, got {type(row).__name__}")
        except (ValueError, RecursionError) as error:
            raise CorruptIndexError(
                f"document {number} of {self._file} is damaged ({error}); build the index again"
            ) from error
        return row

    def __iter__(self) -> Iterator[Document]:
        """Read all documents in order."""
        return (self[number] for number in range(len(self)))


class HoldsDocuments:
    """What the retrievers of one corpus share: its documents, their hash and their number.

    Args:
        documents: The documents in the order of the corpus.
        files: The files of the saved index that they were loaded from, if there is one.
    """

    def __init__(
        self, documents: tuple[Document, ...] | DocumentFile, files: IndexFiles | None
    ) -> None:
        self._documents = documents
        self._files = files

    @property
    def documents(self) -> Iterable[Document]:
        """The documents in the order of the corpus; those on disk are read as they are taken."""
        return self._documents

    @property
    def corpus_sha256(self) -> str:
        """A hash of the documents, the same for every index of the same corpus."""
        if self._files is None:
            return DocumentFile.sha256(self._documents)
        manifest = self._files.manifest
        if "corpus_sha256" in manifest:  # of an adopted corpus
            return str(manifest["corpus_sha256"])
        described = manifest["files"].get(DOCUMENTS, {})
        if "sha256" not in described:
            raise CorruptIndexError(
                f"{self._files.folder / MANIFEST} has no hash of {DOCUMENTS}; build the index again"
            )
        return str(described["sha256"])

    def __len__(self) -> int:
        """Number of documents in the corpus."""
        return len(self._documents)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    @contextmanager
    def _unchanged_files(self) -> Iterator[None]:
        """Search under this, so that no result comes from a file that is overwritten meanwhile.

        Raises:
            CorruptIndexError: If a file was.
        """
        if self._files is None:
            yield
            return
        self._files.check()  # before: what was cut off must not be read
        try:
            yield
        finally:
            self._files.check()


def _line(doc: Document) -> bytes:
    line = json.dumps({"id": doc.id, "title": doc.title, "text": doc.text}) + "\n"
    return line.encode("ascii")
