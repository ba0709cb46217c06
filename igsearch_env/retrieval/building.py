"""Building the index of a corpus of any size: in shards, going on where a kill cut it short.

Beside the index, in ``NAME.partial``, lies what has been done: what is being built (``job.json``),
the documents (``index``), their hash once all are there (``corpus.json``), and one file for each
finished shard. Every file that counts is there whole or not at all, so a build may be killed at any
moment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from igsearch_env.episode import Document
from igsearch_env.files import sha256_of, write_json
from igsearch_env.retrieval.document_file import DOCUMENTS, OFFSETS, DocumentFile
from igsearch_env.retrieval.encoder import same_probe
from igsearch_env.retrieval.index_directory import (
    UNREADABLE,
    CorruptIndexError,
    NothingToIndexError,
    check_replaceable,
    place_of,
    read_manifest,
    swap_in,
    write_manifest,
)
from igsearch_env.text import read_json

_MARK = "belongs_to"
Arrays = Mapping[str, NDArray[Any]]


class Recipe(Protocol):
    """How an index of one kind is made.

    Attributes:
        format: Name of its format.
        version: Version of its format.
        passes: How often :meth:`finish` goes over the documents.
        shard_size: Documents per shard, where nothing else is asked for.
    """

    format: str
    version: int
    passes: int
    shard_size: int

    @property
    def parameters(self) -> dict[str, Any]:
        """What the index depends on besides the corpus, as JSON-ready data."""
        ...

    def shard(self, documents: Sequence[Document]) -> Arrays:
        """The part of the work on some documents that needs no others."""
        ...

    def finish(
        self,
        shards: Callable[[], Iterator[Arrays]],
        count: int,
        folder: Path,
        advance: Callable[[int], None],
    ) -> None:
        """Make the index from all shards, in order, and write its files into a folder."""
        ...


class Progress(Protocol):
    """Shows how a build gets on."""

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """A stage begins: its name, how much there is to do, if known, and how much is done."""
        ...

    def advance(self, amount: int) -> None:
        """So much more is done."""
        ...


@dataclass(frozen=True)
class IndexBuild:
    """One index to build.

    Args:
        documents: Starts reading the documents from the first one; their ids must be unique.
        out: Folder of the index.
        recipe: What to build.
        progress: Shows how the build gets on.
        shard_size: Documents per shard; a kill loses the work on one shard at most. None for that
            of the recipe: 32,768 for BM25, 1,024 for a dense index.

    Raises:
        ValueError: If ``shard_size`` is below 1.
    """

    documents: Callable[[], Iterable[Document]]
    out: Path
    recipe: Recipe
    progress: Progress
    shard_size: int | None = None

    def __post_init__(self) -> None:
        if self._size < 1:
            raise ValueError(f"shard_size must be at least 1, got {self._size}")
        object.__setattr__(self, "out", place_of(self.out))

    @property
    def _size(self) -> int:
        return self.recipe.shard_size if self.shard_size is None else self.shard_size

    @property
    def partial(self) -> Path:
        """Where an unfinished build lies."""
        return self.out.with_name(f"{self.out.name}.partial")

    def run(self, resume: bool = False) -> int:
        """Build the index, or what is missing of it.

        Args:
            resume: Go on with an unfinished build; if there is none, begin. An index of the same
                corpus and parameters that is there already is left as it is.

        Returns:
            How many documents the index has.

        Raises:
            FileExistsError: If there is an unfinished build and ``resume`` is not set, or something
                other than an index is at ``out``.
            ValueError: If what is there is of another corpus or other parameters, a document cannot
                be read, or the index cannot be made.
        """
        check_replaceable(self.out)  # before the work, not after it
        if self.partial.exists() and not resume:
            raise FileExistsError(
                f"{self.partial} holds an unfinished build; pass --resume to go on with it, or "
                "remove it to begin again"
            )
        index = self.partial / "index"
        if resume and not index.exists() and self.out.is_dir() and any(self.out.iterdir()):
            count = self._check_complete()
        else:
            self._check_job(index)
            documents = self._documents(index)
            try:
                self._make_shards(documents)
                count = len(documents)
            finally:
                documents.close()
            self._finish(index, count)
            swap_in(index, self.out, self.partial / "replaced")
        shutil.rmtree(self.partial, ignore_errors=True)
        return count

    def _job(self) -> dict[str, Any]:
        return {
            "format": self.recipe.format,
            "version": self.recipe.version,
            "parameters": self.recipe.parameters,
        }

    def _check_complete(self) -> int:
        manifest = read_manifest(
            self.out, self.recipe.format, self.recipe.version, check_hashes=False
        )
        _check_same(self.out, manifest, self._job())
        self._check_corpus(self.out, manifest["files"][DOCUMENTS]["sha256"])
        return int(manifest["passages"])

    def _check_job(self, index: Path) -> None:
        """Begin, or make sure that what was begun is what is to be built."""
        job = {**self._job(), "shard_size": self._size}
        file = self.partial / "job.json"
        index.mkdir(parents=True, exist_ok=True)
        if file.is_file():  # it stays as it is, since the shards are marked with it
            _check_same(self.partial, _read_object(file), job)
        else:
            write_json(file, job)

    def _check_corpus(self, folder: Path, sha256: object) -> None:
        """Make sure that the corpus is still the one that a folder was made from."""
        self.progress.stage("check corpus", None)
        if DocumentFile.sha256(self._counted(1000)) != sha256:
            raise ValueError(
                f"{folder} is of another corpus, or this one has changed since; choose another "
                "folder, or remove that one to begin again"
            )

    def _counted(self, every: int) -> Iterator[Document]:
        for number, document in enumerate(self.documents(), start=1):
            yield document
            if number % every == 0:
                self.progress.advance(every)

    def _documents(self, index: Path) -> DocumentFile:
        """The documents, copied into the index unless they are there already."""
        file = self.partial / "corpus.json"
        if file.is_file():
            written = _read_object(file)
            self._check_corpus(self.partial, written.get(DOCUMENTS))
            for name in (DOCUMENTS, OFFSETS):
                if not (index / name).is_file() or sha256_of(index / name) != written.get(name):
                    raise CorruptIndexError(
                        f"{index / name} is damaged; remove {self.partial} to begin again"
                    )
        else:
            self.progress.stage("read corpus", None)
            try:
                DocumentFile.write(self._counted(1000), index)
            except BaseException:  # nothing is done yet that a resumed build could use
                shutil.rmtree(self.partial, ignore_errors=True)
                raise
            write_json(file, {name: sha256_of(index / name) for name in (DOCUMENTS, OFFSETS)})
        return DocumentFile(index)

    def _mark(self, number: int) -> NDArray[np.str_]:
        """What a shard has in it, so that no other one is taken for it."""
        digest = hashlib.sha256(str(number).encode())
        for name in ("job.json", "corpus.json"):
            digest.update((self.partial / name).read_bytes())
        return np.array(digest.hexdigest())

    def _shard_file(self, number: int) -> Path:
        return self.partial / "shards" / f"{number:06d}.npz"

    def _make_shards(self, documents: DocumentFile) -> None:
        (self.partial / "shards").mkdir(exist_ok=True)
        starts = range(0, len(documents), self._size)
        sizes = [min(self._size, len(documents) - start) for start in starts]
        missing = [n for n in range(len(starts)) if not self._shard_file(n).is_file()]
        done = len(documents) - sum(sizes[number] for number in missing)
        self.progress.stage("make shards", len(documents), done)
        for number in missing:
            places = range(starts[number], starts[number] + sizes[number])
            shard = self.recipe.shard([documents[place] for place in places])
            arrays: dict[str, Any] = dict(shard) | {_MARK: self._mark(number)}
            unfinished = self._shard_file(number).with_suffix(".unfinished")
            with unfinished.open("wb") as opened:
                np.savez(opened, **arrays)
            os.replace(unfinished, self._shard_file(number))
            self.progress.advance(sizes[number])

    def _shards(self, count: int) -> Iterator[Arrays]:
        for number in range(count):
            file = self._shard_file(number)
            try:
                with np.load(file) as arrays:
                    shard = dict(arrays)
                if shard.pop(_MARK, None) != self._mark(number):
                    raise ValueError("it belongs elsewhere")
            except UNREADABLE as error:
                raise CorruptIndexError(
                    f"{file} is damaged ({error}); remove it, and go on with --resume"
                ) from error
            yield shard

    def _finish(self, index: Path, count: int) -> None:
        for file in index.iterdir():
            if file.name not in (DOCUMENTS, OFFSETS):
                file.unlink()
        shards = -(-count // self._size)
        self.progress.stage("build index", count * self.recipe.passes)
        try:
            self.recipe.finish(lambda: self._shards(shards), count, index, self.progress.advance)
        except NothingToIndexError:  # a resumed build could use nothing of it
            shutil.rmtree(self.partial, ignore_errors=True)
            raise
        content = {"passages": count, "parameters": self.recipe.parameters}
        write_manifest(index, self.recipe.format, self.recipe.version, content)


def _read_object(file: Path) -> dict[str, Any]:
    """Read what an unfinished build has written down.

    Raises:
        CorruptIndexError: If it is no JSON object.
    """
    try:
        found = read_json(file.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CorruptIndexError(f"{file} is damaged; remove {file.parent} to begin again")
    return found


def _check_same(folder: Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare what is in a folder with what is to be built; where a model lies does not matter."""
    before, after = ({**job, **job.get("parameters", {})} for job in (was, now))
    if same_probe(before.get("probe"), after.get("probe")):  # equal but for rounding
        after["probe"] = before["probe"]
    differing = [
        f"{name} {before.get(name)!r}, asked for {after[name]!r}"
        for name in after
        if name not in ("parameters", "model") and before.get(name) != after[name]
    ]
    if differing:
        raise ValueError(
            f"{folder} was built with other parameters ({'; '.join(differing)}); choose another "
            "folder, or remove that one to begin again"
        )
