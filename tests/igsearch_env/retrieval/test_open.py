from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from igsearch_env.data.world import default_world
from igsearch_env.env import SearchQAEnv
from igsearch_env.episode import Document
from igsearch_env.evaluation import setup
from igsearch_env.evaluation.settings import EvaluationSettings
from igsearch_env.files import seal
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.fusion import FusionRetriever
from igsearch_env.retrieval.http import HTTPRetriever
from igsearch_env.retrieval.index_directory import CorruptIndexError
from igsearch_env.retrieval.open import open_retriever, save_fusion
from igsearch_env.retrieval.vector_device import TorchFlat

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
        loaded = open_retriever(indexes / name, mmap)
        assert type(loaded) is type(built)
        assert loaded.search(QUERIES, 5) == built.search(QUERIES, 5)
        assert loaded.parameters == built.parameters
        assert loaded.corpus_sha256 == built.corpus_sha256
        assert list(loaded.documents) == passages
        assert len(loaded) == 160
        assert pickle.loads(pickle.dumps(loaded)).search(QUERIES, 5) == built.search(QUERIES, 5)


def test_a_fusion_moves_with_its_parts_and_may_be_nested(indexes: Path) -> None:
    expected = open_retriever(indexes / "hybrid").search(QUERIES, 5)
    moved = indexes.with_name("moved")
    shutil.move(indexes, moved)
    assert open_retriever(moved / "hybrid").search(QUERIES, 5) == expected
    save_fusion(moved / "nested", [moved / "hybrid"], depth=160)
    (found, _), (again, _) = (
        open_retriever(moved / name, device="cpu").search(QUERIES, 5)
        for name in ("hybrid", "nested")
    )
    assert [document.id for document in found] == [document.id for document in again]


def test_a_fusion_refuses_a_part_that_has_changed(indexes: Path, passages: list[Document]) -> None:
    BM25Retriever.build(passages, k1=2.0).save(indexes / "bm25")
    with pytest.raises(ValueError, match=r"bm25 is another index than the one that .*hybrid was"):
        open_retriever(indexes / "hybrid")
    shutil.rmtree(indexes / "bm25")
    with pytest.raises(CorruptIndexError, match=r"bm25 is not an index: it has no manifest\.json"):
        open_retriever(indexes / "hybrid")


def test_a_fusion_needs_one_corpus(indexes: Path, passages: list[Document], tmp_path: Path) -> None:
    BM25Retriever.build(passages[:9]).save(tmp_path / "other")
    with pytest.raises(ValueError, match="search different corpora"):
        save_fusion(tmp_path / "new", [indexes / "dense", tmp_path / "other"])
    with pytest.raises(ValueError, match="at least one retriever"):
        save_fusion(tmp_path / "new", [])
    (tmp_path / "link").symlink_to(indexes / "dense")
    with pytest.raises(ValueError, match=r"named twice among .*name each once"):
        save_fusion(tmp_path / "new", [indexes / "dense", tmp_path / "link"])
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        save_fusion(tmp_path / "new", [indexes / "dense"], depth=0)
    assert not (tmp_path / "new").exists()


def test_a_fusion_is_not_written_over_its_own_parts(indexes: Path) -> None:
    save_fusion(indexes / "nested", [indexes / "hybrid"])
    before = {file: file.read_bytes() for file in indexes.rglob("*") if file.is_file()}
    (indexes / "link").symlink_to(indexes / "bm25")
    for out, part in (
        ("bm25", "bm25"),
        ("hybrid", "hybrid"),
        ("dense", "nested"),
        ("link", "bm25"),
        ("bm25", "link"),
    ):
        with pytest.raises(ValueError, match=r"would be lost; choose another folder"):
            save_fusion(indexes / out, [indexes / part])
    assert {file: file.read_bytes() for file in before} == before


def test_damaged_fusions(indexes: Path) -> None:
    for text in ("[1]", '[{"folder": "../bm25"}]'):
        hybrid = indexes / "hybrid"
        (hybrid / "parts.json").write_text(text)
        with pytest.raises(CorruptIndexError, match=r"parts\.json has \d+ bytes, expected"):
            open_retriever(hybrid)


def test_unknown_formats_and_options(indexes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a BM25 index, which has no search"):
        open_retriever(indexes / "bm25", search="nprobe=3")
    with pytest.raises(CorruptIndexError, match=r"is not an index: it has no manifest\.json"):
        open_retriever(tmp_path / "nowhere")
    manifest = json.loads((indexes / "bm25" / "manifest.json").read_text())
    (indexes / "bm25" / "manifest.json").write_text(
        json.dumps(seal(manifest | {"format": "splade"}, "manifest_sha256"))
    )
    with pytest.raises(CorruptIndexError, match="of the unknown format 'splade'"):
        open_retriever(indexes / "bm25")


@pytest.mark.parametrize("name", ["dense", "hybrid"])
def test_an_environment_searches_a_saved_index(indexes: Path, name: str) -> None:
    env = SearchQAEnv(default_world().train_questions, str(indexes / name), num_counterfactuals=0)
    env.reset(seed=0)
    *_, info = env.step("<search> Where was the poet born? </search>")
    expected = open_retriever(indexes / name).search(["Where was the poet born?"], 3)[0]
    assert list(info["documents"]) == expected


def test_a_corpus_file_is_indexed_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"id": "1", "text": "Lima"}\n{"id": "2", "text": "Rome"}\n')
    for name in (file, str(file)):
        assert [d.id for d in open_retriever(name).search(["Rome"], 1)[0]] == ["2"]


def test_a_world_by_name_is_opened_once() -> None:
    world = open_retriever("world:40:1")
    assert isinstance(world, BM25Retriever)
    assert {d.id for d in world.documents} == {d.id for d in default_world(40, 1).documents}
    assert open_retriever("world:40:1") is world
    assert open_retriever("bm25") is open_retriever("world")


def test_an_address_is_never_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where a folder of that name is there, as earlier versions of evaluate made it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "http:" / "127.0.0.1:9").mkdir(parents=True)
    assert isinstance(open_retriever("http://127.0.0.1:9"), HTTPRetriever)


def test_a_path_is_never_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorruptIndexError, match="world is not an index"):
        open_retriever(Path("world"))
    BM25Retriever.build(default_world().documents[:5]).save("world")
    assert len(open_retriever(Path("world"))) == 5
    assert open_retriever("world") is not None


@pytest.mark.parametrize("name", ["wiki.jsonl", "indexes/none", "faiss", ""])
def test_what_nothing_is_called(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown retriever '.*': expected bm25, .*world"):
        open_retriever(name)


def test_options_of_dense_indexes_are_for_no_other(tmp_path: Path) -> None:
    for name in ("world", "http://127.0.0.1:9"):
        with pytest.raises(ValueError, match="is no dense index, which search are for"):
            open_retriever(name, search="nprobe=2")


def test_a_corpus_in_the_layout_of_beir_by_its_folder(tmp_path: Path) -> None:
    row = {"_id": "d1", "title": "Lima", "text": "The capital of Peru."}
    (tmp_path / "corpus.jsonl").write_text(json.dumps(row) + "\n")
    ((found,),) = open_retriever(str(tmp_path)).search(["Peru"], 1)
    assert found.id == "d1"


def test_the_corpus_of_an_index_is_checked_as_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"id": "d1", "title": "Lima", "text": "In Peru."}) + "\n")
    index = str(tmp_path / "index")
    settings = EvaluationSettings(("nq",), "oracle", index=index, corpus=str(corpus))
    setup._retriever(settings, print, False)
    monkeypatch.setattr(setup, "load_corpus", None)  # which would hold every document
    saved = setup._retriever(settings, print, False)
    assert saved.search(["Peru"], 1)[0][0].id == "d1"
    corpus.write_text(json.dumps({"id": "d1", "title": "Rome", "text": "In Italy."}) + "\n")
    with pytest.raises(ValueError, match="was built from another corpus"):
        setup._retriever(settings, print, False)


def test_a_name_may_end_in_options(indexes: Path) -> None:
    plain = open_retriever(indexes / "dense")
    for name in ("dense", "hybrid"):
        moved = open_retriever(f"{indexes / name}?vector_device=cpu&precision=float32")
        part = moved.retrievers[1] if isinstance(moved, FusionRetriever) else moved
        assert isinstance(part, DenseRetriever)
        assert isinstance(part._searched, TorchFlat)
    env = SearchQAEnv("world-test", f"{indexes / 'dense'}?vector_device=cpu")
    assert env.engine.retriever.search(QUERIES, 3) == plain.search(QUERIES, 3)
    settings = EvaluationSettings(
        ("world-test",), "search_once", index=f"{indexes / 'dense'}?vector_device=cpu", limit=2
    )
    made, known = (
        setup.make_evaluation(one)
        for one in (settings, replace(settings, index=str(indexes / "dense")))
    )
    assert isinstance(made.engine.retriever, DenseRetriever)
    assert isinstance(made.engine.retriever._searched, TorchFlat)
    assert made.inputs["index_sha256"] == known.inputs["index_sha256"] is not None
    for wrong, match in (
        ("dense?speed=3", "has no option 'speed'; the options are model, search"),
        ("dense?vector_device", "bad query field"),
        ("dense?vector_device=warp", "warp"),
        ("bm25?device=cpu", "is a BM25 index, which has no device"),
        ("none?device=cpu", "unknown retriever"),
    ):
        with pytest.raises(ValueError, match=match):
            open_retriever(str(indexes / wrong))
    shutil.copytree(indexes / "bm25", indexes / "odd?name=1")
    assert isinstance(open_retriever(str(indexes / "odd?name=1")), BM25Retriever)
