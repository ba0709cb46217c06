"""The benchmark of MCP sessions: a quick run of the real thing."""

from __future__ import annotations

import json
from pathlib import Path

from igsearch_env import BM25Retriever, World
from scripts.benchmarks.mcp_sessions import main


def test_a_short_run_measures_every_row(tmp_path: Path) -> None:
    BM25Retriever.build(World.generate(0, people=30).documents).save(tmp_path / "words")
    folders = ["--out", str(tmp_path / "out"), "--index", str(tmp_path / "words")]
    main([*folders, "--sessions", "1", "64", "--searches", "130"])
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == ["direct", "1 session", "64 sessions"]
    for row in rows:
        assert row["searches"] == 130
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["different"] == 0
