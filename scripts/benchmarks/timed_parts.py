"""A retriever and a scorer that add up the seconds of CPU time spent in them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from agents.scoring.trie_scorer import TrieScorer
from igsearch_env import BM25Retriever, Document
from igsearch_env.episode import Context


class TimedRetriever:
    """A retriever that adds up the seconds spent in it."""

    def __init__(self, retriever: BM25Retriever) -> None:
        self.retriever, self.seconds = retriever, 0.0

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __len__(self) -> int:
        return len(self.retriever)

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Search, and take the time."""
        started = time.process_time()
        found = self.retriever.search(queries, k)
        self.seconds += time.process_time() - started
        return found


class TimedScorer:
    """A scorer that adds up the seconds spent in it."""

    def __init__(self, scorer: TrieScorer) -> None:
        self.scorer, self.seconds = scorer, 0.0
        self.vocabulary_size = scorer.vocabulary_size

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def fits(self, contexts: Sequence[Context], answers: Sequence[str]) -> list[bool]:
        """Which contexts can be scored, and take the time."""
        started = time.process_time()
        answered = self.scorer.fits(contexts, answers)
        self.seconds += time.process_time() - started
        return answered

    def log_probs(
        self, contexts: Sequence[Context], answers: Sequence[str]
    ) -> list[NDArray[np.float64]]:
        """Score, and take the time."""
        started = time.process_time()
        values = self.scorer.log_probs(contexts, answers)
        self.seconds += time.process_time() - started
        return values
