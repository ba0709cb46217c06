"""A build to be killed, in a module that a server imports before it forks such processes."""

from __future__ import annotations

import threading
from multiprocessing.connection import Connection
from pathlib import Path

import faiss
import sentence_transformers  # noqa: F401  (so that a forked process has it)
import torch
import tqdm

from igsearch_env.data.corpus import read_corpus
from igsearch_env.retrieval.building import IndexBuild, Recipe
from igsearch_env.retrieval.encoder import EncoderSettings, SentenceEncoder
from igsearch_env.retrieval.recipes import BM25Recipe, DenseRecipe

FACTORIES = {"flat": "Flat", "ivf": "IVF4,Flat", "hnsw": "HNSW8"}


class NoBar:
    """Progress that nobody watches."""

    def stage(self, name: str, total: int | None, done: int = 0) -> None: ...

    def advance(self, amount: int) -> None: ...


def recipe_of(kind: str, model: str) -> Recipe:
    """The recipe of a kind: bm25, flat, ivf or hnsw."""
    if kind == "bm25":
        return BM25Recipe()
    encoder = SentenceEncoder(EncoderSettings(model), device="cpu", batch_size=4)
    return DenseRecipe(encoder, FACTORIES[kind])


class ToldProgress:
    """Progress that another process is told of, event by event."""

    def __init__(self, watcher: Connection) -> None:
        self.watcher = watcher

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        self.watcher.send(name)

    def advance(self, amount: int) -> None:
        self.watcher.send(amount)


def build(kind: str, model: str, corpus: Path, out: Path, watcher: Connection) -> None:
    """Build on one thread, going on with what is there, and tell of each step."""
    # The bars' lock is shared by all forks, and a process that is killed never gives it back.
    tqdm.tqdm.set_lock(threading.RLock())
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    recipe = recipe_of(kind, model)
    size = 100 if kind == "bm25" else 8
    IndexBuild(lambda: read_corpus(corpus), out, recipe, ToldProgress(watcher), size).run(
        resume=True
    )
