"""Vectors on torch's devices are searched as FAISS searches them, and refused where they cannot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from igsearch_env.episode import Document
from igsearch_env.retrieval import vector_device
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.encoder import SentenceEncoder, Vectors
from igsearch_env.retrieval.vector_device import TorchFlat, check_room, on_devices
from igsearch_env.retrieval.vector_index import build_vector_index, import_faiss
from tests.igsearch_env.retrieval.one_by_one import one_by_one

pytestmark = pytest.mark.usefixtures("one_faiss_thread")
CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def flat_index(vectors: Vectors) -> Any:
    return build_vector_index(lambda: [vectors], len(vectors), "Flat")


def vectors_of_length_1(rows: int, dimension: int, seed: int) -> Vectors:
    found = np.random.default_rng(seed).standard_normal((rows, dimension), dtype=np.float32)
    unit: Vectors = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "dimension"), [(20_000, 48), (10_001, 17), (40, 5)])
def test_it_finds_what_faiss_finds_bit_for_bit(
    rows: int, dimension: int, dtype: torch.dtype
) -> None:
    index = flat_index(vectors_of_length_1(rows, dimension, 0))
    queries = vectors_of_length_1(33, dimension, 1)
    searched = TorchFlat(index, [CPU, CPU, CPU], dtype)
    for k in (1, 3, 40):
        scores, numbers = searched.search(queries, k)
        expected_scores, expected = one_by_one(index, queries, k)
        assert numbers.tolist() == expected.tolist()
        assert scores.tobytes() == expected_scores.tobytes()
        alone_scores, alone = searched.search(queries[7:8], k)  # a batch changes nothing
        assert alone.tolist() == expected[7:8].tolist()
        assert alone_scores.tobytes() == expected_scores[7:8].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_documents_nearer_to_each_other_than_rounding_keep_their_order(dtype: torch.dtype) -> None:
    """Thousands of vectors that half precision cannot tell apart, and exact twins among them."""
    rng = np.random.default_rng(3)
    middle = vectors_of_length_1(1, 64, 4)
    close = middle + 1e-5 * rng.standard_normal((3000, 64), dtype=np.float32)
    twins = np.repeat(close[:5], 30, axis=0)
    vectors = np.concatenate([close, twins, vectors_of_length_1(9000, 64, 5)])
    index = flat_index(vectors[rng.permutation(len(vectors))])
    queries = np.concatenate([middle, close[:6], vectors_of_length_1(3, 64, 6)])
    for devices in ([CPU], [CPU, CPU]):
        scores, numbers = TorchFlat(index, devices, dtype).search(queries, 10)
        expected_scores, expected = one_by_one(index, queries, 10)
        assert scores.tobytes() == expected_scores.tobytes()
        assert numbers.tolist() == expected.tolist()


def test_the_bound_holds_and_decides_what_is_scored_again() -> None:
    index = flat_index(vectors_of_length_1(5000, 96, 0))
    queries = 3 * vectors_of_length_1(20, 96, 1)
    for dtype in DTYPES:
        searched = TorchFlat(index, [CPU], dtype)
        exact = queries.astype(np.float64) @ index.reconstruct_n(0, 5000).T.astype(np.float64)
        blocks = [
            scores for part in searched.parts for _, scores in searched._products(queries, part)
        ]
        errors = np.abs(torch.cat(blocks, 1).numpy() - exact).max(axis=1)
        bound = searched._errors(queries)
        assert (errors <= bound).all()
        assert (
            bound < {torch.float32: 3e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
        ).all()


def test_all_vectors_alike_are_found_in_order() -> None:
    index = flat_index(np.ones((9000, 8), dtype=np.float32))
    _, numbers = TorchFlat(index, [CPU, CPU], torch.float16).search(np.ones((2, 8), "f4"), 5)
    assert numbers.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("k", [1, 3, 7, 100, 150])
def test_of_equal_scores_at_the_end_of_a_list_those_stay_that_faiss_keeps(k: int) -> None:
    """Each vector is there some three times, in any order: FAISS does not keep the first ones."""
    rng = np.random.default_rng(k)
    different = vectors_of_length_1(400, 16, 8)
    places = rng.integers(0, 400, 1200)
    index = flat_index(different[places])
    queries = vectors_of_length_1(200, 16, 9)
    scores, numbers = TorchFlat(index, [CPU, CPU], torch.float16).search(queries, k)
    expected_scores, expected = one_by_one(index, queries, k)
    assert scores.tobytes() == expected_scores.tobytes()
    assert numbers.tolist() == expected.tolist()
    first = [np.flatnonzero(places == places[row[-1]]) for row in expected]
    kept = [np.isin(all_of_it, row) for all_of_it, row in zip(first, expected, strict=True)]
    assert k < 3 or any((np.diff(one.astype(int)) > 0).any() for one in kept)  # not the first ones


def test_vectors_in_main_memory_are_not_copied(tmp_path: Path) -> None:
    faiss = import_faiss()
    faiss.write_index(flat_index(vectors_of_length_1(500, 16, 0)), str(tmp_path / "i"))
    index = faiss.read_index(str(tmp_path / "i"), faiss.IO_FLAG_MMAP_IFC)
    (part,) = TorchFlat(index, [CPU]).parts
    assert part.vectors.data_ptr() == int(index.get_xb())


def test_a_retriever_finds_the_same_wherever_its_vectors_are(
    passages: list[Document], encoder: SentenceEncoder, tmp_path: Path
) -> None:
    DenseRetriever.build(passages, encoder).save(tmp_path / "index")
    plain = DenseRetriever.load(tmp_path / "index")
    moved = DenseRetriever.load(tmp_path / "index", vector_device="cpu, cpu")
    queries = [document.text for document in passages[:20]]
    alone = [found for query in queries for found in plain.search([query], 9)]
    found = moved.search(queries, 9)
    assert [[doc.id for doc in one] for one in found] == [[doc.id for doc in one] for one in alone]
    assert moved.parameters == plain.parameters
    assert moved.vectors().tobytes() == plain.vectors().tobytes()


@pytest.mark.parametrize(
    ("factory", "devices", "message"),
    [
        ("Flat", "abacus", "cannot put vectors on 'abacus'"),
        ("Flat", "cuda:99", "cannot put vectors on 'cuda:99'"),
        ("Flat", "cpu,", "cannot put vectors on ''"),
        ("HNSW8", "cpu", "of the kind IndexHNSWFlat is searched on a GPU by FAISS, .*dense-gpu"),
    ],
)
def test_what_cannot_be_searched_there_is_refused(factory: str, devices: str, message: str) -> None:
    vectors = vectors_of_length_1(300, 8, 0)
    with pytest.raises(ValueError, match=message):
        on_devices(build_vector_index(lambda: [vectors], 300, factory), devices)


def test_what_does_not_fit_is_refused_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vector_device.free_bytes(CPU) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(vector_device, "free_bytes", lambda device: 24 << 30)
    check_room(CPU, 20 << 30)
    with pytest.raises(
        ValueError, match=r"need 30\.0 GiB on cpu .* 24\.0 GiB are free: name several"
    ):
        check_room(CPU, 30 << 30)
    monkeypatch.setattr(vector_device, "free_bytes", lambda device: 1 << 20)
    index = flat_index(vectors_of_length_1(10, 8, 0))
    with pytest.raises(ValueError, match="or leave --vector-device out"):
        TorchFlat(index, [CPU], torch.float16)
    TorchFlat(index, [CPU])  # needs no memory of its own


def test_a_number_that_half_precision_cannot_hold_is_refused() -> None:
    vectors = np.full((3, 4), 1e6, dtype=np.float32)
    with pytest.raises(ValueError, match=r"not finite in torch\.float16"):
        TorchFlat(flat_index(vectors), [CPU], torch.float16)
