from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from igsearch_env.episode import Document
from igsearch_env.files import seal
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.encoder import SentenceEncoder
from igsearch_env.retrieval.index_directory import CorruptIndexError, write_manifest
from igsearch_env.retrieval.vector_index import build_vector_index, import_faiss
from igsearch_env.testing import check_retriever

QUERIES = ["Where was the poet born?", "capital", "What does the company export?"]
SEARCHES = {"Flat": "", "IVF4,Flat": "nprobe=4", "HNSW16": "efSearch=160"}


@pytest.fixture
def retriever(dense: DenseRetriever) -> DenseRetriever:
    return dense


@pytest.fixture
def saved(retriever: DenseRetriever, tmp_path: Path) -> Path:
    retriever.save(tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture(scope="module")
def brute_force(
    passages: list[Document], encoder: SentenceEncoder
) -> dict[str, list[tuple[float, str]]]:
    """For each query the first 60 passages with their scores, best first; texts encoded alone."""
    vectors = [encoder.encode_documents([document])[0] for document in passages[:60]]
    ranked = {}
    for query in QUERIES:
        (wanted,) = encoder.encode_queries([query]).astype(np.float64)
        scores = [float(wanted @ vector.astype(np.float64)) for vector in vectors]
        pairs = zip(scores, (document.id for document in passages), strict=False)
        ranked[query] = sorted(pairs, key=lambda pair: -pair[0])
    return ranked


def test_it_keeps_the_promises_of_a_retriever(retriever: DenseRetriever) -> None:
    check_retriever(retriever, QUERIES)


def test_a_batch_finds_what_its_queries_find_alone() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 384), dtype=np.float32)
    queries = rng.standard_normal((64, 384), dtype=np.float32)
    index = build_vector_index(lambda: [vectors], 3000, "Flat")
    scores, numbers = index.search(queries, 5)  # by a matrix product
    assert import_faiss().cvar.distance_compute_blas_threshold < queries.size
    for row, query in enumerate(queries):
        alone, found = index.search(query[None], 5)
        assert found[0].tolist() == numbers[row].tolist()
        np.testing.assert_allclose(alone[0], scores[row], rtol=1e-5)


@pytest.mark.parametrize("factory", SEARCHES)
def test_the_best_are_those_of_brute_force(
    passages: list[Document],
    encoder: SentenceEncoder,
    brute_force: dict[str, list[tuple[float, str]]],
    factory: str,
) -> None:
    retriever = DenseRetriever.build(passages[:60], encoder, factory, SEARCHES[factory])
    for query, found in zip(QUERIES, retriever.search(QUERIES, 60), strict=True):
        expected = brute_force[query]
        scores = [document.score for document in found]
        assert scores == pytest.approx([score for score, _ in expected], abs=1e-5)
        assert scores == sorted(scores, reverse=True)
        by_id = {id_: score for score, id_ in expected}
        assert [by_id[document.id] for document in found] == pytest.approx(scores, abs=1e-5)
        assert len({document.id for document in found}) == 60


def test_ties_come_in_the_order_of_the_corpus(encoder: SentenceEncoder) -> None:
    twins = [Document(str(number), "", "Lima is in Peru.") for number in range(9)]
    retriever = DenseRetriever.build([Document("x", "", "Football"), *twins], encoder)
    (found,) = retriever.search(["Peru"], 10)
    assert [document.id for document in found] == [*"012345678", "x"]


def test_bad_arguments(
    retriever: DenseRetriever, encoder: SentenceEncoder, passages: list[Document]
) -> None:
    assert retriever.search([], 3) == []
    for queries, k, message in (
        ("one", 1, "must be a sequence of strings"),
        (["one"], 0, "set k to at least 1"),
        (["one"], 161, "set k to at most 160, the size of the corpus"),
    ):
        with pytest.raises(ValueError, match=message):
            retriever.search(queries, k)
    for documents in ([], [passages[0], passages[0]]):
        with pytest.raises(ValueError, match="unique ids, at least one"):
            DenseRetriever.build(documents, encoder)
    for factory, search, message in (
        ("Round", None, "cannot make an index 'Round' of vectors of 384"),
        ("IVF400,Flat", None, "8 vectors are too few to train an index 'IVF400,Flat'"),
        ("Flat", "nprobe=3", "cannot search with 'nprobe=3'"),
    ):
        with pytest.raises(ValueError, match=message):
            DenseRetriever.build(passages[:8], encoder, factory, search)


@pytest.mark.parametrize("factory", [*SEARCHES, "PQ16x4", "IVF4,PQ16x4"])
def test_a_loaded_index_answers_exactly_as_the_saved_one(
    passages: list[Document], encoder: SentenceEncoder, tmp_path: Path, factory: str
) -> None:
    built = DenseRetriever.build(passages[:48], encoder, factory)
    built.save(tmp_path / "index")
    for mmap in (True, False):
        loaded = DenseRetriever.load(tmp_path / "index", mmap)
        assert loaded.search(QUERIES, 5) == built.search(QUERIES, 5)
        assert loaded.parameters == built.parameters
        assert loaded.corpus_sha256 == built.corpus_sha256
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
        assert (str(tmp_path / "index" / "vectors.faiss") in mapped) == mmap
        loaded.save(tmp_path / "again")
        for file in (tmp_path / "index").iterdir():
            assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name
        del loaded


def test_it_is_shared_between_copies_threads_and_processes(
    retriever: DenseRetriever, saved: Path
) -> None:
    expected = retriever.search(QUERIES, 5)
    assert copy.deepcopy(retriever) is retriever
    with pytest.raises(TypeError, match="save it first"):
        pickle.dumps(retriever)
    loaded = pickle.loads(pickle.dumps(DenseRetriever.load(saved)))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: loaded.search(QUERIES, 5), range(12))) == [expected] * 12


def test_how_thoroughly_to_search_may_change(
    passages: list[Document], encoder: SentenceEncoder, tmp_path: Path
) -> None:
    """An index that looks into a part of the corpus may find fewer passages than were asked for."""
    DenseRetriever.build(passages[:64], encoder, "IVF8,Flat", "nprobe=1").save(tmp_path / "index")
    few = DenseRetriever.load(tmp_path / "index")
    every = DenseRetriever.load(tmp_path / "index", search="nprobe=8")
    assert 0 < len(few.search(QUERIES, 64)[0]) < len(every.search(QUERIES, 64)[0]) == 64
    assert every.parameters["search"] == "nprobe=8"


def test_queries_may_be_encoded_in_another_precision(saved: Path) -> None:
    exact = DenseRetriever.load(saved)
    half = DenseRetriever.load(saved, precision="bfloat16")
    assert (exact.encoder.precision, half.encoder.precision) == ("float32", "bfloat16")
    vectors, rounded = (one.encoder.encode_queries(QUERIES) for one in (exact, half))
    assert 0 < np.abs(vectors - rounded).max() < 0.02
    first = [[found.id for (found,) in one.search(QUERIES, 1)] for one in (exact, half)]
    assert first[0] == first[1]
    again = pickle.loads(pickle.dumps(half))
    assert again.encoder.precision == again.parameters["query_precision"] == "bfloat16"
    again.save(saved.parent / "again")
    assert DenseRetriever.load(saved.parent / "again").parameters == exact.parameters
    with pytest.raises(ValueError, match="unknown precision 'int8'"):
        DenseRetriever.load(saved, precision="int8")


def test_another_model_is_refused(saved: Path, minilm: str, other_model: str) -> None:
    with pytest.raises(ValueError, match=r"was built with another model than '.*other'"):
        DenseRetriever.load(saved, model=other_model)
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["parameters"]["model"] = "/moved/away"
    (saved / "manifest.json").write_text(json.dumps(seal(manifest, "manifest_sha256")))
    with pytest.raises(ValueError, match="cannot load '/moved/away' as an encoder"):
        DenseRetriever.load(saved)
    assert DenseRetriever.load(saved, model=minilm).search(QUERIES, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "e5"}, "another query_prefix and passage_prefix than .* the preset 'e5' has"),
        ({"query_prefix": "search: "}, "another query_prefix than .* the preset 'plain' has"),
        ({"max_length": 300}, "another max_length than"),
        ({"probe": None}, "gives other vectors now"),
        ({"preset": "e6"}, "no sound parameters"),
        ({"max_length": "long"}, "no sound parameters"),
        ({"search": "nprobe=4"}, "cannot search with 'nprobe=4'"),
    ],
)
def test_other_parameters_are_refused(saved: Path, change: dict[str, object], message: str) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["parameters"] |= change
    (saved / "manifest.json").write_text(json.dumps(seal(manifest, "manifest_sha256")))
    with pytest.raises(ValueError, match=message):
        DenseRetriever.load(saved)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True},
            "another pooling than",
        ),
        ("tokenizer_config.json", {"do_lower_case": False}, "gives other vectors now"),
        ("config.json", {"num_attention_heads": 6}, "gives other vectors now"),
        ("sentence_bert_config.json", {"max_seq_length": 64}, "another max_length than"),
    ],
)
def test_another_configuration_of_the_same_weights_is_refused(
    saved: Path, minilm: str, tmp_path: Path, file: str, change: dict[str, object], message: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(minilm, model)
    assert DenseRetriever.load(saved, model=str(model))
    described = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps(described | change))
    with pytest.raises(ValueError, match=message):
        DenseRetriever.load(saved, model=str(model))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


FILES = ("vectors.faiss", "documents.jsonl", "documents.offsets.npy")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "mmap", "message"),
    [
        (Path.unlink, True, "is missing"),
        (cut, True, r"has \d+ bytes, expected \d+"),
        (flip, False, "does not match its hash"),
    ],
)
def test_a_damaged_file_is_found(
    saved: Path, name: str, damage: Callable[[Path], None], mmap: bool, message: str
) -> None:
    damage(saved / name)
    with pytest.raises(CorruptIndexError, match=message):
        DenseRetriever.load(saved, mmap)


@pytest.mark.parametrize("names", [FILES[:1], FILES[1:]])
def test_files_of_another_corpus_do_not_fit(
    saved: Path,
    tmp_path: Path,
    passages: list[Document],
    encoder: SentenceEncoder,
    names: tuple[str, ...],
) -> None:
    DenseRetriever.build(passages[:9], encoder).save(tmp_path / "other")
    manifest, other = (
        json.loads((folder / "manifest.json").read_text()) for folder in (saved, tmp_path / "other")
    )
    for name in names:
        shutil.copy(tmp_path / "other" / name, saved / name)
        manifest["files"][name] = other["files"][name]
    (saved / "manifest.json").write_text(json.dumps(seal(manifest, "manifest_sha256")))
    with pytest.raises(CorruptIndexError, match="do not fit together"):
        DenseRetriever.load(saved)


def test_an_unreadable_index_is_named(saved: Path) -> None:
    file = saved / "vectors.faiss"
    file.write_bytes(b"x" * file.stat().st_size)
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").unlink()
    parts = (manifest.pop(name) for name in ("format", "version"))
    write_manifest(saved, *parts, manifest)
    with pytest.raises(CorruptIndexError, match=r"cannot read .*vectors\.faiss"):
        DenseRetriever.load(saved)


def test_training_vectors_are_spread_over_all_blocks() -> None:
    rng = np.random.default_rng(0)
    blocks = [rng.standard_normal((size, 8), dtype=np.float32) for size in (5, 70_000, 1, 65_000)]
    every = np.concatenate(blocks)
    index = build_vector_index(lambda: blocks, len(every), "IVF2,Flat")
    whole = build_vector_index(lambda: [every], len(every), "IVF2,Flat")
    assert index.ntotal == len(every)
    centroids = [one.quantizer.reconstruct_n(0, 2) for one in (index, whole)]
    np.testing.assert_array_equal(*centroids)
