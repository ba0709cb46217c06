r"""The dialects that retrieval servers speak over HTTP: what is asked and what is answered.

All of them are JSON, posted to ``/retrieve``:

- ``search-r1`` (Search-R1 and its relatives, verl): ``{"queries": [...], "topk": 3,
  "return_scores": true}`` is answered by ``{"result": [[{"document": {"id", "contents"},
  "score"}, ...], ...]}``, one list per query; without scores, by the bare documents.
- ``skyrl`` (SkyRL, verl-agent): the same with one ``"query"``.
- ``rllm`` (rLLM): ``{"query": "...", "top_k": 3}`` is answered by ``{"results": [{"id",
  "content", "score", "document": {"id", "contents"}}, ...]}``; some of its clients read the inner
  document, some what stands beside it.

``contents`` and ``content`` are ``'"Title"\ntext'``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from igsearch_env.data.corpus import split_contents
from igsearch_env.episode import Document

Dialect = Literal["search-r1", "skyrl", "rllm"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)

PATH = "/retrieve"
DEFAULT_TOP_K = 3
"""How many documents a server returns where a request does not say."""


class RowDocument(Document):
    """A document that a server gives as it stands in the corpus.

    Args:
        document: The document.
        score: Its score.
        row: The columns of its row in the file of the corpus.
    """

    __slots__ = ("row",)
    row: Mapping[str, Any]

    def __init__(self, document: Document, score: float, row: Mapping[str, Any]) -> None:
        super().__init__(document.id, document.title, document.text, score)
        object.__setattr__(self, "row", row)

    def __reduce__(self) -> tuple[object, ...]:
        return RowDocument, (Document(self.id, self.title, self.text), self.score, self.row)


class WireError(ValueError):
    """An answer that does not follow the dialect that was spoken."""


def make_request(dialect: Dialect, queries: Sequence[str], k: int) -> dict[str, Any]:
    """What to post.

    Args:
        dialect: The dialect.
        queries: The queries; exactly one unless the dialect is ``search-r1``.
        k: How many documents are wanted for each.

    >>> make_request("rllm", ["capital of Peru"], 3)
    {'query': 'capital of Peru', 'top_k': 3}
    """
    if dialect == "search-r1":
        return {"queries": list(queries), "topk": k, "return_scores": True}
    (query,) = queries
    if dialect == "skyrl":
        return {"query": query, "topk": k, "return_scores": True}
    return {"query": query, "top_k": k}


def make_answer(
    dialect: Dialect, found: Sequence[Sequence[Document]], return_scores: bool = True
) -> dict[str, Any]:
    """What a server answers.

    Args:
        dialect: The dialect of the request.
        found: The documents of each query.
        return_scores: Whether a score stands beside each document; ``rllm`` always has them.

    >>> make_answer("skyrl", [[Document("1", "Lima", "In Peru.", 2.5)]])["result"][0][0]["score"]
    2.5
    """
    if dialect == "rllm":
        (documents,) = found
        hits = []
        for doc in documents:  # its clients look for a document in one of two places
            whole = {"document": _fields(doc, "contents"), "score": doc.score}
            hits.append(_fields(doc, "content") | whole)
        return {"results": hits}
    return {
        "result": [
            [
                {"document": _fields(doc, "contents"), "score": doc.score}
                if return_scores
                else _fields(doc, "contents")
                for doc in documents
            ]
            for documents in found
        ]
    }


def _fields(doc: Document, contents: str) -> dict[str, Any]:
    """A document with its title apart too: a title of several lines would not survive."""
    if isinstance(doc, RowDocument) and contents in doc.row:
        return dict(doc.row)
    return {
        "id": doc.id,
        contents: f'"{doc.title}"\n{doc.text}',
        "title": doc.title,
        "text": doc.text,
    }


def read_answer(dialect: Dialect, answer: object, queries: int) -> list[list[Document]]:
    """Read what a server answered, lenient in what a document looks like.

    A document may be a string, and may lack an id (it then gets one made from its words), a title
    or a score.

    Args:
        dialect: The dialect that the request was made in.
        answer: The parsed JSON.
        queries: How many queries were asked.

    Returns:
        The documents of each query, in the order of the server.

    Raises:
        WireError: If the answer has another shape, there is not one list per query, a document has
            no text, or all documents of a query are blank.
    """
    key = "results" if dialect == "rllm" else "result"
    if not isinstance(answer, Mapping) or not isinstance(answer.get(key), list):
        raise WireError(
            f"expected a JSON object with a list {key!r}, as {dialect} servers answer, got "
            f"{_outline(answer)}; `igsearch check URL` says which "
            "dialect a server speaks"
        )
    lists = [answer[key]] if dialect == "rllm" else answer[key]
    if len(lists) != queries:
        raise WireError(f"expected one list per query, {queries}, got {len(lists)}")
    for items in lists:
        if not isinstance(items, list):
            raise WireError(f"expected a list of documents per query, got {_outline(items)}")
    found = [[_document(item) for item in items] for items in lists]
    for documents in found:
        if documents and not any((doc.title + doc.text).strip() for doc in documents):
            raise WireError(f"all {len(documents)} documents for a query are blank")
    return found


def _document(item: object) -> Document:
    """One document of an answer, with or without a score around it."""
    inner = item.get("document", item) if isinstance(item, Mapping) else item
    if isinstance(inner, str):
        fields: Mapping[str, Any] = {"contents": inner}
    elif isinstance(inner, Mapping):
        fields = inner
    else:
        raise WireError(f"expected a document, an object or a string, got {_outline(inner)}")
    title, text = _title_and_text(fields)
    name = fields.get("id")
    if name is None or name == "":
        name = hashlib.sha256(f"{title}\n{text}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
    score = item.get("score") if isinstance(item, Mapping) else None
    return Document(str(name), title, text, _score(score))


def _score(score: object) -> float | None:
    """A score as a finite number; None if it is none, or too large for one."""
    try:
        number = float(score) if isinstance(score, int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _title_and_text(fields: Mapping[str, Any]) -> tuple[str, str]:
    title, text = fields.get("title"), fields.get("text")
    heading = title if isinstance(title, str) else None
    if isinstance(text, str) and heading is not None:
        return heading, text
    for key in ("contents", "content"):
        if isinstance(fields.get(key), str):
            return split_contents(fields[key], heading)
    if isinstance(text, str):
        return "", text
    raise WireError(
        f"expected a document with 'contents', 'content' or 'text', got {_outline(fields)}"
    )


def _outline(value: object) -> str:
    """What a value looks like, in a few words for an error."""
    if isinstance(value, Mapping):
        return f"an object with the keys {sorted(map(str, value))[:8]}"
    if isinstance(value, list):
        inner = f" of {_outline(value[0])}" if value else ""
        text = f"a list{inner}"
    else:
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
