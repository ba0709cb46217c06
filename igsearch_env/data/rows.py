"""Rows of a data file or a Hugging Face data set, each with the place that it came from.

Question sets and corpora are read through :func:`read_rows`, so both know the same sources and
complain about them in the same words.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from igsearch_env.extras import import_extra

_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


class Row(NamedTuple):
    """A row, and how to speak of it.

    Args:
        columns: The values by column name.
        number: Number of the row in its source, from 0.
        where: The place for error messages, such as ``"train.jsonl, line 3"``.
    """

    columns: dict[str, Any]
    number: int
    where: str

    def error(self, problem: str) -> ValueError:
        """An error that names the row and the columns that it has."""
        columns = ", ".join(map(repr, self.columns)) or "none"
        return ValueError(f"{self.where}: {problem}; the columns are {columns}")


@dataclass(frozen=True)
class HubName:
    """A parsed ``hf:REPO[:CONFIG][:SPLIT]``; an empty part was left out."""

    repo: str
    config: str = ""
    split: str = ""

    @classmethod
    def parse(cls, name: str) -> HubName:
        """Take a name apart; ``hf:REPO:PART`` leaves open which of the two PART is.

        Raises:
            ValueError: If there are more parts, or no repository.
        """
        repo, *parts = name.removeprefix("hf:").split(":")
        if not repo or len(parts) > 2:
            raise ValueError(f"expected hf:REPO[:CONFIG][:SPLIT], got {name!r}")
        return cls(repo, *parts)


def source_stem(source: str) -> str:
    """Name of a source without folder and suffix; it opens the ids of rows that have none."""
    if source.startswith("hf:"):
        return Path(HubName.parse(source).repo).name
    name = Path(source).name
    return next((name.removesuffix(end) for end in _SUFFIXES[::-1] if name.endswith(end)), name)


def read_rows(
    source: str, kind: str, builtin: Collection[str], split: str | None = None
) -> Iterator[Row]:
    """Read rows one by one.

    Args:
        source: Path of a JSONL (``.jsonl``, ``.jsonl.gz``) or Parquet file, or
            ``hf:REPO[:CONFIG][:SPLIT]``, where REPO is a data set of the Hugging Face hub or a
            folder of data files, and a single part after it is a configuration if there is one of
            that name, else a split.
        kind: What is being loaded, for error messages.
        builtin: Names of the built-in ones, for error messages.
        split: Split to load: of a data set, its split of that name; of a file, the rows whose
            ``split`` (or ``extra_info["split"]``) is that.

    Raises:
        ValueError: If there is nothing of that name, it cannot be read, or has no rows.
        ImportError: If the source needs the ``data`` extra and it is not installed.
    """
    if source.startswith("hf:"):
        rows = _hub_rows(HubName.parse(source), split)
    else:
        path = _existing(source, kind, builtin)
        rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
        rows = rows if split is None else _rows_of_split(rows, split, source)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise ValueError(f"{source} is empty; a {kind} needs at least one row")


def _existing(source: str, kind: str, builtin: Collection[str]) -> Path:
    path = Path(source)
    if not path.exists():
        raise ValueError(
            f"unknown {kind} {source!r}: the built-in names are {', '.join(sorted(builtin))}, "
            f"and no file was found at that path either"
        )
    if path.is_dir() or not path.name.endswith(_SUFFIXES):
        raise ValueError(
            f"cannot read a {kind} from {source!r}: expected a file that ends in "
            f"{', '.join(_SUFFIXES)}; for a folder of data files, write hf:{source}"
        )
    return path


def _json_rows(path: Path) -> Iterator[Row]:
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for line_number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {line_number}"
                yield Row(_json_object(line, where), number, where)
                number += 1
        except (gzip.BadGzipFile, EOFError) as error:
            raise ValueError(f"{path} is not a complete gzip file: {error}") from error


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{where}: expected a JSON object in UTF-8: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _parquet_rows(path: Path) -> Iterator[Row]:
    pyarrow = import_extra("pyarrow", "data")
    parquet = import_extra("pyarrow.parquet", "data")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for columns in batch.to_pylist():
                    yield Row(columns, number, f"{path}, row {number}")
                    number += 1
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error


def _rows_of_split(rows: Iterator[Row], split: str, source: str) -> Iterator[Row]:
    seen: dict[str, None] = {}
    for row in rows:
        extra = row.columns.get("extra_info")
        name = row.columns.get("split") or (extra.get("split") if isinstance(extra, dict) else None)
        if name is None:
            raise row.error(f"cannot pick split {split!r} without a column 'split'")
        seen[str(name)] = None
        if name == split:
            yield row
    if seen and split not in seen:
        raise ValueError(f"{source} has no split {split!r}; its splits are {', '.join(seen)}")


def _hub_rows(name: HubName, split: str | None) -> Iterator[Row]:
    datasets = import_extra("datasets", "data")
    repo, config, wanted = name.repo, name.config, name.split
    try:
        if config and not wanted and config not in datasets.get_dataset_config_names(repo):
            config, wanted = "", config
        splits = datasets.get_dataset_split_names(repo, config or None)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"cannot load hf:{repo}: expected a data set of the Hugging Face hub or a folder of "
            f"data files, and a configuration that it has ({error})"
        ) from error
    if split is not None and wanted not in ("", split):
        raise ValueError(f"the name asks for split {wanted!r}, the argument for {split!r}")
    wanted = wanted or split or (splits[0] if len(splits) == 1 else "")
    if wanted not in splits:
        raise ValueError(
            f"hf:{repo} has the splits {', '.join(splits)}, got {wanted!r}; "
            f"name one of them, as in hf:{repo}:{config}:{splits[0]}"
        )
    rows = datasets.load_dataset(repo, config or None, split=wanted)
    for number, columns in enumerate(rows):
        yield Row(columns, number, f"hf:{repo}, split {wanted}, row {number}")
