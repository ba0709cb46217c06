"""The benchmark of reranking, on a small world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from igsearch_env import load_corpus, load_questions
from igsearch_env.outcome import gold_share
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.open import open_retriever, save_fusion, save_reranking
from igsearch_env.retrieval.rerank import (
    QueryLikelihoodReranker,
    RerankingRetriever,
    TitleReranker,
)
from scripts.benchmarks import reranking

WORLD_TINY = str(Path(__file__).parents[2] / "agents" / "world-tiny")


def test_a_row_says_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BM25Retriever.build(load_corpus("world:30")).save(tmp_path / "index")
    command = ["--out", str(tmp_path / "out"), "--index", str(tmp_path / "index")]
    command += ["--model", WORLD_TINY, "--questions", "world-train:30", "--depth", "4"]
    reranking.main([*command, "--limit", "12", "--top-k", "1"])
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    titles, row, fused, added, both_and_titles = found["rows"]
    assert [(one["model"], one["arm"]) for one in found["rows"]] == [
        ("titles", "alone"),
        *((WORLD_TINY, arm) for arm in ("alone", "fused", "added", "added, titles")),
    ]
    questions = load_questions("world-train:30", 12)
    first = open_retriever(tmp_path / "index")
    second = RerankingRetriever(first, QueryLikelihoodReranker(WORLD_TINY), 4)
    sums = RerankingRetriever(first, QueryLikelihoodReranker(WORLD_TINY), 4, add=True)
    for measured, name, retriever, k in (
        (row, "before", first, 1),
        (row, "after", second, 1),
        (row, "within", first, 4),
        (titles, "after", RerankingRetriever(first, TitleReranker(), 4), 1),
        (added, "after", sums, 1),
        (both_and_titles, "after", RerankingRetriever(sums, TitleReranker(), 4), 1),
    ):
        shares = [gold_share(one, retriever.search([one.text], k)[0]) or 0.0 for one in questions]
        assert measured[name] == pytest.approx(sum(shares) / 12), name
    save_reranking(tmp_path / "second", tmp_path / "index", WORLD_TINY, depth=4)
    save_fusion(tmp_path / "both", [tmp_path / "index", tmp_path / "second"], 60, 4)
    both = open_retriever(tmp_path / "both")
    shares = [gold_share(one, both.search([one.text], 1)[0]) or 0.0 for one in questions]
    assert fused["after"] == pytest.approx(sum(shares) / 12)
    assert row["n"] == 12
    assert row["change"] == pytest.approx(row["after"] - row["before"])
    assert row["low"] <= row["change"] <= row["high"]
    assert row["cpu_ms"] > 0
    monkeypatch.setattr(reranking, "open_reranker", None)  # what is there is not measured again
    reranking.main([*command, "--limit", "12", "--top-k", "1"])
    with pytest.raises(ValueError, match="was measured with"):
        reranking.main([*command, "--limit", "11", "--top-k", "1"])
