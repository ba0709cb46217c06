from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest

from igsearch_env.data.world import default_world
from igsearch_env.env import SearchQAEnv
from igsearch_env.episode import Document
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.fusion import FusionRetriever
from igsearch_env.retrieval.index_directory import CorruptIndexError
from igsearch_env.retrieval.saved_index import load_retriever, save_fusion

QUERIES = ["Where was the poet born?", "capital"]


@pytest.fixture
def indexes(passages: list[Document], dense: DenseRetriever, tmp_path: Path) -> Path:
    folder = tmp_path / "indexes"
    BM25Retriever.build(passages).save(folder / "bm25")
    dense.save(folder / "dense")
    save_fusion(folder / "hybrid", [folder / "bm25", folder / "dense"], constant=40, depth=50)
    return folder


@pytest.mark.parametrize("mmap", [True, False])
def test_the_manifest_says_what_an_index_is(
    indexes: Path, passages: list[Document], dense: DenseRetriever, mmap: bool
) -> None:
    bm25 = BM25Retriever.build(passages)
    hybrid = FusionRetriever([bm25, dense], constant=40, depth=50)
    for name, built in (("bm25", bm25), ("dense", dense), ("hybrid", hybrid)):
        loaded = load_retriever(indexes / name, mmap)
        assert type(loaded) is type(built)
        assert loaded.search(QUERIES, 5) == built.search(QUERIES, 5)
        assert loaded.parameters == built.parameters
        assert loaded.corpus_sha256 == built.corpus_sha256
        assert list(loaded.documents) == passages
        assert len(loaded) == 160
        assert pickle.loads(pickle.dumps(loaded)).search(QUERIES, 5) == built.search(QUERIES, 5)


def test_a_fusion_moves_with_its_parts_and_may_be_nested(indexes: Path) -> None:
    expected = load_retriever(indexes / "hybrid").search(QUERIES, 5)
    moved = indexes.with_name("moved")
    shutil.move(indexes, moved)
    assert load_retriever(moved / "hybrid").search(QUERIES, 5) == expected
    save_fusion(moved / "nested", [moved / "hybrid"], depth=160)
    (found, _), (again, _) = (
        load_retriever(moved / name, device="cpu").search(QUERIES, 5)
        for name in ("hybrid", "nested")
    )
    assert [document.id for document in found] == [document.id for document in again]


def test_a_fusion_refuses_a_part_that_has_changed(indexes: Path, passages: list[Document]) -> None:
    BM25Retriever.build(passages, k1=2.0).save(indexes / "bm25")
    with pytest.raises(ValueError, match=r"bm25 is another index than the one that .*hybrid was"):
        load_retriever(indexes / "hybrid")
    shutil.rmtree(indexes / "bm25")
    with pytest.raises(CorruptIndexError, match=r"bm25 is not an index: it has no manifest\.json"):
        load_retriever(indexes / "hybrid")


def test_a_fusion_needs_one_corpus(indexes: Path, passages: list[Document], tmp_path: Path) -> None:
    BM25Retriever.build(passages[:9]).save(tmp_path / "other")
    with pytest.raises(ValueError, match="search different corpora"):
        save_fusion(tmp_path / "new", [indexes / "dense", tmp_path / "other"])
    with pytest.raises(ValueError, match="at least one retriever"):
        save_fusion(tmp_path / "new", [])
    assert not (tmp_path / "new").exists()


def test_damaged_fusions(indexes: Path) -> None:
    for text in ("[1]", '[{"folder": "../bm25"}]'):
        hybrid = indexes / "hybrid"
        (hybrid / "parts.json").write_text(text)
        with pytest.raises(CorruptIndexError, match=r"parts\.json has \d+ bytes, expected"):
            load_retriever(hybrid)


def test_unknown_formats_and_options(indexes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a BM25 index, which has no search"):
        load_retriever(indexes / "bm25", search="nprobe=3")
    with pytest.raises(CorruptIndexError, match=r"is not an index: it has no manifest\.json"):
        load_retriever(tmp_path / "nowhere")
    manifest = json.loads((indexes / "bm25" / "manifest.json").read_text())
    (indexes / "bm25" / "manifest.json").write_text(json.dumps(manifest | {"format": "splade"}))
    with pytest.raises(CorruptIndexError, match="of the unknown format 'splade'"):
        load_retriever(indexes / "bm25")


@pytest.mark.parametrize("name", ["dense", "hybrid"])
def test_an_environment_searches_a_saved_index(indexes: Path, name: str) -> None:
    env = SearchQAEnv(default_world().train_questions, str(indexes / name), num_counterfactuals=0)
    env.reset(seed=0)
    *_, info = env.step("<search> Where was the poet born? </search>")
    expected = load_retriever(indexes / name).search(["Where was the poet born?"], 3)[0]
    assert list(info["documents"]) == expected
