"""Reranking: a first stage finds many documents, and a slower model puts the best of them first."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from igsearch_env.episode import Document
from igsearch_env.extras import import_extra
from igsearch_env.hub import without_waiting
from igsearch_env.retrieval.base import IndexedRetriever, check_search
from igsearch_env.retrieval.encoder import PRECISIONS, model_sha256
from igsearch_env.text import clean_text


class Reranker(Protocol):
    """Says how well documents answer queries."""

    @property
    def parameters(self) -> dict[str, Any]:
        """What the scores depend on, as JSON-ready data."""
        ...

    def scores(self, pairs: Sequence[tuple[str, Document]]) -> NDArray[np.float32]:
        """One score for each pair of a query and a document, higher for a better document."""
        ...


class RerankingRetriever:
    """Ranks the best documents of another retriever anew.

    Args:
        retriever: The first stage.
        reranker: Scores what it finds. All pairs of a search come in one call, those of every query
            of a server's batch included.
        depth: How many documents of the first stage are ranked anew for each query (more where more
            are asked for).

    Raises:
        ValueError: If ``depth`` is below 1.
    """

    def __init__(self, retriever: IndexedRetriever, reranker: Reranker, depth: int = 20) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.retriever = retriever
        self.reranker = reranker
        self.depth = depth

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Find the best documents for each query.

        Args:
            queries: The queries; may be empty.
            k: How many documents to return for each at most, from 1 to the size of the corpus.

        Returns:
            One list per query, best first, with the scores of the reranker; ties in the order of
            the first stage.

        Raises:
            ValueError: If ``k`` is out of range, or ``queries`` is a single string.
            RetrievalError: If the first stage failed.
        """
        check_search(queries, k, len(self))
        found = self.retriever.search(queries, min(max(self.depth, k), len(self)))
        pairs = [(query, doc) for query, best in zip(queries, found, strict=True) for doc in best]
        scores = iter(self.reranker.scores(pairs).tolist())
        ranked = []
        for best in found:
            scored = [Document(doc.id, doc.title, doc.text, next(scores)) for doc in best]
            ranked.append(sorted(scored, key=lambda doc: -(doc.score or 0.0))[:k])
        return ranked

    @property
    def parameters(self) -> dict[str, Any]:
        """What the results depend on besides the corpus, as JSON-ready data."""
        return {
            "depth": self.depth,
            "reranker": self.reranker.parameters,
            "retriever": self.retriever.parameters,
        }

    @property
    def documents(self) -> Iterable[Document]:
        """The documents in the order of the corpus."""
        return self.retriever.documents

    @property
    def corpus_sha256(self) -> str:
        """A hash of the documents, the same for every index of the same corpus."""
        return self.retriever.corpus_sha256

    def __len__(self) -> int:
        """Number of documents in the corpus."""
        return len(self.retriever)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self


class CrossEncoderReranker:
    """A cross-encoder of sentence-transformers, which reads a query and a document together.

    Any number of threads may call it.

    Args:
        model: Name on the Hugging Face hub, or folder, of a model with one output, such as
            ``cross-encoder/ms-marco-MiniLM-L6-v2``.
        max_length: Longer pairs are cut to so many tokens.
        device: Where it runs, as torch names it; None for a GPU if there is one.
        precision: Of its weights: ``"float32"``, ``"bfloat16"`` or ``"float16"``. Below float32
            it is faster where the processor has it, and documents with nearly the same score can
            change places.
        batch_size: Pairs per pass.

    Raises:
        ImportError: If the ``dense`` extra is not installed.
        ValueError: If the model cannot be loaded, or gives more than one score.
    """

    def __init__(
        self,
        model: str,
        max_length: int = 256,
        device: str | None = "cpu",
        precision: str = "float32",
        batch_size: int = 32,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}: expected {', '.join(PRECISIONS)}")
        library = import_extra("sentence_transformers", "dense")
        try:
            with without_waiting(model, "dense"):
                loaded = library.CrossEncoder(model, device=device, max_length=max_length)
        except Exception as error:  # transformers and what it is built on raise whatever they like
            reason = " ".join(str(error).split())
            raise ValueError(
                f"cannot load {model!r} as a reranker: expected the name or the folder of a "
                f"cross-encoder of sentence-transformers ({reason})"
            ) from error
        if loaded.num_labels != 1:
            raise ValueError(
                f"a reranker gives one score, {model!r} gives {loaded.num_labels}; take another"
            )
        self._model = loaded.float().eval()
        self._lock = threading.Lock()  # fast tokenizers refuse to be used by two threads at once
        self._batch_size = batch_size
        self.parameters: dict[str, Any] = {
            "model": model,
            "max_length": max_length,
            "model_sha256": model_sha256(self._model),
        }
        if precision != "float32":
            self.parameters["precision"] = precision
        getattr(self._model, PRECISIONS[precision])()

    def scores(self, pairs: Sequence[tuple[str, Document]]) -> NDArray[np.float32]:
        """The model's output for each pair, before any sigmoid, which would make ties of the best.

        Args:
            pairs: A query and a document each; they are batched by length.

        Returns:
            One score for each pair, shape (pairs,).
        """
        if not pairs:
            return np.empty(0, dtype=np.float32)
        texts = [(clean_text(query), clean_text(document_text(doc))) for query, doc in pairs]
        with self._lock:
            scores = self._model.predict(
                texts,
                batch_size=self._batch_size,
                show_progress_bar=False,
                activation_fn=import_extra("torch", "dense").nn.Identity(),
            )
        return np.asarray(scores, dtype=np.float32)


def document_text(document: Document) -> str:
    """What a reranker reads of a document: its title, a line end and its text."""
    return f"{document.title}\n{document.text}".rstrip()
