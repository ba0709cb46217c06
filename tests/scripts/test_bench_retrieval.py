"""The benchmark of servers: a quick run of the real thing, and its arithmetic by hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from igsearch_env import BM25Retriever, Document, World
from scripts.benchmarks import retrieval
from scripts.benchmarks.retrieval import ARMS, Samples, Searcher, main, put_load, running_server


def test_a_short_run_measures_every_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "1")  # the program sets them; put back at the end
    for name, value in {"CLIENTS": (1, 64), "ROUNDS": 1, "SECONDS": 1.0}.items():
        monkeypatch.setattr(retrieval, name, value)
    BM25Retriever.build(World.generate(0, people=30).documents).save(tmp_path / "words")
    command = ["--out", str(tmp_path / "out"), "--index", str(tmp_path / "words")]
    main(command)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    arms = ["direct", *ARMS]
    assert [(row["arm"], row["clients"]) for row in rows] == [(a, n) for n in (1, 64) for a in arms]
    for row in rows:
        assert row["index"] == "words"
        assert row["searches"] > 0  # in a second of a busy machine not every client gets one
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["per_second"] > 0
        assert row["cpu_ms"] > 0
        assert row["refused"] == 0 or row["arm"] == "limited"
        assert row["different"] == 0
    with pytest.raises(ValueError, match="is a BM25 index, which has no precision"):
        main([*command, "--precision", "bfloat16"])


def test_load_is_what_it_says_and_finds_what_is_different() -> None:
    active, most = set[int](), 0
    everyone = threading.Barrier(4)

    def search(queries: Sequence[str], k: int) -> list[list[Document]]:
        nonlocal most
        active.add(threading.get_ident())
        most = max(most, len(active))
        if not samples_are_in.is_set():
            everyone.wait(120)  # all four search at once
            samples_are_in.set()
        active.discard(threading.get_ident())
        (query,) = queries
        return [[Document("other" if query == "b" else query, "", "")]]

    samples_are_in = threading.Event()
    samples = Samples()
    expected = {query: [query] for query in "abcd"}
    put_load(Searcher(search, lambda: 1.5), 4, 0.05, list("abcd"), expected, samples)
    assert most == 4
    assert samples.different == {"b"}
    assert len(samples.milliseconds) >= 4
    assert samples.row()["cpu_ms"] == 0.0
    assert samples.row()["different"] == 1


def test_a_server_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"the server of .* ended"),
        running_server(tmp_path / "none", (), {}),
    ):
        pass
