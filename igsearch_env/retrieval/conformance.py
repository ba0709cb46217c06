"""Which dialects a retrieval server speaks, and what it gets wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal
from urllib.parse import urljoin

from igsearch_env.episode import Document
from igsearch_env.retrieval.http_line import HTTPLine, HTTPRetrievalError, retrieve_url
from igsearch_env.retrieval.wire import DIALECTS, Dialect, WireError, make_request, read_answer

Verdict = Literal["good", "note", "wrong", "not spoken"]
K = 2
POLL = 0.25


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Args:
        subject: A dialect, or the path of an endpoint.
        verdict: ``"good"``; ``"note"`` for what a lenient client copes with; ``"wrong"`` for what
            gives wrong documents or none; ``"not spoken"``.
        text: What it is.
    """

    subject: str
    verdict: Verdict
    text: str


def check_server(
    url: str, query: str, timeout: float = 30.0, *, wait: float = 0.0
) -> list[Finding]:
    """Ask a server a few searches in each dialect.

    Args:
        url: Where it is posted to.
        query: What to search for; something that the corpus has at least two documents on.
        timeout: Seconds to wait for each answer, until its last byte.
        wait: Seconds to wait for a server that is not there yet, or says at ``/ready`` that it
            still loads its index.

    Raises:
        ValueError: If the address is none, or the server cannot be reached or is not ready.
    """
    address = retrieve_url(url)
    with closing(HTTPLine(address, timeout, connections=1)) as line:
        _wait_until_ready(line, address, wait)
        probe = _Probe(line, address, query)
        return [
            finding
            for part in (probe.endpoints(), *map(probe.dialect, DIALECTS))
            for finding in part
        ]


def spoken_dialects(findings: Sequence[Finding]) -> list[Dialect]:
    """The dialects that are spoken without an error."""
    bad = {finding.subject for finding in findings if finding.verdict in ("wrong", "not spoken")}
    return [dialect for dialect in DIALECTS if dialect not in bad]


def _wait_until_ready(line: HTTPLine, address: str, seconds: float) -> None:
    """Return once the server is there and does not say that it is not ready."""
    end = time.monotonic() + seconds
    while True:
        ready = urljoin(address, "/ready")
        try:
            response = line.run(line.request("GET", ready))
            if response.status_code != 503:
                return
            problem = f"{address} is not ready: it still loads its index, as it says at /ready"
        except HTTPRetrievalError as error:
            why = str(error).removeprefix(f"{ready}: ")
            problem = (
                f"cannot reach {address}: {why}; start it, such as with igsearch serve, and give "
                "--wait SECONDS if it takes long to start"
            )
        if time.monotonic() > end:
            raise ValueError(problem)
        time.sleep(POLL)


class _Unanswered(Exception):
    """A request that got no JSON back."""


@dataclass(frozen=True)
class _Probe:
    line: HTTPLine
    url: str
    query: str

    def endpoints(self) -> Iterator[Finding]:
        """What a client can know before it searches."""
        for path, use in (
            ("/health", "rLLM asks for it"),
            ("/ready", "whether the index is loaded"),
        ):
            try:
                request = self.line.request("GET", urljoin(self.url, path))
                status = self.line.run(request).status_code
            except HTTPRetrievalError as error:
                yield Finding(path, "note", f"no answer: {error}")
                continue
            good = status == 200
            yield Finding(path, "good" if good else "note", f"answers {status}; {use}")

    def dialect(self, dialect: Dialect) -> Iterator[Finding]:
        """Everything about one dialect."""
        request = make_request(dialect, [self.query], K)
        try:
            answer = self._post(request)
            (found,) = read_answer(dialect, answer, 1)
        except (_Unanswered, WireError) as error:
            yield Finding(dialect, "not spoken", str(error))
            return
        yield Finding(dialect, "good", f"{len(found)} documents for {self.query!r}")
        yield from (Finding(dialect, *note) for note in _about_documents(dialect, answer, found))
        if dialect == "search-r1":
            yield from self._several_queries(found)
        if dialect != "rllm":
            yield from self._without_scores(dialect, request, found)
        yield from self._without_a_number(dialect, request)

    def _several_queries(self, found: list[Document]) -> Iterator[Finding]:
        """Each query has a list of its own, in order; no query, no list."""
        other = f"{self.query} {self.query[::-1]}"
        for queries in ([other, self.query], []):
            try:
                answer = self._post(make_request("search-r1", queries, K))
                lists = read_answer("search-r1", answer, len(queries))
            except (_Unanswered, WireError) as error:
                # Some trainers post no queries when no rollout of a batch searched.
                text = f"{len(queries)} queries in one request: {error}"
                yield Finding("search-r1", "wrong" if queries else "note", text)
                continue
            if queries and [doc.id for doc in lists[1]] != [doc.id for doc in found]:
                text = "a query finds other documents beside another query than alone"
                yield Finding("search-r1", "wrong", text)

    def _without_scores(
        self, dialect: Dialect, request: dict[str, Any], found: list[Document]
    ) -> Iterator[Finding]:
        try:
            answer = self._post(request | {"return_scores": False})
            (bare,) = read_answer(dialect, answer, 1)
        except (_Unanswered, WireError) as error:
            yield Finding(dialect, "note", f"with return_scores false: {error}")
            return
        if [doc.id for doc in bare] != [doc.id for doc in found]:
            yield Finding(dialect, "wrong", "return_scores false gives other documents")

    def _without_a_number(self, dialect: Dialect, request: dict[str, Any]) -> Iterator[Finding]:
        """Clients may leave out how many documents they want, or send null."""
        name = "top_k" if dialect == "rllm" else "topk"
        try:
            read_answer(dialect, self._post(request | {name: None}), 1)
        except (_Unanswered, WireError) as error:
            yield Finding(dialect, "note", f"with {name} null: {error}")

    def _post(self, body: dict[str, Any]) -> Any:
        try:
            response = self.line.run(self.line.request("POST", self.url, body))
        except HTTPRetrievalError as error:
            raise _Unanswered(f"no answer: {error}") from error
        if response.status_code != 200:
            raise _Unanswered(f"answered {response.status_code}: {response.text[:120]}")
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise _Unanswered(f"answered no JSON: {response.content[:60]!r}") from error


def _about_documents(
    dialect: Dialect, answer: dict[str, Any], found: list[Document]
) -> Iterator[tuple[Verdict, str]]:
    """What is missing or odd in the documents of an answer that could be read."""
    if not found:
        yield "note", "no documents came, so they could not be checked; try another --query"
        return
    if len(found) > K:
        yield "wrong", f"{len(found)} documents came where {K} were asked for"
    if len({doc.id for doc in found}) < len(found):
        yield "wrong", "two documents of one answer have the same id"
    items = answer["results"] if dialect == "rllm" else answer["result"][0]
    inner = [item.get("document", item) if isinstance(item, dict) else item for item in items]
    if any(isinstance(document, str) for document in inner):
        yield "note", "documents are strings: their ids are made from their words"
    elif any(document.get("id") in (None, "") for document in inner):
        yield "note", "documents have no id: it is made from their words"
    scores = [doc.score for doc in found]
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        yield "note", "documents have no score"
    elif any(before < after for before, after in pairwise(known)):
        yield "wrong", f"the documents are not ordered by score: {known}"
    if not any(doc.title for doc in found):
        yield "note", "documents have no title"
