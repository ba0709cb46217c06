"""The benchmark of BM25 over a large corpus, made small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from igsearch_env.retrieval.bm25 import BM25Retriever
from scripts.benchmarks import large_bm25


def test_a_small_run(tmp_path: Path) -> None:
    command = ["--out", str(tmp_path), "--corpus", "world:30", "--copies", "3"]
    large_bm25.main([*command, "--questions", "world-train:30"])
    found = json.loads((tmp_path / "results.json").read_text())
    build, search = found["rows"]
    assert build["documents"] == len(BM25Retriever.load(tmp_path / "index"))
    assert build["documents"] % 3 == 0
    assert build["words"] > 4 * build["documents"]
    assert min(build["peak_mib"], search["peak_mib"], search["ms_per_query"]) > 0
    assert found["largest_error"] < 1e-5
    other = large_bm25.largest_error(tmp_path / "index", "world:30", 3, 5, "world-train:30")
    assert other > 1e-4  # lengths that are not those of the corpus are noticed


def test_every_document_has_its_own_words(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    count = large_bm25.write_copies("world:20", 2, 3, file)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert count == len(rows) == len({row["id"] for row in rows})
    new = [word for row in rows for word in row["text"].split()[-3:]]
    assert len(set(new)) == 3 * count
    with pytest.raises(SystemExit):
        large_bm25.main(["--out", str(tmp_path), "--corpus", "world:20", "--copies", "0"])
