"""The benchmark of exact dense search: a small run of both kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from igsearch_env import World
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.encoder import EncoderSettings, SentenceEncoder
from scripts.benchmarks import flat
from scripts.benchmarks.flat import main


@pytest.fixture(autouse=True)
def no_lasting_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # put back at the end


def test_every_arm_finds_the_same(
    minilm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat, "PORTION", 64)
    monkeypatch.setattr(flat, "ALONE", 1)
    encoder = SentenceEncoder(EncoderSettings(minilm, max_length=16), device="cpu")
    documents = World.generate(0, people=30).documents
    for factory, folder in (("Flat", "flat"), ("HNSW8", "graph")):
        DenseRetriever.build(documents[:200], encoder, factory).save(tmp_path / folder)
    command = ["--out", str(tmp_path / "out"), "--questions", "world-train", "--queries", "100"]
    main([*command, "--index", str(tmp_path / "flat")])
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [(row["arm"].split(",")[0], row["batch"], row["queries"]) for row in rows] == [
        ("FAISS", 1, 100), ("FAISS", 64, 100), ("FAISS", 512, 100),
        ("torch float32", 1, 64), ("torch float32", 64, 100), ("torch float32", 512, 100),
        ("torch float16", 1, 64), ("torch float16", 64, 100), ("torch float16", 512, 100),
    ]  # fmt: skip
    assert all(row["different"] == 0 for row in rows if row["arm"] != "FAISS")
    assert all(row["ms"] > 0 for row in rows)
    with pytest.raises(ValueError, match="expected a flat index"):
        main([*command, "--index", str(tmp_path / "graph")])


def test_what_is_no_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot use the device 'gpu'"):
        main(["--out", str(tmp_path / "out"), "--random", "5000", "--device", "cpu,gpu"])


def test_random_vectors_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "RANDOM_SECONDS", 0.0)
    main(["--out", str(tmp_path / "out"), "--random", "5000", "--dimension", "16"])
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == ["adding up", *["candidates", "exact top 3"] * 3]
    assert all(row["ms"] > 0 for row in rows)
