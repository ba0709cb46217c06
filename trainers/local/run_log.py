"""The log of a run: one JSON line per step, and the same numbers for its trackers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from igsearch_env.files import names_file, write_whole
from igsearch_env.text import read_json
from trainers.local.trackers import Tracker


class RunLog:
    """Appends to ``metrics.jsonl``.

    Args:
        folder: Folder of the run.
        step: Number of steps done: later lines, of a run that was killed, are dropped.
        trackers: What else gets the numbers; they are closed with the log.
        sha256: The hash that the log had after that step; empty if it is not known.

    Attributes:
        last: The last row; empty before the first.

    Raises:
        ValueError: If a line is damaged, or the hash is another. An empty file may be gone on with.
    """

    def __init__(
        self, folder: Path, step: int, trackers: Sequence[Tracker] = (), sha256: str = ""
    ) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_log(self.path) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        self._hash = hashlib.sha256(text.encode())
        emptied = self.path.is_file() and not self.path.stat().st_size
        if sha256 and not emptied and self.sha256 != sha256:
            raise ValueError(
                f"{self.path} is not what it was after step {step}: put it back as it was, or make "
                "it an empty file to go on without its rows"
            )
        write_whole(self.path, text)
        self.last: dict[str, Any] = kept[-1] if kept else {}
        self._trackers = trackers

    @property
    def sha256(self) -> str:
        """The hash of all rows."""
        return self._hash.hexdigest()

    def write(self, row: dict[str, Any]) -> None:
        """Add a row; it has a ``step``."""
        line = json.dumps(row) + "\n"
        with names_file(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line)
        self._hash.update(line.encode())
        self.last = row
        for tracker in self._trackers:
            tracker.log(dict(_numbers(row)), row["step"])

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last line that a kill cut short is left out.

    Raises:
        ValueError: If another line is damaged.
    """
    if not path.is_file():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        if line:
            try:
                row = read_json(line)
                if not (isinstance(row, dict) and type(row.get("step")) is int):
                    raise ValueError(f"it is no row with a step: {line[:60]!r}")
            except ValueError as error:
                raise ValueError(
                    f"line {number} of {path} is damaged ({error}); remove it to go on without it"
                ) from error
            rows.append(row)
    return rows


def _numbers(row: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a row, those of nested dictionaries as ``seconds/update``."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif name != "step" and isinstance(value, int | float):
            yield prefix + name, value
