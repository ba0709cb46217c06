"""Rows of a data file or a Hugging Face data set, each with the place that it came from.

Question sets and corpora are read through :func:`read_rows`, so both know the same sources and
complain about them in the same words.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from igsearch_env.data.containers import BrokenContainerError, opened
from igsearch_env.extras import import_extra
from igsearch_env.hub import without_waiting

_TEXTS = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (*_TEXTS, *(f"{suffix}.gz" for suffix in _TEXTS), ".parquet")
"""How the names of files end that rows are read from."""

_HEADERS = frozenset(
    {"id", "_id", "qid", "query_id", "question_id", "docid", "doc_id", "pid", "passage_id"}
    | {"question", "query", "input", "prompt", "text", "contents", "content", "passage", "title"}
    | {"answer", "answers", "golden_answers", "possible_answers"}
)
_UNPACK = {".zst": "zstd -d", ".bz2": "bunzip2", ".xz": "unxz", ".zip": "unzip"}
_OTHERS = {  # first bytes of files that are no text, and what to do with them
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard; unpack it first: zstd -d",
    b"BZh": "compressed by bzip2; unpack it first: bunzip2",
    b"\xfd7zXZ": "compressed by xz; unpack it first: unxz",
    b"PK\x03\x04": "a ZIP archive or an Excel workbook; unpack it, or save it as CSV in UTF-8",
    b"PAR1": "a Parquet file; let its name end in .parquet",
}
_ENCODINGS = {  # the longer marks first: that of UTF-32 begins like that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_BY_COLUMNS = (
    "; if the file holds a whole table in one object, write one object per row, with pandas by "
    'to_json(PATH, orient="records", lines=True)'
)
_WIDEST = 2**31 - 1  # characters of a cell; the csv module stops at 131,072


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
        hint = _BY_COLUMNS if _is_by_columns(self.columns) else ""
        return ValueError(f"{self.where}: {problem}; the columns are {columns}{hint}")


def _is_by_columns(value: Any) -> bool:
    """Whether an object seems to be a table, with a list or an object for each column."""
    if not isinstance(value, dict) or len(value) < 2:
        return False
    return any(all(isinstance(one, kind) for one in value.values()) for kind in (list, dict))


class HubUnreachableError(ValueError):
    """A data set of the hub is asked for, and there is neither a connection nor a copy of it."""


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
    ends = sorted(SUFFIXES, key=len, reverse=True)
    return next((name.removesuffix(end) for end in ends if name.endswith(end)), name)


def read_rows(
    source: str, kind: str, builtin: Collection[str], split: str | None = None
) -> Iterator[Row]:
    """Read rows one by one.

    Text is in UTF-8. The names of the usual columns are read in any case, so ``Question`` is
    ``question``. Binary columns of Parquet, as some writers store text, are read as UTF-8.

    A CSV or TSV file has a header, quotes as in spreadsheets, and cells that are text; an empty
    cell is a missing value. Without a header, two or three columns are taken for id, text and title
    of a corpus (MS MARCO), and two for a question and its list of answers (DPR) or for id and
    question (TREC). Of these, TSV files of a corpus and of ids and questions have no quotes: a
    quote in them is a character as any other.

    Args:
        source: Path of a file whose name ends in one of :data:`SUFFIXES`, or
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
        rows = _file_rows(path, kind)
        rows = rows if split is None else _rows_of_split(rows, split, source)
    empty = True
    for row in rows:
        empty = False
        yield row._replace(columns=_in_lower_case(row.columns))
    if empty:
        raise ValueError(f"{source} is empty; a {kind} needs at least one row")


def _in_lower_case(columns: dict[str, Any]) -> dict[str, Any]:
    """The row with the usual columns in lower case, where there is not one of that name already."""
    if not any(name != name.lower() for name in columns):
        return columns
    return {
        low if (low := name.lower()) in _HEADERS and low not in columns else name: value
        for name, value in columns.items()
    }


def _existing(source: str, kind: str, builtin: Collection[str]) -> Path:
    path = Path(source)
    if not path.exists():
        raise ValueError(
            f"unknown {kind} {source!r}: the built-in names are {', '.join(sorted(builtin))}, "
            "and no file was found at that path either; names of your own need --import FILE"
        )
    if path.is_dir() or not path.name.endswith(SUFFIXES):
        hint = f"; for a folder of data files, write hf:{source}" if path.is_dir() else ""
        if unpack := _UNPACK.get(path.suffix):
            hint = f"; unpack it first: {unpack} {source}"
        raise ValueError(
            f"cannot read a {kind} from {source!r}: expected a file that ends in "
            f"{', '.join(SUFFIXES)}{hint}"
        )
    return path


def file_in_folder(folder: str | Path, stem: str) -> Path | None:
    """The only readable file of this name in a folder, whatever its suffix; None if none is there.

    >>> file_in_folder("no such folder", "corpus") is None
    True
    """
    files = [Path(folder) / f"{stem}{suffix}" for suffix in SUFFIXES]
    found = [file for file in files if file.is_file()]
    if len(found) > 1:
        raise ValueError(
            f"{folder} has {' and '.join(file.name for file in found)}; keep one of them"
        )
    return found[0] if found else None


def _file_rows(path: Path, kind: str) -> Iterator[Row]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        return _parquet_rows(path)
    if name.endswith((".csv", ".tsv")):
        return _table_rows(path, kind)
    return _json_rows(path) if name.endswith(".jsonl") else _json_or_lines(path, kind)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"  # whatever the name says
    with gzip.open(path) if zipped else path.open("rb") as file:
        try:
            if problem := _no_utf8(file.read(6)):
                raise ValueError(f"{path} is {problem}")
            file.seek(0)
            yield file  # type: ignore[misc]
        except (gzip.BadGzipFile, EOFError) as error:
            raise ValueError(f"{path} is not a complete gzip file: {error}") from error


@contextmanager
def text_lines(path: Path) -> Iterator[IO[str]]:
    r"""Open a text file whose lines end at ``\n`` only.

    Raises:
        ValueError: If it is no text in UTF-8; the message names the file.
    """
    with _opened(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="\n") as text:
        try:
            yield text
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected text in UTF-8: {_unread(error)}") from error


def _no_utf8(head: bytes) -> str | None:
    """What a file is that begins so, and what to do with it; None if it may be text in UTF-8."""
    other = next((words for mark, words in _OTHERS.items() if head.startswith(mark)), None)
    encoding = next((name for mark, name in _ENCODINGS.items() if head.startswith(mark)), None)
    if encoding is None and b"\0" in head[:2]:  # text that begins with a NUL, or in UTF-16
        encoding = "UTF-16BE" if head[0] == 0 else "UTF-16LE"
    return other if encoding is None else f"text in {encoding}; {_again_in_utf8(encoding)}"


def _again_in_utf8(encoding: str) -> str:
    return f"write it again in UTF-8: iconv -f {encoding} -t UTF-8 OLD > NEW"


def _unread(error: Exception) -> str:
    """Why text could not be read."""
    if isinstance(error, UnicodeDecodeError):
        return f"{error}; if it is in the encoding of Windows, {_again_in_utf8('WINDOWS-1252')}"
    return str(error)


def _json_rows(path: Path) -> Iterator[Row]:
    number = 0
    with _opened(path) as file:
        for line_number, line in enumerate(file, start=1):  # ends at \n only, not at U+2028
            if not line.strip():
                continue
            where = f"{path}, line {line_number}"
            yield Row(_json_object(line, where), number, where)
            number += 1


def _json_or_lines(path: Path, kind: str) -> Iterator[Row]:
    """Rows of a file that ends in .json: one list, an object with a list "data", or JSON lines.

    The articles of SQuAD become a row for each question or, of a corpus, for each paragraph.
    """
    with _opened(path) as file:
        first = next((line for line in file if line.strip()), b"")
        whole = not first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{")
        if not whole:
            try:
                one = json.loads(first.decode("utf-8-sig"))
                whole = isinstance(_listed(one), list)
            except (ValueError, RecursionError):
                whole = True  # an object of several lines
    if not whole:
        yield from _json_rows(path)
        return
    with _opened(path) as file:
        try:
            value = json.loads(file.read().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: expected JSON in UTF-8: {_unread(error)}") from error
    rows = _listed(value) if isinstance(value, dict) else value
    if not isinstance(rows, list):
        hint = _BY_COLUMNS if _is_by_columns(value) else ""
        raise ValueError(
            f'{path}: expected a list of objects, or an object with a list "data"{hint}'
        )
    number = 0
    for place, columns in enumerate(rows):
        where = f"{path}, row {place}"
        if not isinstance(columns, dict):
            hint = _BY_COLUMNS if isinstance(columns, list) else ""
            got = type(columns).__name__
            raise ValueError(f"{where}: expected a JSON object, got {got}{hint}")
        for one in _of_articles(columns, kind):
            yield Row(one, number, where)
            number += 1


def _listed(value: Any) -> Any:
    """The rows of an object: SQuAD writes "data", TriviaQA "Data"."""
    return value.get("data", value.get("Data")) if isinstance(value, dict) else None


def _of_articles(columns: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    """The rows inside an article of SQuAD, or a row of TriviaQA by common names."""
    match columns:
        case {"paragraphs": [{"context": str(), "qas": list()}, *_] as paragraphs}:
            title = str(columns.get("title") or "")
            for number, paragraph in enumerate(paragraphs):
                if kind == "corpus":
                    name = f"{title}-{number}"
                    yield {"id": name, "title": title, "text": paragraph["context"]}
                    continue
                asked = [one for one in paragraph["qas"] if not one.get("is_impossible")]
                yield from ({**one, "gold_titles": [title] if title else []} for one in asked)
        case {"Question": str(question), "Answer": {"Value": answer, **more}}:
            row = {"id": columns.get("QuestionId"), "question": question, "answer": answer}
            yield {**row, "answer_aliases": more.get("Aliases")}
        case _:
            yield columns


def _table_rows(path: Path, kind: str) -> Iterator[Row]:
    csv.field_size_limit(_WIDEST)
    where, number = str(path), 0
    names: list[str] = []
    try:
        for line, cells in _table_cells(path, kind):
            where = f"{path}, line {line}"
            if not names:
                names, is_header = _column_names(cells, kind, where)
                if is_header:
                    if twice := sorted(n for n in _HEADERS if names.count(n) > 1):
                        raise ValueError(f"{where}: more than one column {twice[0]!r}")
                    continue
            if not cells:
                continue
            if len(cells) != len(names):
                raise ValueError(
                    f"{where}: expected {len(names)} columns, {', '.join(map(repr, names))}, "
                    f"got {len(cells)}; a cell with a line end or quotes must stand in quotes"
                )
            values = {name: cell or None for name, cell in zip(names, cells, strict=True)}
            yield Row(values, number, where)
            number += 1
    except csv.Error as error:
        raise ValueError(
            f"{where} or the row after it: {error}; a cell that begins with a quote must end with "
            "one, with the quotes inside doubled"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8: {_unread(error)}") from error


def _table_cells(path: Path, kind: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line of a table, and the line's number."""
    with _opened(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        first = text.readline()
        marks = [mark for mark in "\t,;" if mark in first]  # ";" as spreadsheets write it
        delimiter = marks[0] if marks else ","
        if delimiter != "\t" or not _is_plain(first.rstrip("\r\n").split("\t"), kind):
            text.seek(0)
            lines = csv.reader(text, delimiter=delimiter, strict=True)
            for cells in lines:
                yield lines.line_num, cells
            return
    with text_lines(path) as plain:  # a quote is a character as any other
        for number, line in enumerate(plain, start=1):
            if line.strip():
                yield number, line.rstrip("\r\n").split("\t")


def _is_plain(cells: list[str], kind: str) -> bool:
    """Whether a TSV file is written without quotes: MS MARCO's and TREC's have no header."""
    if _HEADERS & {cell.strip().strip('"').lower() for cell in cells}:
        return False
    return kind == "corpus" or not cells[-1].lstrip('" ').startswith("[")


def _column_names(cells: list[str], kind: str, where: str) -> tuple[list[str], bool]:
    """Names of the columns of a table, and whether its first line is a header."""
    lower = [cell.strip().lower() for cell in cells]
    if _HEADERS & set(lower):
        return [low if low in _HEADERS else cell for low, cell in zip(lower, cells, strict=True)], (
            True
        )
    if kind == "corpus" and len(cells) in (2, 3):
        return ["id", "text", "title"][: len(cells)], False
    if kind != "corpus" and len(cells) == 2:
        listed = cells[1].lstrip().startswith("[")
        return (["question", "answers"] if listed else ["qid", "query"]), False
    raise ValueError(
        f"{where}: expected a header that names the columns, got {', '.join(map(repr, cells))}"
    )


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # the latter: nested without end
        raise ValueError(f"{where}: expected a JSON object in UTF-8: {_unread(error)}") from error
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
                    where = f"{path}, row {number}"
                    yield Row(_decoded(columns, where), number, where)
                    number += 1
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error


def _decoded(value: Any, where: str) -> Any:
    """A value of a row with its binary text decoded."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: expected text in UTF-8: {error}") from error
    if isinstance(value, dict):
        return {name: _decoded(one, where) for name, one in value.items()}
    return [_decoded(one, where) for one in value] if isinstance(value, list) else value


def _rows_of_split(rows: Iterator[Row], split: str, source: str) -> Iterator[Row]:
    seen: dict[str, None] = {}
    for row in rows:
        try:
            extra = opened(row.columns.get("extra_info"))
        except BrokenContainerError as error:
            raise row.error(f"'extra_info': {error}") from error
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
    if split is not None and wanted not in ("", split):
        raise ValueError(f"the name asks for split {wanted!r}, the argument for {split!r}")
    with without_waiting(repo):
        try:
            if config and not wanted and config not in datasets.get_dataset_config_names(repo):
                config, wanted = "", config
            splits = datasets.get_dataset_split_names(repo, config or None)
        except ConnectionError as error:
            raise HubUnreachableError(
                f"cannot load hf:{repo}: the Hugging Face hub cannot be reached, and this computer "
                "has no copy; fetch its files where there is a connection, and give the path of one"
            ) from error
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(
                f"cannot load hf:{repo}: expected a data set of the Hugging Face hub or a folder "
                f"of data files, and a configuration that it has ({error})"
            ) from error
        wanted = wanted or split or (splits[0] if len(splits) == 1 else "")
        if wanted not in splits:
            raise ValueError(
                f"hf:{repo} has the splits {', '.join(splits)}, got {wanted!r}; "
                f"name one of them, as in hf:{repo}:{config}:{splits[0]}"
            )
        rows = datasets.load_dataset(repo, config or None, split=wanted)
    for number, columns in enumerate(rows):
        where = f"hf:{repo}, split {wanted}, row {number}"
        yield Row(_decoded(columns, where), number, where)
