from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from igsearch_env.data.world import default_world
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.encoder import EncoderSettings, SentenceEncoder
from scripts.benchmarks.vector_arms import IndexCase, make_vectors, measure
from scripts.benchmarks.vectors import lists_for, main, make_rows, sizing


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


def test_an_arm_finds_what_brute_force_finds(tmp_path: Path) -> None:
    vectors, queries = unit(500, 32, seed=0), unit(70, 32, seed=1)
    np.save(tmp_path / "vectors.npy", vectors)
    np.save(tmp_path / "queries.npy", queries)
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :3]
    flat = measure(IndexCase("Flat", ("",), str(tmp_path)))
    assert flat.searches[0].found == best.tolist()
    assert flat.index_bytes == pytest.approx(500 * 32 * 4, abs=100)
    lists = measure(IndexCase("IVF8,Flat", ("nprobe=1", "nprobe=8"), str(tmp_path)))
    assert lists.searches[0].found != lists.searches[1].found == best.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["queries.npy", "vectors.npy"]


def result(factory: str, found: list[list[int]], size: int) -> dict[str, object]:
    search = {
        "search": "nprobe=4" if "IVF" in factory else "",
        "found": found,
        **{"milliseconds": 2.0, "p99": 3.0, "cpu_milliseconds": 1.5, "batch_cpu_milliseconds": 1.0},
    }
    measured = {"build_seconds": 1, "index_bytes": size, "peak_bytes": 9, "searches": [search]}
    return {"factory": factory, "measurement": measured}


def test_recall_and_sizes_by_hand() -> None:
    best = [[1, 2, 3], [4, 5, 6]]
    rows = make_rows(
        [
            result("Flat", best, 1000 * 32 * 4),
            result("IVF32,PQ8", [[3, 2, 9], [-1, -1, 4]], 1000 * (8 + 12)),
            result("HNSW16", best, 1000 * (32 * 4 + 140)),
        ],
        count=1000,
        dimension=32,
    )
    assert [row["recall"] for row in rows] == [1.0, 0.5, 1.0]
    assert (lists_for(1000), lists_for(1_000_000)) == (32, 1024)
    flat, lists, graph = sizing(rows, 1_000_000, 64)
    assert flat["index_bytes"] == 1_000_000 * 64 * 4
    assert flat["cpu_milliseconds"] == pytest.approx(1.5 * 2 * 1000)
    assert (lists["factory"], lists["search"]) == ("IVF1024,PQ16", "nprobe=128")
    assert lists["index_bytes"] == 1_000_000 * (16 + 12)
    assert lists["cpu_milliseconds"] == pytest.approx(1.5 * 2 * 1000)
    assert graph["index_bytes"] == 1_000_000 * (64 * 4 + 140)
    assert graph["cpu_milliseconds"] == pytest.approx(1.5 * 2 * 2)  # log 10^6 / log 10^3


def test_the_program_copies_an_index_and_resumes(
    minilm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = SentenceEncoder(EncoderSettings(minilm), device="cpu")
    DenseRetriever.build(default_world().documents[:30], encoder).save(tmp_path / "index")
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--index", str(tmp_path / "index"), "--count", "2000"]
    arguments += ["--questions", "world-test", "--quick"]
    main(arguments)
    results = json.loads((out / "results.json").read_text())
    assert {row["factory"] for row in results["rows"]} == {
        "Flat", "IVF32,Flat", "IVF32,SQ8", "IVF32,PQ48x4", "HNSW32"
    }  # fmt: skip
    assert results["rows"][0]["recall"] == 1.0
    assert results["index"] == str(tmp_path / "index")
    assert "21,015,324 × 768, estimated" in capsys.readouterr().out
    (out / "results.json").unlink()
    with pytest.raises(ValueError, match="pass --resume to go on"):
        main(arguments)
    main([*arguments, "--resume"])
    assert json.loads((out / "results.json").read_text()) == results
    with pytest.raises(ValueError, match="holds another benchmark"):
        main([*arguments, "--resume", "--count", "3000"])
