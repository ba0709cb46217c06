"""Reranking with real models: MiniLM's weights under a random head, and a small language model."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from igsearch_env.cli import check, index
from igsearch_env.episode import Document
from igsearch_env.retrieval.batching import MicroBatcher
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.index_directory import CorruptIndexError
from igsearch_env.retrieval.open import open_retriever, save_fusion, save_reranking
from igsearch_env.retrieval.rerank import (
    CrossEncoderReranker,
    QueryLikelihoodReranker,
    RerankingRetriever,
    TitleReranker,
)
from igsearch_env.testing import check_retriever

QUERIES = ["Where was Farus Branby born?", "Linburg", "Dolia Holwick"]


@pytest.fixture(scope="module")
def cross_encoder(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("model") / "cross_encoder")
    torch.manual_seed(0)
    CrossEncoder(minilm, num_labels=1, device="cpu").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reranker(cross_encoder: str) -> CrossEncoderReranker:
    return CrossEncoderReranker(cross_encoder, max_length=64)


@pytest.fixture(scope="module")
def bm25(passages: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bm25") / "index"
    BM25Retriever.build(passages).save(folder)
    return folder


@torch.inference_mode()
def slow_score(folder: str, query: str, doc: Document) -> float:
    """One pair by itself, with transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    text = f"{doc.title}\n{doc.text}"
    pair = tokenizer(query, text, truncation="longest_first", max_length=64, return_tensors="pt")
    return float(model(**pair).logits)


def test_scores_are_those_of_each_pair_alone(
    cross_encoder: str, reranker: CrossEncoderReranker, passages: list[Document]
) -> None:
    long = Document("long", "Long", "word " * 500)
    pairs = [("Where was the poet born?", doc) for doc in (*passages[:3], long)]
    expected = [slow_score(cross_encoder, query, doc) for query, doc in pairs]
    assert reranker.scores(pairs) == pytest.approx(expected, abs=1e-4)
    assert len(set(expected)) == 4
    assert reranker.scores([]).shape == (0,)


WORLD_TINY = str(Path(__file__).parents[3] / "agents" / "world-tiny")


@torch.inference_mode()
def slow_likelihood(
    model: Any, tokenizer: Any, query: str, doc: Document, max_length: int
) -> float:
    """One pair by itself: the log-probability of each token of the query in turn."""
    seen = tokenizer(f"{doc.title}\n{doc.text}".rstrip())["input_ids"][:max_length]
    seen = seen + tokenizer("\nQuestion:", add_special_tokens=False)["input_ids"]
    found = []
    for token in tokenizer(f" {query}", add_special_tokens=False)["input_ids"]:
        logits = model(torch.tensor([seen])).logits[0, -1]
        found.append(float(torch.log_softmax(logits, 0)[token]))
        seen = [*seen, token]
    return sum(found) / len(found)


def test_a_language_model_scores_the_query_after_the_document(passages: list[Document]) -> None:
    reranker = QueryLikelihoodReranker(WORLD_TINY, max_length=40, batch_size=3)
    long = Document("long", "Long", "word " * 60)
    blank = Document("blank", "", "")
    queries = [QUERIES[0], "x", QUERIES[2]]
    pairs = [(query, doc) for query in queries for doc in (*passages[:3], long, blank)]
    tokenizer = AutoTokenizer.from_pretrained(WORLD_TINY)
    model = AutoModelForCausalLM.from_pretrained(WORLD_TINY, dtype=torch.float32).eval()
    expected = [slow_likelihood(model, tokenizer, query, doc, 40) for query, doc in pairs]
    assert reranker.scores(pairs) == pytest.approx(expected, abs=1e-4)
    assert len(set(expected)) == len(pairs)
    assert reranker.scores([]).shape == (0,)
    half = QueryLikelihoodReranker(WORLD_TINY, max_length=40, precision="bfloat16")
    assert half.scores(pairs) == pytest.approx(expected, abs=0.2)
    assert half.parameters["model_sha256"] == reranker.parameters["model_sha256"]
    with pytest.raises(ValueError, match="unknown precision 'int4'"):
        QueryLikelihoodReranker(WORLD_TINY, precision="int4")
    with pytest.raises(ValueError, match=r"cannot load 'nowhere' as a reranker"):
        QueryLikelihoodReranker("nowhere")


def test_a_saved_one_with_a_language_model(bm25: Path, tmp_path: Path) -> None:
    out = tmp_path / "likely"
    index.main(["--rerank", str(bm25), "--model", WORLD_TINY, "--depth", "5", "--out", str(out)])
    opened = open_retriever(out)
    assert isinstance(opened, RerankingRetriever)
    assert isinstance(opened.reranker, QueryLikelihoodReranker)
    expected = RerankingRetriever(open_retriever(bm25), QueryLikelihoodReranker(WORLD_TINY), 5)
    assert opened.search(QUERIES, 3) == expected.search(QUERIES, 3)


class Counted:
    """Scores by the number in a document's id, and keeps how many pairs each call had."""

    parameters: dict[str, Any] = {"name": "counted"}  # noqa: RUF012

    def __init__(self) -> None:
        self.calls: list[int] = []

    def scores(self, pairs: Sequence[tuple[str, Document]]) -> NDArray[np.float32]:
        self.calls.append(len(pairs))
        return np.array([int(doc.id) % 5 for _, doc in pairs], dtype=np.float32)


def test_the_first_stage_decides_what_is_ranked_and_ties_are_its() -> None:
    documents = [Document(str(n), "", "lima " * (30 - n)) for n in range(30)]
    first, counted = BM25Retriever.build(documents), Counted()
    retriever = RerankingRetriever(first, counted, depth=10)
    best = [int(doc.id) for doc in first.search(["lima"], 10)[0]]
    found, nothing, again = retriever.search(["lima", "unheard", "lima"], 4)
    by_hand = sorted(best, key=lambda n: (-(n % 5), best.index(n)))[:4]
    assert [int(doc.id) for doc in found] == by_hand
    assert [doc.score for doc in found] == [number % 5 for number in by_hand]
    assert (nothing, again) == ([], found)
    assert counted.calls == [20]  # all queries in one call
    assert len(retriever.search(["lima"], 25)[0]) == 25
    assert retriever.search([], 3) == []
    with pytest.raises(ValueError, match="depth must be at least 1"):
        RerankingRetriever(first, counted, 0)
    with pytest.raises(ValueError, match="set k to at most 30"):
        retriever.search(["lima"], 31)


CHAIN = [
    Document("a", "", "Dune is a film of 1984", 9.0),
    Document("b", "Dune (film)", "A film that David Lynch directed. Dune is long.", 5.0),
    Document("c", "The", "nothing", 3.0),
    Document("d", "David Lynch", "He was born in Missoula.", 2.0),
    Document("e", "Lynch", "A name.", 1.0),
]
WHO = "Where was the director of Dune born?"


def test_titles_rank_by_hand() -> None:
    found = TitleReranker(weight=0.5).scores([(WHO, document) for document in CHAIN])
    # First stage 1, .5, .25, .125, 0; the query names b; a and b mention b, b mentions d.
    named = 0.5 + 0.5
    expected = [1.0, named + 0.5 * 1.0, 0.25, 0.125 + 0.5 * named, 0.0]
    assert found.tolist() == pytest.approx(expected)
    twice = [(WHO, document) for document in (*CHAIN, *CHAIN[::-1])]
    assert TitleReranker().scores(twice).tolist() == [*found.tolist(), *found.tolist()[::-1]]


def test_titles_against_a_slow_form(passages: list[Document]) -> None:
    """Regular expressions on the texts, pair by pair, in a corpus of one-word titles."""
    retriever = BM25Retriever.build(passages)
    queries = [f"{one.title} {two.text}" for one, two in pairwise(passages[:12])]
    for query, best in zip(queries, retriever.search(queries, 20), strict=True):
        scores = [doc.score or 0.0 for doc in best]
        low, high = min(scores), max(scores)

        def mentions(text: str, title: str) -> bool:
            return bool(title) and re.search(rf"\b{re.escape(title)}\b", text, re.I) is not None

        base = [
            ((doc.score or 0.0) - low) / (high - low) + 0.7 * mentions(query, doc.title)
            for doc in best
        ]
        expected = []
        for place, doc in enumerate(best):
            linked = [
                base[other]
                for other, one in enumerate(best)
                if other != place and one.title != doc.title and mentions(one.text, doc.title)
            ]
            expected.append(base[place] + 0.7 * max(linked, default=0.0))
        found = TitleReranker(0.7).scores([(query, doc) for doc in best])
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_titles_have_their_limits() -> None:
    assert TitleReranker().scores([]).tolist() == []
    assert TitleReranker().scores([(WHO, CHAIN[0])]).tolist() == [0.0]
    with pytest.raises(ValueError, match="weight must be at least 0, got nan"):
        TitleReranker(math.nan)
    with pytest.raises(ValueError, match="'x' came without a score"):
        TitleReranker().scores([("q", Document("x", "", ""))])


def test_scores_of_both_stages_are_added(bm25: Path, tmp_path: Path) -> None:
    documents = [Document(str(n), "", "lima " * (30 - n)) for n in range(30)]
    first = BM25Retriever.build(documents)
    best = first.search(["lima"], 10)[0]
    low, high = (float(pick(doc.score or 0.0 for doc in best)) for pick in (min, max))
    by_hand = {
        doc.id: ((doc.score or 0.0) - low) / (high - low) + int(doc.id) % 5 / 4 for doc in best
    }
    retriever = RerankingRetriever(first, Counted(), depth=10, add=True)
    found, nothing = retriever.search(["lima", "unheard"], 10)
    assert [doc.score for doc in found] == pytest.approx([by_hand[doc.id] for doc in found])
    assert [doc.id for doc in found] == sorted(by_hand, key=lambda name: -by_hand[name])
    assert [doc.score for doc in nothing] == [int(doc.id) % 5 / 4 for doc in nothing], "all equal"
    assert retriever.parameters["add"] is True
    out, over = tmp_path / "added", tmp_path / "over"
    flags = ["--model", WORLD_TINY, "--depth", "5", "--add"]
    index.main(["--rerank", str(bm25), *flags, "--out", str(out)])
    expected = RerankingRetriever(
        open_retriever(bm25), QueryLikelihoodReranker(WORLD_TINY), 5, add=True
    )
    assert open_retriever(out).search(QUERIES, 5) == expected.search(QUERIES, 5)
    index.main(["--rerank", str(out), "--model", "titles", "--depth", "5", "--out", str(over)])
    titles = RerankingRetriever(expected, TitleReranker(), 5)
    assert open_retriever(over).search(QUERIES, 5) == titles.search(QUERIES, 5)
    with pytest.raises(ValueError, match="adds to the scores of the first stage anyway"):
        index.main(["--rerank", str(out), "--model", "titles", "--add", "--out", str(over)])


def test_a_saved_ranking_by_titles(
    bm25: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "titles"
    index.main(["--rerank", str(bm25), "--model", "titles", "--depth", "9", "--out", str(out)])
    assert "160 documents" in capsys.readouterr().out
    expected = RerankingRetriever(open_retriever(bm25), TitleReranker(), 9)
    opened = open_retriever(out)
    assert isinstance(opened, RerankingRetriever)
    assert opened.parameters == expected.parameters
    assert opened.search(QUERIES, 3) == expected.search(QUERIES, 3)
    check_retriever(opened, QUERIES)
    with pytest.raises(ValueError, match="ranks by titles and has no model, got 'm'"):
        open_retriever(out, model="m")
    flags = ["--model", "titles", "--max-length", "9", "--out", str(tmp_path / "x")]
    with pytest.raises(ValueError, match="--model titles reads no tokens"):
        index.main(["--rerank", str(bm25), *flags])
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["parameters"]["weight"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptIndexError):
        open_retriever(out)


def test_the_server_scores_the_pairs_of_a_batch_in_one_call() -> None:
    documents = [Document(str(n), "", "lima " * (9 - n)) for n in range(9)]
    counted = Counted()
    retriever = RerankingRetriever(BM25Retriever.build(documents), counted, depth=4)

    async def ask() -> list[list[list[Document]]]:
        batcher = MicroBatcher([retriever.search], max_batch=64, max_waiting=64)
        try:
            return await asyncio.gather(*(batcher.search(["lima"], 2) for _ in range(5)))
        finally:
            batcher.close()

    answers = asyncio.run(ask())
    assert len({str(answer) for answer in answers}) == 1
    assert counted.calls == [20]


def test_it_keeps_the_promises_of_a_retriever(reranker: CrossEncoderReranker, bm25: Path) -> None:
    check_retriever(RerankingRetriever(open_retriever(bm25), reranker, 5), QUERIES)


def test_a_saved_one_is_opened_by_its_folder(
    cross_encoder: str, bm25: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, moved = tmp_path / "best", tmp_path / "moved"
    flags = ["--model", cross_encoder, "--depth", "6", "--max-length", "64"]
    index.main(["--rerank", str(bm25), *flags, "--out", str(out)])
    assert "160 documents" in capsys.readouterr().out
    opened = open_retriever(out)
    assert isinstance(opened, RerankingRetriever)
    expected = RerankingRetriever(open_retriever(bm25), CrossEncoderReranker(cross_encoder, 64), 6)
    assert opened.parameters == expected.parameters
    assert opened.search(QUERIES, 3) == expected.search(QUERIES, 3)
    shutil.copytree(cross_encoder, moved)
    assert open_retriever(out, model=str(moved)).search(QUERIES, 3) == opened.search(QUERIES, 3)
    half = open_retriever(out, precision="bfloat16").search(QUERIES, 6)
    scores = [doc.score or 0 for found in half for doc in found]
    exact = {doc.id: doc.score or 0 for found in opened.search(QUERIES, 6) for doc in found}
    assert scores == pytest.approx([exact[doc.id] for found in half for doc in found], abs=0.1)
    save_fusion(tmp_path / "fused", [bm25, out])
    assert len(open_retriever(tmp_path / "fused").search(QUERIES, 3)) == 3
    check.main([str(out)])


def test_what_does_not_fit_is_refused(
    cross_encoder: str, minilm: str, bm25: Path, passages: list[Document], tmp_path: Path
) -> None:
    out, other = tmp_path / "best", tmp_path / "other"
    torch.manual_seed(1)  # another head
    CrossEncoder(minilm, num_labels=1, device="cpu").save_pretrained(str(other))
    torch.manual_seed(1)
    CrossEncoder(minilm, num_labels=3, device="cpu").save_pretrained(str(tmp_path / "three"))
    part = tmp_path / "part"
    shutil.copytree(bm25, part)
    save_reranking(out, part, cross_encoder)
    with pytest.raises(ValueError, match="is another model than the one that"):
        open_retriever(out, model=str(other))
    with pytest.raises(ValueError, match=r"no layer that was trained to give a score .*BertModel"):
        save_reranking(tmp_path / "x", part, minilm)
    with pytest.raises(ValueError, match="would be lost; choose another folder"):
        save_reranking(part, part, cross_encoder)
    with pytest.raises(ValueError, match=r"gives one score, .* gives 3"):
        CrossEncoderReranker(str(tmp_path / "three"))
    with pytest.raises(ValueError, match=r"cannot load 'nowhere' as a reranker"):
        save_reranking(tmp_path / "x", part, "nowhere")
    with pytest.raises(ValueError, match="unknown precision 'int4'"):
        CrossEncoderReranker(cross_encoder, precision="int4")
    with pytest.raises(ValueError, match="depth must be at least 1"):
        save_reranking(tmp_path / "x", part, cross_encoder, depth=0)
    with pytest.raises(ValueError, match="--rerank needs a --model"):
        index.main(["--rerank", str(part), "--out", str(tmp_path / "x")])
    flags = ["--model", "m", "--factory", "Flat", "--k1", "1"]
    with pytest.raises(ValueError, match=r"a reranking .* has no --factory, --k1"):
        index.main(["--rerank", str(part), *flags, "--out", str(tmp_path / "x")])
    BM25Retriever.build(passages[:9]).save(part)
    with pytest.raises(ValueError, match="is another index than the one that"):
        open_retriever(out)
    assert not (tmp_path / "x").exists()
    parts = json.loads((out / "parts.json").read_text())
    (out / "parts.json").write_text(json.dumps(parts[::-1] * 2))
    with pytest.raises(CorruptIndexError, match=r"parts\.json"):
        open_retriever(out)
