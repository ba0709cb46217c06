"""Reranking: a first stage finds many documents, and a slower model puts the best of them first."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from igsearch_env.data.silver import TitleGraph
from igsearch_env.episode import Document
from igsearch_env.extras import import_extra
from igsearch_env.hub import without_waiting
from igsearch_env.retrieval.base import IndexedRetriever, check_search
from igsearch_env.retrieval.encoder import PRECISIONS, check_precision, model_sha256
from igsearch_env.text import clean_text

TITLES = "titles"
"""Names :class:`TitleReranker` where a model could stand."""


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
        add: Whether the score of the first stage counts as well: a document's score is the sum of
            both, each scaled to between 0 and 1 among those of the query.

    Raises:
        ValueError: If ``depth`` is below 1.
    """

    def __init__(
        self,
        retriever: IndexedRetriever,
        reranker: Reranker,
        depth: int = 20,
        *,
        add: bool = False,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.retriever = retriever
        self.reranker = reranker
        self.depth = depth
        self.add = add

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Find the best documents for each query.

        Args:
            queries: The queries; may be empty.
            k: How many documents to return for each at most, from 1 to the size of the corpus.

        Returns:
            One list per query, best first, with the scores of the reranker, or of both stages; ties
            in the order of the first stage.

        Raises:
            ValueError: If ``k`` is out of range, ``queries`` is a single string, or a document has
                no score to add to.
            RetrievalError: If the first stage failed.
        """
        check_search(queries, k, len(self))
        found = self.retriever.search(queries, min(max(self.depth, k), len(self)))
        pairs = [(query, doc) for query, best in zip(queries, found, strict=True) for doc in best]
        scores = self.reranker.scores(pairs)
        ranked, start = [], 0
        for best in found:
            own = scores[start : start + len(best)]
            start += len(best)
            if self.add and best:
                own = added_scores(best, own)
            scored = [
                Document(doc.id, doc.title, doc.text, score)
                for doc, score in zip(best, own.tolist(), strict=True)
            ]
            ranked.append(sorted(scored, key=lambda doc: -(doc.score or 0.0))[:k])
        return ranked

    @property
    def parameters(self) -> dict[str, Any]:
        """What the results depend on besides the corpus, as JSON-ready data."""
        return {
            "depth": self.depth,
            **({"add": True} if self.add else {}),
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


def added_scores(documents: Sequence[Document], scores: NDArray[np.floating]) -> NDArray[Any]:
    """The sum of the scores of both stages, each scaled to between 0 and 1.

    Args:
        documents: What the first stage found for a query, at least one, with its scores.
        scores: Those of the reranker, shape (documents,).

    Raises:
        ValueError: If a document has no score.
    """
    first = _scaled(np.array([_first_score(document) for document in documents]))
    both: NDArray[Any] = first + _scaled(scores)
    return both


def _scaled(scores: NDArray[Any]) -> NDArray[Any]:
    """Scores between 0 for the least and 1 for the greatest; all 0 where they are equal."""
    scaled: NDArray[Any] = (scores - scores.min()) / (np.ptp(scores) or 1.0)
    return scaled


class TitleReranker:
    """Ranks by titles: what the query names comes first, and what those documents mention follows.

    For corpora in which a document is about its title, as in Wikipedia. Of a query's documents, a
    score is that of the first stage, between 0 for the last and 1 for the best; ``weight`` is added
    where the query mentions the title; and ``weight`` times the best score so far among the
    documents that mention the title. So the second document of a chain, which the query does not
    name, is found by the first. It needs no model. What counts as a mention is said at
    :class:`~igsearch_env.data.silver.TitleGraph`.

    Args:
        weight: How much titles count against the scores of the first stage.

    Raises:
        ValueError: If ``weight`` is negative or not finite.
    """

    def __init__(self, weight: float = 0.5) -> None:
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be at least 0, got {weight}")
        self._weight = weight
        self.parameters: dict[str, Any] = {"model": TITLES, "weight": weight}

    def scores(self, pairs: Sequence[tuple[str, Document]]) -> NDArray[np.float32]:
        """One score for each pair; the documents of a query are compared with one another.

        Raises:
            ValueError: If a document has no score of a first stage.
        """
        found: dict[str, dict[str, Document]] = defaultdict(dict)  # a query may come several times
        for query, document in pairs:
            found[query][document.id] = document
        scores = {query: self._of_query(query, [*best.values()]) for query, best in found.items()}
        return np.array([scores[query][document.id] for query, document in pairs], np.float32)

    def _of_query(self, query: str, documents: Sequence[Document]) -> dict[str, float]:
        graph = TitleGraph(documents)
        base = _scaled(np.array([_first_score(document) for document in documents]))
        places = {document.id: place for place, document in enumerate(documents)}
        named = {doc.id for title in graph.titles_in(query) for doc in graph.titled(title)}
        base += self._weight * np.array([document.id in named for document in documents])
        linked = np.zeros(len(documents))
        for place, document in enumerate(documents):
            for title in graph.mentioned_by(document):
                others = [places[one.id] for one in graph.titled(title)]
                if place not in others:  # a page mentions its own title
                    linked[others] = np.maximum(linked[others], base[place])
        scores = base + self._weight * linked
        return {name: float(scores[place]) for name, place in places.items()}


def _first_score(document: Document) -> float:
    if document.score is None:
        raise ValueError(
            f"document {document.id!r} came without a score to add to; take a first stage that "
            "gives scores"
        )
    return document.score


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
        check_precision(precision)
        library = import_extra("sentence_transformers", "dense")
        kinds = _architectures(model)
        if not any(name.endswith("ForSequenceClassification") for name in kinds):
            raise ValueError(
                f"{model!r} has no layer that was trained to give a score (it is {kinds}); give a "
                "cross-encoder, or train one from it (scripts.examples.train_reranker)"
            )
        with _loading(model):
            loaded = library.CrossEncoder(model, device=device, max_length=max_length)
        if loaded.num_labels != 1:
            raise ValueError(
                f"a reranker gives one score, {model!r} gives {loaded.num_labels}; take another"
            )
        self._model = loaded.float().eval()
        self._lock = threading.Lock()  # fast tokenizers refuse to be used by two threads at once
        self._batch_size = batch_size
        digest = model_sha256(self._model, self._model.tokenizer)
        self.parameters = _parameters(model, max_length, digest, precision)
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


class QueryLikelihoodReranker:
    """A causal language model that says how likely the query is after the document.

    The score is the mean log-probability of the query's tokens, in nats, after the document and
    ``Question:`` (Sachan et al. 2022, arXiv 2204.07496). It needs no training for it. Any number of
    threads may call it.

    Args:
        model: Name on the Hugging Face hub, or folder, of a causal language model.
        max_length: Longer documents are cut to so many tokens.
        device: Where it runs, as torch names it; None for a GPU if there is one.
        precision: Of its weights; see :class:`CrossEncoderReranker`.
        batch_size: Pairs per pass.

    Raises:
        ImportError: If the ``dense`` extra is not installed.
        ValueError: If the model cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        max_length: int = 256,
        device: str | None = "cpu",
        precision: str = "float32",
        batch_size: int = 16,
    ) -> None:
        check_precision(precision)
        self._torch = import_extra("torch", "dense")
        library = import_extra("transformers", "dense")
        with _loading(model):
            loaded = library.AutoModelForCausalLM.from_pretrained(model, dtype="float32")
            self._tokenizer = library.AutoTokenizer.from_pretrained(model)
        self._batch_size, self._lock = batch_size, threading.Lock()
        digest = model_sha256(loaded, self._tokenizer)
        self.parameters = _parameters(model, max_length, digest, precision)
        device = device or ("cuda" if self._torch.cuda.is_available() else "cpu")
        self._model = getattr(loaded.eval(), PRECISIONS[precision])().to(device)

    def scores(self, pairs: Sequence[tuple[str, Document]]) -> NDArray[np.float32]:
        """The mean log-probability of each query's tokens after the document, shape (pairs,)."""
        texts = [(clean_text(query), clean_text(document_text(doc))) for query, doc in pairs]
        order = sorted(range(len(texts)), key=lambda place: len(texts[place][1]))
        found = np.empty(len(texts), dtype=np.float32)
        size, longest = self._batch_size, self.parameters["max_length"]
        with self._lock, self._torch.inference_mode():
            for start in range(0, len(order), size):
                some = order[start : start + size]
                batch = [texts[place] for place in some]
                likely = query_log_probs(self._model, self._tokenizer, batch, longest)
                found[some] = likely.float().cpu().numpy()
        return found


def query_log_probs(
    model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], max_length: int
) -> Any:
    """The mean log-probability of queries after documents, as a tensor that can be trained on.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        pairs: A query and the text of a document each.
        max_length: Longer documents are cut to so many tokens.

    Returns:
        A tensor of shape (pairs,), in nats per token.
    """
    torch = import_extra("torch", "dense")
    device = model.device
    rows, starts = [], []
    for query, text in pairs:
        document = tokenizer(text, max_length=max_length, truncation=True)["input_ids"]
        lead = tokenizer("\nQuestion:", add_special_tokens=False)["input_ids"]
        tail = tokenizer(f" {query}", add_special_tokens=False)["input_ids"]
        starts.append(len(document) + len(lead))
        rows.append([*document, *lead, *tail])
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    states = model.base_model(input_ids=ids, attention_mask=mask.to(device)).last_hidden_state
    # The state before each token of a query predicts it. Only these go through the large output.
    asked = [
        (row, place) for row in range(len(rows)) for place in range(starts[row], len(rows[row]))
    ]
    row_of, place_of = (torch.tensor(one, device=device) for one in zip(*asked, strict=True))
    logits = model.get_output_embeddings()(states[row_of, place_of - 1]).float()
    targets = ids[row_of, place_of]
    log_probs = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    sums = torch.zeros(len(rows), device=device).index_add(0, row_of, log_probs)
    counts = torch.tensor([len(row) - start for row, start in zip(rows, starts, strict=True)])
    return sums / counts.to(device).clamp(min=1)


def open_reranker(model: str, max_length: int = 256, **options: Any) -> Reranker:
    """The reranker of a model: a causal language model by query likelihood, else a cross-encoder.

    Args:
        model: Name on the Hugging Face hub, or folder; ``"titles"`` for :class:`TitleReranker`,
            which needs none.
        max_length: See the two classes.
        **options: ``device``, ``precision`` and ``batch_size`` of the two classes.

    Raises:
        ImportError: If the ``dense`` extra is not installed.
        ValueError: If the model cannot be loaded.
    """
    if model == TITLES:
        return TitleReranker()
    generates = any(name.endswith("ForCausalLM") for name in _architectures(model))
    kind = QueryLikelihoodReranker if generates else CrossEncoderReranker
    return kind(model, max_length, **options)


def _architectures(model: str) -> list[str]:
    """The classes of transformers that a model was saved from."""
    with _loading(model):
        config = import_extra("transformers", "dense").AutoConfig.from_pretrained(model)
    return list(config.architectures or ())


def _parameters(model: str, max_length: int, digest: str, precision: str) -> dict[str, Any]:
    """What scores depend on; float32, the default, is not named."""
    described = {"model": model, "max_length": max_length, "model_sha256": digest}
    return described if precision == "float32" else {**described, "precision": precision}


@contextmanager
def _loading(model: str) -> Iterator[None]:
    try:
        with without_waiting(model, "dense"):
            yield
    except Exception as error:  # transformers and what it is built on raise whatever they like
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot load {model!r} as a reranker: expected the name or the folder of a "
            "cross-encoder of sentence-transformers, or of a causal language model of transformers "
            f"({reason})"
        ) from error


def document_text(document: Document) -> str:
    """What a reranker reads of a document: its title, a line end and its text."""
    return f"{document.title}\n{document.text}".rstrip()
