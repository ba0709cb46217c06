"""Indexes of Lucene: opened where Pyserini is installed, and named for what they are elsewhere."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from igsearch_env import Document, open_retriever
from igsearch_env.retrieval.index_directory import CorruptIndexError
from igsearch_env.retrieval.lucene import LuceneRetriever
from igsearch_env.testing import check_retriever

PYSERINI = importlib.util.find_spec("pyserini") is not None
ROWS = [
    {"id": "a", "contents": '"Lima"\nLima is the capital of Peru.'},
    {"id": "b", "contents": '"Quito"\nQuito is the capital of Ecuador.'},
    {"id": "c 1", "title": "Rome", "contents": "Rome is old."},
]


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """An index that Pyserini has built."""
    (tmp_path / "corpus").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "corpus" / "rows.jsonl").write_text(lines, encoding="utf-8")
    command = [sys.executable, "-m", "pyserini.index.lucene", "--collection", "JsonCollection"]
    command += ["--input", str(tmp_path / "corpus"), "--index", str(tmp_path / "index")]
    command += ["--generator", "DefaultLuceneDocumentGenerator", "--threads", "1", "--storeRaw"]
    subprocess.run(command, check=True, capture_output=True)
    return tmp_path / "index"


@pytest.mark.skipif(PYSERINI, reason="Pyserini is installed")
def test_without_pyserini_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "segments_1").write_bytes(b"\x3f\xd7\x6c\x17")
    for name in (str(tmp_path), tmp_path):
        with pytest.raises(ImportError, match=r"igsearch-env\[lucene\]"):
            open_retriever(name)
    with pytest.raises(ValueError, match="is a BM25 index, which has no device"):
        open_retriever(tmp_path, device="cpu")


@pytest.mark.skipif(not PYSERINI, reason="Pyserini is not installed")
def test_an_index_of_pyserini_is_opened_as_it_is(built: Path) -> None:
    retriever = open_retriever(str(built))
    assert isinstance(retriever, LuceneRetriever)
    assert len(retriever) == 3
    (first, second), nothing, blank = retriever.search(["capital of Peru", "zzz", " "], 2)
    assert (first.id, first.title, first.text) == ("a", "Lima", "Lima is the capital of Peru.")
    assert (first.score or 0) > (second.score or 0) > 0
    assert (nothing, blank) == ([], [])
    (rome,) = retriever.search(["Rome"], 1)[0]
    assert (rome.id, rome.title, rome.text) == ("c 1", "Rome", "Rome is old.")
    assert isinstance(rome, Document)
    check_retriever(retriever, ["capital", "old Rome"], 2)
    with pytest.raises(ValueError, match="at most 3"):
        retriever.search(["Rome"], 4)


@pytest.mark.skipif(not PYSERINI, reason="Pyserini is not installed")
def test_a_broken_index_is_refused(built: Path) -> None:
    next(built.glob("*.si")).write_bytes(b"")
    with pytest.raises(CorruptIndexError, match="Lucene cannot open"):
        open_retriever(str(built))
