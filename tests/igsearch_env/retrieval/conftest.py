"""A real encoder, the same with one weight changed, and passages of the embedded world."""

from __future__ import annotations

import shutil

import pytest

from igsearch_env.episode import Document
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.encoder import EncoderConfig, SentenceEncoder
from igsearch_env.world import default_world


@pytest.fixture(scope="session")
def encoder(minilm: str) -> SentenceEncoder:
    return SentenceEncoder(EncoderConfig(minilm), device="cpu")


@pytest.fixture(scope="session")
def other_model(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("model") / "other"
    shutil.copytree(minilm, folder)
    weights = load_file(folder / "model.safetensors")
    weights["pooler.dense.bias"][0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="session")
def passages() -> list[Document]:
    return list(default_world().documents[:160])


@pytest.fixture(scope="session")
def dense(passages: list[Document], encoder: SentenceEncoder) -> DenseRetriever:
    return DenseRetriever.build(passages, encoder)
