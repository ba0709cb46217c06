"""A real encoder, passages of the embedded world, and servers on loopback."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator

import pytest

from igsearch_env.data.world import default_world
from igsearch_env.episode import Document
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.encoder import EncoderSettings, SentenceEncoder
from tests.igsearch_env.retrieval.loopback import Answer, Behaviour, LoopbackServer, RawServer


@pytest.fixture(scope="session")
def encoder(minilm: str) -> SentenceEncoder:
    return SentenceEncoder(EncoderSettings(minilm), device="cpu")


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


@pytest.fixture
def serve_answers() -> Iterator[Callable[[Answer], LoopbackServer]]:
    """Starts a server that answers as a function says."""
    servers: list[LoopbackServer] = []

    def start(answer: Answer) -> LoopbackServer:
        server = LoopbackServer(answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def misbehave() -> Iterator[Callable[..., RawServer]]:
    """Starts a server that meets its connections with the given behaviours, in order."""
    servers: list[RawServer] = []

    def start(*behaviours: Behaviour) -> RawServer:
        servers.append(RawServer(behaviours))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
