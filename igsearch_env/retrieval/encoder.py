"""Texts to vectors: sentence-transformers models, with the prefixes that they were trained with."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igsearch_env.episode import Document
from igsearch_env.extras import import_extra
from igsearch_env.hub import without_waiting
from igsearch_env.text import clean_text

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Preset:
    """What a family of models expects.

    Args:
        query_prefix: Stands before every query; None for what the model says itself: its prompt
            named ``"query"``, if it has one.
        passage_prefix: Stands before every document; None for what the model says itself: the first
            of its prompts ``"document"``, ``"passage"`` and ``"corpus"`` that is not empty.
        pooling: From token vectors to one: ``"mean"``, ``"cls"`` or ``"lasttoken"``; None for what
            the model says itself (``"mean"`` if it says nothing).
        normalize: Whether vectors are scaled to length 1; None for what the model says itself.
    """

    query_prefix: str | None = None
    passage_prefix: str | None = None
    pooling: str | None = None
    normalize: bool | None = None


PRESETS = {
    "plain": Preset(),
    "e5": Preset("query: ", "passage: ", "mean", True),
    "bge": Preset("Represent this sentence for searching relevant passages: ", "", "cls", True),
    "contriever": Preset("", "", "mean", False),
}
"""Families by name: E5 (arXiv 2212.03533), BGE for English (arXiv 2309.07597), Contriever
(arXiv 2112.09118); ``"plain"`` takes what the model says. Add an entry for another."""

PRECISIONS = {"float32": "float", "bfloat16": "bfloat16", "float16": "half"}  # torch's methods


PROBE = "Où est né l'auteur d'Ångström? He moved to LÖGDÖ in 1814 (no. 7), it's said…"
"""Letters, marks and digits that tokenizers treat in different ways."""

_FAMILIES = {
    "e5": re.compile(r"(^|[-_/])e5-(small|base|large)(?!.*instruct)", re.IGNORECASE),
    "bge": re.compile(r"bge-(small|base|large)-en", re.IGNORECASE),
    "contriever": re.compile(r"contriever", re.IGNORECASE),
}


def preset_of(model: str) -> str:
    """The preset that the name of a model, or the last part of its path, asks for.

    >>> preset_of("intfloat/e5-base-v2"), preset_of("sentence-transformers/all-MiniLM-L6-v2")
    ('e5', 'plain')
    """
    name = model.rstrip("/").rpartition("/")[2]
    return next((preset for preset, names in _FAMILIES.items() if names.search(name)), "plain")


@dataclass(frozen=True)
class EncoderSettings:
    """Everything that decides which vector a text gets.

    Args:
        model: Name on the Hugging Face hub, or folder, of a sentence-transformers model or of any
            transformers encoder.
        preset: ``plain``, ``e5``, ``bge`` or ``contriever`` (default: by the name of the
            model).
        max_length: Longer texts are cut to so many tokens.

    Raises:
        ValueError: If there is no such preset, or ``max_length`` is below 1.
    """

    model: str
    preset: str | None = None
    max_length: int = 256

    def __post_init__(self) -> None:
        if self.preset is None:
            object.__setattr__(self, "preset", preset_of(self.model))
        if self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r}: expected {', '.join(PRESETS)}")
        if self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {self.max_length}")


class SentenceEncoder:
    """A sentence-transformers model; any number of threads may call it.

    Args:
        config: The model, and how it is used.
        device: Where it runs, as torch names it; None for a GPU if there is one.
        batch_size: Texts per pass.
        precision: ``"float32"``, or for speed ``"bfloat16"`` or ``"float16"``. Vectors of different
            precision differ by about 0.1 %, so documents may be encoded in one and queries in
            another.

    Raises:
        ImportError: If the ``dense`` extra is not installed.
        ValueError: If the model cannot be loaded.
    """

    def __init__(
        self,
        config: EncoderSettings,
        device: str | None = None,
        batch_size: int = 32,
        precision: str = "float32",
    ) -> None:
        check_precision(precision)
        self.config = config
        self._batch_size = batch_size
        self._preset = PRESETS[str(config.preset)]
        self._model = _load(config, self._preset, device)
        self._normalize = (
            self._model.similarity_fn_name == "cosine"
            if self._preset.normalize is None
            else self._preset.normalize
        )
        self._query_prefix, self._passage_prefix = _prefixes(self._model, self._preset)
        self._lock = threading.Lock()  # fast tokenizers refuse to be used by two threads at once
        self.dimension: int = self._model.get_embedding_dimension()
        self.sha256 = model_sha256(self._model, self._model.tokenizer)
        self._probe = self._measure()
        self.precision = precision
        getattr(self._model, PRECISIONS[precision])()

    @property
    def parameters(self) -> dict[str, Any]:
        """All that the vectors depend on, as JSON-ready data.

        The weights stand there by their hash. ``"probe"`` holds a few numbers of the vectors of one
        text in float32, which change with anything else, such as the tokenizer's rules.
        """
        pooling = self._preset.pooling or _pooling(self._model)
        return {
            **asdict(self.config),
            "max_length": self._model.max_seq_length,
            "query_prefix": self._query_prefix,
            "passage_prefix": self._passage_prefix,
            "pooling": pooling,
            "normalize": self._normalize,
            "dimension": self.dimension,
            "precision": self.precision,
            "model_sha256": self.sha256,
            "probe": self._probe,
        }

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        """Vectors of queries, shape (queries, dimension)."""
        return self._encode(self._model.encode_query, list(queries), self._query_prefix)

    def encode_documents(self, documents: Sequence[Document]) -> Vectors:
        """Vectors of documents, title first, shape (documents, dimension)."""
        return self.encode_texts([f"{doc.title}\n{doc.text}".rstrip() for doc in documents])

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Vectors of documents that are written out, shape (texts, dimension)."""
        return self._encode(self._model.encode_document, list(texts), self._passage_prefix)

    def _measure(self) -> list[float]:
        vectors = self.encode_queries([PROBE]), self.encode_documents([Document("", "", PROBE)])
        return [float(f"{number:.4g}") for (vector,) in vectors for number in vector[:8]]

    def _encode(self, encode: Callable[..., Any], texts: list[str], prefix: str) -> Vectors:
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        with self._lock:
            vectors = encode(
                [clean_text(text) for text in texts],  # it sorts them by length itself
                prompt=prefix,  # not in the texts: some models leave it out of the pooling
                batch_size=self._batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        if self._normalize:  # by torch, whose last digits are those of other projects
            torch = import_extra("torch", "dense")
            vectors = torch.nn.functional.normalize(
                torch.as_tensor(vectors).float(), dim=-1
            ).numpy()
        return np.array(vectors, dtype=np.float32, order="C")


def same_probe(one: Any, other: Any) -> bool:
    """Whether two probes, as manifests hold them, are of one encoder.

    Another machine or library rounds otherwise, by far less than the 2 % that are allowed; other
    pooling or other words change a probe by a multiple of that.
    """
    if not isinstance(one, list) or not isinstance(other, list) or len(one) != len(other):
        return False
    first, second = np.array([one, other], dtype=np.float64)
    return bool(np.linalg.norm(first - second) <= 0.02 * np.linalg.norm(second))


def _load(config: EncoderSettings, preset: Preset, device: str | None) -> Any:
    library = import_extra("sentence_transformers", "dense")
    try:
        with without_waiting(config.model, "dense"):
            model = library.SentenceTransformer(config.model, device=device)
    except Exception as error:  # transformers and what it is built on raise whatever they like
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot load {config.model!r} as an encoder: expected the name or the folder of a "
            f"sentence-transformers or transformers model ({reason})"
        ) from error
    model = model.float()  # so that its hash and its vectors are those of one precision
    if preset.pooling is not None:
        modules = import_extra("sentence_transformers.sentence_transformer.modules", "dense")
        transformer = model[0]
        pooling = modules.Pooling(
            transformer.get_embedding_dimension(), pooling_mode=preset.pooling
        )
        model = library.SentenceTransformer(modules=[transformer, pooling], device=device)
    model.max_seq_length = min(config.max_length, model.max_seq_length or config.max_length)
    return model.eval()


def check_precision(precision: str) -> None:
    """Refuse a precision that models are not run in here."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: expected {', '.join(PRECISIONS)}")


def model_sha256(model: Any, tokenizer: Any) -> str:
    """A hash of the weights and of the vocabulary."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().numpy().tobytes())
    words = (getattr(tokenizer, "backend_tokenizer", None) or tokenizer).get_vocab()
    digest.update(repr(sorted(words.items())).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _prefixes(model: Any, preset: Preset) -> tuple[str, str]:
    """What stands before a query, and before a document."""
    prompts = model.prompts
    query, document = preset.query_prefix, preset.passage_prefix
    if query is None:
        query = prompts.get("query") or ""
    if document is None:
        names = ("document", "passage", "corpus")
        document = next((prompts[name] for name in names if prompts.get(name)), "")
    return query, document


def _pooling(model: Any) -> str | None:
    """How a model says that token vectors become one; several ways are joined by a plus sign."""
    modes = next((module.pooling_mode for module in model if hasattr(module, "pooling_mode")), None)
    return modes if modes is None or isinstance(modes, str) else "+".join(modes)
