from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from igsearch_env.data.world import default_world
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.encoder import EncoderSettings, SentenceEncoder
from scripts.benchmarks.vectors import IndexCase, add_recall, main, make_vectors, measure


def unit(rows: int, dimension: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dimension), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_copies_are_near_what_they_copy(tmp_path: Path) -> None:
    base = unit(7, 384, seed=0)
    make_vectors(base, 100, 0.5, 3, tmp_path / "a.npy")
    copies = np.load(tmp_path / "a.npy")
    assert copies.shape == (100, 384)
    np.testing.assert_allclose(np.linalg.norm(copies, axis=1), 1, atol=1e-5)
    cosines = (copies * base[np.arange(100) % 7]).sum(axis=1)
    np.testing.assert_allclose(cosines, 1 / np.sqrt(1.25), atol=0.05)
    assert len(np.unique(copies, axis=0)) == 100
    make_vectors(base, 100, 0.5, 3, tmp_path / "b.npy")
    np.testing.assert_array_equal(copies, np.load(tmp_path / "b.npy"))


def test_an_index_finds_what_brute_force_finds(tmp_path: Path) -> None:
    vectors, queries = unit(500, 32, seed=0), unit(70, 32, seed=1)
    np.save(tmp_path / "vectors.npy", vectors)
    np.save(tmp_path / "queries.npy", queries)
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :3]
    (flat,) = measure(IndexCase("Flat", ("",), tmp_path))
    assert flat["found"] == best.tolist()
    assert flat["index_gib"] * 2**30 == pytest.approx(500 * 32 * 4, abs=100)
    few, every = measure(IndexCase("IVF8,Flat", ("nprobe=1", "nprobe=8"), tmp_path))
    assert few["found"] != every["found"] == best.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["queries.npy", "vectors.npy"]


def test_recall_by_hand() -> None:
    rows = [
        {"found": [[1, 2, 3], [4, 5, 6]]},
        {"found": [[3, 2, 9], [-1, -1, 4]]},
    ]
    add_recall(rows)
    assert rows == [{"recall": 1.0}, {"recall": 0.5}]


def test_the_program_copies_an_index(minilm: str, tmp_path: Path) -> None:
    encoder = SentenceEncoder(EncoderSettings(minilm), device="cpu")
    DenseRetriever.build(default_world().documents[:30], encoder).save(tmp_path / "index")
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--index", str(tmp_path / "index"), "--count", "2000"]
    main([*arguments, "--questions", "world-test", "--quick"])
    results = json.loads((out / "results.json").read_text())
    assert {row["factory"] for row in results["rows"]} == {
        "Flat", "IVF32,Flat", "IVF32,SQ8", "IVF32,PQ48x4", "HNSW32"
    }  # fmt: skip
    assert results["rows"][0]["recall"] == 1.0
    assert all(0 < row["recall"] <= 1 for row in results["rows"])
    assert results["index"] == str(tmp_path / "index")
