import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from igsearch_env.data.corpus import BUILTIN_CORPORA, load_corpus, split_contents
from igsearch_env.episode import Document

LIMA = Document("1", "Lima", "Lima is the capital\nof Peru.")


def write(path: Path, *rows: Any) -> Path:
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["wiki.jsonl", "wiki.jsonl.gz", "wiki.parquet"])
@pytest.mark.parametrize(
    "columns",
    [
        {"contents": '"Lima"\nLima is the capital\nof Peru.'},
        {"contents": "Lima\nLima is the capital\nof Peru.", "title": "Lima", "source": "x"},
        {"contents": "Lima is the capital\nof Peru.", "title": "Lima"},
        {"text": "Lima is the capital\nof Peru.", "title": "Lima"},
    ],
)
def test_every_layout_in_every_kind_of_file(
    tmp_path: Path, name: str, columns: dict[str, str]
) -> None:
    rows = [{"id": 1, **columns}]
    path = tmp_path / name
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write(path, *rows)
    assert load_corpus(path) == [LIMA]


@pytest.mark.parametrize(
    ("contents", "title", "expected"),
    [
        ('"Lima"\ntext', None, ("Lima", "text")),
        ('""Heroes" (song)"\ntext', None, ('"Heroes" (song)', "text")),
        ("a single line", None, ("", "a single line")),
        ("a single line", "Lima", ("Lima", "a single line")),
        ("", None, ("", "")),
        ('"\nx', None, ('"', "x")),
    ],
)
def test_split_contents(contents: str, title: str | None, expected: tuple[str, str]) -> None:
    assert split_contents(contents, title) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"contents": "x", "number": 3}, r"no column 'id' .* columns are 'contents', 'number'"),
        ({"id": "2", "body": "x"}, r"no column 'contents' \(nor 'text'\).* 'id', 'body'"),
        ({"id": "2", "contents": ["x"]}, "'contents' must be a string"),
        ({"id": "2", "text": "x", "title": 7}, "'title' must be a string, got 7"),
        ({"id": [2], "text": "x"}, "'id' must be a string or a whole number"),
        ({"id": 1, "text": "x"}, "the document id '1' was used before, at .*line 1"),
        ('{"id": "2", "text"\n', "expected a JSON object"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "wiki.jsonl", {"id": "1", "text": "x"}, row)
    with pytest.raises(ValueError, match=rf"wiki\.jsonl, line 2: {message}"):
        load_corpus(path)


def test_unreadable_corpora(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown corpus 'wrold': the built-in names are world,"):
        load_corpus("wrold")
    with pytest.raises(ValueError, match="empty; a corpus needs"):
        load_corpus(write(tmp_path / "wiki.jsonl"))


def test_built_in_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILTIN_CORPORA, "mine", lambda name: [LIMA])
    assert load_corpus("mine") == [LIMA]
    world = load_corpus("world")
    assert len({document.id for document in world}) == len(world) > 0


@pytest.mark.skipif("IGSEARCH_DATA" not in os.environ, reason="IGSEARCH_DATA names no data folder")
def test_a_real_corpus() -> None:
    documents = load_corpus(Path(os.environ["IGSEARCH_DATA"]) / "hotpotqa.corpus.jsonl")
    assert len(documents) > 8000
    assert documents[0].title == "Jeff Porcaro"
    assert documents[0].text.startswith("Jeffrey Thomas Porcaro (April 1, 1954")


@pytest.mark.parametrize("first", [0, 900, 2999])
def test_an_id_is_unique_in_the_whole_corpus(tmp_path: Path, first: int) -> None:
    """However far apart the two rows are; here beyond the first 1,024 that are checked."""
    rows = [{"id": number, "text": "x"} for number in range(3000)]
    path = write(tmp_path / "c.jsonl", *rows, {"id": str(first), "text": "y"})
    expected = rf"line 3001: the document id '{first}' was used before, at .*line {first + 1};"
    with pytest.raises(ValueError, match=expected):
        load_corpus(path)
    assert len(load_corpus(write(path, *rows))) == 3000
