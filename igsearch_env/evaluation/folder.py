"""The files of an evaluation, which can be interrupted between any two instructions."""

from __future__ import annotations

import json
import platform
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from igsearch_env.episode import Episode
from igsearch_env.evaluation.play import Chunk
from igsearch_env.evaluation.scores import ExampleScore, score_example
from igsearch_env.evaluation.settings import comparable
from igsearch_env.files import (
    alone_in,
    names_file,
    read_sealed,
    sha256_of,
    write_json,
    write_sealed,
)
from igsearch_env.record import episode_from_record, episode_record
from igsearch_env.text import read_json

PACKAGES = (
    "igsearch-env",
    "numpy",
    "gymnasium",
    "bm25s",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "httpx2",
)


class EvaluationFolder:
    """``manifest.json``, one record per episode in ``episodes.jsonl``, and ``results.json``.

    The manifest tells what was evaluated, on what and with what: settings, hashes, versions and
    times. Until all questions have been played the records lie in ``episodes.jsonl.partial``, which
    grows by a line per chunk, in the order in which chunks end.

    Args:
        path: The folder; it is made by :meth:`alone`, inside of which everything is written.
        resume: Go on with the evaluation that is there.

    Raises:
        ValueError: If it holds an evaluation and ``resume`` is not set, or is no folder.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.episodes = path / "episodes.jsonl"
        self._partial = path / "episodes.jsonl.partial"
        self._manifest = path / "manifest.json"
        self._results = path / "results.json"
        self._described: dict[str, Any] = {}
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is not a folder; choose another one for --out")
        files = (self._manifest, self._partial, self.episodes, self._results)
        if not resume and any(file.exists() for file in files):
            raise ValueError(
                f"{path} holds results already; pass --resume to go on with them, or choose "
                "another folder"
            )
        if resume and any(file.exists() for file in files) and not self._manifest.exists():
            raise ValueError(f"{path} holds results, but not of an evaluation: no manifest.json")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder, and keep other processes out of it; a kill lets them in.

        Raises:
            ValueError: If another process is in it.
        """
        with alone_in(self.path):
            yield

    def config(self) -> dict[str, Any]:
        """The settings that the evaluation began with; empty if it has not begun.

        Raises:
            ValueError: If they cannot be read.
        """
        found: dict[str, Any] = self._read_manifest().get("config", {})
        return found

    def begin(
        self, config: Mapping[str, Any], inputs: Mapping[str, Any], chunks: Sequence[Chunk]
    ) -> dict[int, list[ExampleScore]]:
        """Describe the evaluation, or take up what is there.

        Chunks in which a search failed are dropped, so that they are played again.

        Args:
            config: The settings, written down or compared with what is there.
            inputs: What the results depend on besides, likewise.
            chunks: Everything that is to be played.

        Returns:
            The scores of the chunks that have been played without a failed search, by number.

        Raises:
            ValueError: If the evaluation that is there has other settings, or a record is damaged.
        """
        before = self._read_manifest()
        if before:
            check_unchanged(comparable(before["config"]), comparable(config), self.path)
            check_unchanged(before["inputs"], inputs, self.path)
        known = self._read_partial() if self._partial.exists() else self._read_whole(chunks)
        done: dict[int, list[ExampleScore]] = {}
        failed: set[int] = set()
        for number, episodes in known:
            asked = [q.id for q in chunks[number].questions] if number < len(chunks) else []
            there = number in done or number in failed
            if there or [episode.question.id for episode in episodes] != asked:
                raise ValueError(
                    f"the records in {self.path} are damaged: chunk {number} is there twice or "
                    "holds other questions; start again in another folder"
                )
            if any(episode.retrieval_failed for episode in episodes):
                failed.add(number)
            else:
                done[number] = [score_example(episode) for episode in episodes]
        if failed:
            self._drop(failed, chunks)
        run = {"started": _now(), "resumed_after": sum(map(len, done.values()))}
        runs = [*before.get("runs", []), {**run, "versions": versions()}]
        self._described = {"config": {**config}, "inputs": {**inputs}, "runs": runs}
        write_sealed(self._manifest, self._described)
        return done

    def append(self, chunk: Chunk, episodes: Sequence[Episode]) -> None:
        """Add the records of a chunk, so that they outlive this process."""
        records = [episode_record(episode) for episode in episodes]
        line = chunk_line(chunk.number, records)
        with names_file(self._partial), self._partial.open("ab") as file:
            file.write(line.encode("ascii"))

    def finish(
        self,
        results: Mapping[str, Any],
        seconds: Mapping[str, float],
        refused: int = 0,
        counts: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        """Write the records in order, the results, and the times; the evaluation is complete.

        Args:
            results: What came out.
            seconds: How long each part took in this run.
            refused: Questions that an endpoint refused in this run.
            counts: What a ``judge`` and a ``scorer`` behind servers counted in this run.
        """
        if self._partial.exists():
            self._order_records()
        write_json(self._results, results)
        self._described["episodes_sha256"] = sha256_of(self.episodes)
        self._described["runs"][-1] |= {"finished": _now(), "seconds": {**seconds}}
        if refused:
            self._described["runs"][-1]["refused"] = refused
        self._described["runs"][-1] |= {name: {**of} for name, of in (counts or {}).items()}
        write_sealed(self._manifest, self._described)
        self._partial.unlink(missing_ok=True)

    def _read_manifest(self) -> dict[str, Any]:
        if not self._manifest.exists():
            return {}
        try:
            found = read_sealed(self._manifest)
            return {**found, **{part: dict(found[part]) for part in ("config", "inputs")}}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self._manifest} is damaged ({error}); start again in another folder"
            ) from error

    def _read_partial(self) -> Iterator[tuple[int, list[Episode]]]:
        """The chunks that are whole; what a kill left of another one is cut off."""
        whole = 0
        with self._partial.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                with _place(self._partial, number):
                    record = read_json(line)
                    if record.pop("crc32", None) != _crc32(record):
                        raise ValueError("its checksum is another")
                    episodes = [episode_from_record(one) for one in record["episodes"]]
                yield int(record["chunk"]), episodes
        with self._partial.open("r+b") as file:
            file.truncate(whole)

    def _read_whole(self, chunks: Sequence[Chunk]) -> Iterator[tuple[int, list[Episode]]]:
        if self.episodes.exists():
            written = self._read_manifest().get("episodes_sha256")
            if written is not None and sha256_of(self.episodes) != written:
                raise ValueError(
                    f"{self.episodes} is damaged: its checksum is another; start again in another "
                    "folder"
                )
            episodes = read_episodes(self.episodes)
            for chunk in chunks:
                yield chunk.number, list(islice(episodes, len(chunk.questions)))

    def _drop(self, numbers: set[int], chunks: Sequence[Chunk]) -> None:
        """Leave these chunks out of the records, which are then those of an unfinished run."""
        known = self._read_partial() if self._partial.exists() else self._read_whole(chunks)
        unfinished = self.path / ".episodes.jsonl.unfinished"
        with names_file(unfinished), unfinished.open("wb") as file:
            for number, episodes in known:
                if number not in numbers:
                    records = [episode_record(episode) for episode in episodes]
                    file.write(chunk_line(number, records).encode("ascii"))
        unfinished.replace(self._partial)

    def _order_records(self) -> None:
        """Write ``episodes.jsonl``, in the order of the chunks and in one piece."""
        places: dict[int, int] = {}
        unfinished = self.path / ".episodes.jsonl.unfinished"
        with (
            names_file(unfinished),
            self._partial.open("rb") as partial,
            unfinished.open("wb") as file,
        ):
            while line := partial.readline():
                places[json.loads(line)["chunk"]] = partial.tell() - len(line)
            for number in sorted(places):
                partial.seek(places[number])
                for record in json.loads(partial.readline())["episodes"]:
                    file.write(json.dumps(record).encode("ascii") + b"\n")
        unfinished.replace(self.episodes)


def chunk_line(number: int, records: Sequence[Mapping[str, Any]]) -> str:
    """The line of a chunk's records, with their checksum."""
    record = {"chunk": number, "episodes": records}
    return json.dumps({**record, "crc32": _crc32(record)}) + "\n"


def read_episodes(path: Path) -> Iterator[Episode]:
    """Read the records of a finished evaluation one by one.

    Raises:
        ValueError: If one is damaged.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            with _place(path, number):
                episode = episode_from_record(read_json(line))
            yield episode


def check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with other settings or inputs than an evaluation began with.

    Raises:
        ValueError: If a value differs.
    """
    changed = [name for name in now if name not in before or before[name] != now[name]]
    if changed:
        name = changed[0]
        raise ValueError(
            f"the evaluation in {path} has another {', '.join(changed)}: {name} was "
            f"{before.get(name)!r}, got {now[name]!r}; go on with its own settings, or choose "
            "another folder"
        )


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # an extra that is not installed
    return found


@contextmanager
def _place(path: Path, number: int) -> Iterator[None]:
    """Say where a damaged record is."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}, line {number} is damaged ({error}); start again in another folder"
        ) from error


def _crc32(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode("ascii"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
