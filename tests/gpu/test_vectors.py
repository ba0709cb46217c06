"""Vectors on a GPU: the documents and scores that FAISS finds in main memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from igsearch_env.retrieval.encoder import Vectors
from igsearch_env.retrieval.vector_device import TorchFlat, on_devices
from igsearch_env.retrieval.vector_index import build_vector_index, import_faiss
from tests.igsearch_env.retrieval.one_by_one import one_by_one

faiss = import_faiss()
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.usefixtures("one_faiss_thread"),
]


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    """Vectors of any length, and a thousand that half precision cannot tell apart."""
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((60_000, 96), dtype=np.float32)
    close = spread[:1] + 1e-5 * rng.standard_normal((1000, 96), dtype=np.float32)
    return np.concatenate([spread, close])


@pytest.fixture(scope="module")
def queries(vectors: Vectors) -> Vectors:
    rng = np.random.default_rng(1)
    return np.concatenate([vectors[:4], rng.standard_normal((60, 96), dtype=np.float32)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_torch_flat_finds_what_faiss_finds_bit_for_bit(
    vectors: Vectors, queries: Vectors, dtype: torch.dtype
) -> None:
    index = build_vector_index(lambda: [vectors], len(vectors), "Flat")
    searched = TorchFlat(index, [torch.device("cuda")] * 2, dtype)
    assert searched.parts[0].vectors.is_cuda
    for k in (1, 3, 50):
        expected_scores, expected = one_by_one(index, queries, k)
        for batch in (1, 64):
            parts = [searched.search(queries[n : n + batch], k) for n in range(0, 64, batch)]
            scores, numbers = (np.concatenate(each) for each in zip(*parts, strict=True))
            assert numbers.tolist() == expected.tolist()
            assert scores.tobytes() == expected_scores.tobytes()


def test_a_device_is_named_in_words(vectors: Vectors) -> None:
    index = build_vector_index(lambda: [vectors], len(vectors), "Flat")
    assert isinstance(on_devices(index, "cuda:0, cuda"), TorchFlat)
    with pytest.raises(ValueError, match="cuda:99"):
        on_devices(index, "cuda:99")


@pytest.mark.skipif(not hasattr(faiss, "StandardGpuResources"), reason="FAISS is its CPU build")
@pytest.mark.parametrize("factory", ["IVF64,Flat", "IVF64,SQ8"])
def test_faiss_on_a_gpu_finds_nearly_all_that_it_finds_on_a_cpu(
    vectors: Vectors, queries: Vectors, factory: str
) -> None:
    index = build_vector_index(lambda: [vectors[:60_000]], 60_000, factory)
    faiss.extract_index_ivf(index).nprobe = 16
    scores, numbers = on_devices(index, "cuda").search(queries, 10)
    expected_scores, expected = index.search(queries, 10)
    shared = [
        len(set(a) & set(b)) for a, b in zip(numbers.tolist(), expected.tolist(), strict=True)
    ]
    assert np.mean(shared) > 9.5  # the copy on the GPU is in float16
    assert np.abs(scores[:, 0] - expected_scores[:, 0]).max() < 0.1 * expected_scores.max()
