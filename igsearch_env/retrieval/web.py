"""Live search services as retrievers: SearXNG, Serper and others with an API in JSON.

A template (TOML or JSON) says how a service is asked, and where its answer has what. For SearXNG::

    url = "http://127.0.0.1:8888/search"
    parameters = {q = "{query}", format = "json"}
    results = "results"
    fields = {id = "url", title = "title", text = "content"}
    answers = "answers.jsonl"

and for Serper::

    url = "https://google.serper.dev/search"
    method = "POST"
    parameters = {q = "{query}", num = "{k}"}
    headers = {X-API-KEY = "{key}"}
    key_variable = "SERPER_API_KEY"
    results = "organic"
    fields = {id = "link", title = "title", text = "snippet"}
    per_second = 5
    answers = "answers.jsonl"

The results are text of strangers, and other ones tomorrow. Recorded answers stay the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any, Literal, Self

from igsearch_env.episode import Document
from igsearch_env.extras import extra
from igsearch_env.retrieval.base import check_search
from igsearch_env.retrieval.http_line import (
    NOT_THE_QUERY,
    REPEATED_STATUSES,
    HTTPRetrievalError,
    retrieve_url,
)
from igsearch_env.text import parse_toml, read_json

with extra("http"):
    import httpx2
    import tenacity

MAX_BYTES = 16 << 20
"""Size of an answer; a longer one is refused while it arrives."""
FIELDS = ("id", "title", "text")


@dataclass(frozen=True)
class WebSettings:
    """How a service is asked, and how its answer is read.

    In ``parameters`` and ``headers``, ``{query}``, ``{k}`` and ``{key}`` stand for the query, the
    number of documents and the key. A parameter that is ``"{k}"`` alone is sent as a number.

    Args:
        url: Address of the service.
        results: Path to the list of results in its answer, names joined by dots: ``web.results``.
        fields: Path to ``text`` in a result, and to ``title`` and ``id`` if there are any. A result
            without an id gets one made of its words.
        method: ``GET``, with the parameters in the address, or ``POST``, with them as JSON.
        parameters: By name.
        headers: By name.
        key_variable: Environment variable that holds the key. The key is never written or shown.
        per_second: Requests a second at most.
        connections: Requests that are on their way at once.
        timeout: Seconds that an attempt may take as a whole.
        attempts: How often a request is tried.
        answers: File that answers are kept in (JSON lines), beside the template unless it is a
            whole path. A search that is in it is not made again.
        replay: Use the kept answers only; any other search fails.

    Raises:
        ValueError: If a value is out of range, or something is missing.
    """

    url: str
    results: str
    fields: dict[str, str]
    method: Literal["GET", "POST"] = "GET"
    parameters: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    key_variable: str | None = None
    per_second: float = inf
    connections: int = 4
    timeout: float = 20.0
    attempts: int = 4
    answers: str | None = None
    replay: bool = False

    def __post_init__(self) -> None:
        retrieve_url(self.url)  # refuses what is no address
        if self.method not in ("GET", "POST"):
            raise ValueError(f"method must be GET or POST, got {self.method!r}")
        if "text" not in self.fields or set(self.fields) - set(FIELDS):
            raise ValueError(f"fields must name text, and may name id and title, got {self.fields}")
        if min(self.per_second, self.timeout) <= 0 or min(self.connections, self.attempts) < 1:
            raise ValueError(
                "per_second and timeout must be above 0, connections and attempts at least 1, got "
                f"{self.per_second}, {self.timeout}, {self.connections} and {self.attempts}"
            )
        used = "{key}" in json.dumps([self.parameters, self.headers])
        if used != (self.key_variable is not None):
            raise ValueError("{key} and key_variable go together; one of them is missing")
        if self.replay and self.answers is None:
            raise ValueError("replay needs answers, the file that they are kept in")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a template.

        Raises:
            ValueError: If there is no such file, or it is no sound template.
        """
        file = Path(path)
        if not file.is_file():
            raise ValueError(f"there is no template {file}; give a .toml or .json file")
        text = file.read_text(encoding="utf-8")
        try:
            content = read_json(text) if file.suffix == ".json" else parse_toml(text)
            known = {one.name for one in fields(cls)}
            if not isinstance(content, dict) or content.keys() - known:
                raise ValueError(f"expected an object with some of {', '.join(sorted(known))}")
            if content.get("answers"):
                content["answers"] = str(file.parent / content["answers"])
            return cls(**content)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} is no sound template: {error}") from error


class Pace:
    """Lets so many a second through, each at its turn.

    Args:
        per_second: How many.
        clock: Gives the time in seconds.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        per_second: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._gap = 1 / per_second
        self._clock, self._sleep = clock, sleep
        self._next = -inf
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Wait for the next turn."""
        with self._lock:
            turn = max(self._next, self._clock())
            self._next = turn + self._gap
        if (left := turn - self._clock()) > 0:
            self._sleep(left)


class WebRetriever:
    """Searches with a service of the web.

    Any number of threads may use it. Redirects are not followed, and proxies of the environment are
    not used.

    Args:
        settings: How it is asked.
        pace: Spaces the requests; None for ``settings.per_second``.

    Attributes:
        requests: Attempts so far.

    Raises:
        ValueError: If the key is not in the environment, or kept answers cannot be read.
    """

    def __init__(self, settings: WebSettings, pace: Pace | None = None) -> None:
        self.settings = settings
        self.requests = 0
        self._key = ""
        if settings.key_variable is not None and not settings.replay:
            self._key = os.environ.get(settings.key_variable, "")
            if not self._key:
                raise ValueError(
                    f"the template needs a key: set the environment variable "
                    f"{settings.key_variable}"
                )
        self._answers = _read_answers(settings)
        self._pace = pace or Pace(settings.per_second)
        self._lock = threading.Lock()
        limits = httpx2.Limits(max_connections=settings.connections)
        # Not a client: it logs whole addresses, and there may be a key in them.
        self._transport = httpx2.HTTPTransport(limits=limits, trust_env=False)
        if not settings.replay:
            kept = "answers that are kept stay" if settings.answers else "set answers to keep them"
            warnings.warn(
                f"results of {settings.url} change from day to day, so runs over it cannot be "
                f"repeated ({kept}); they are text of strangers",
                stacklevel=2,
            )

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Search for several queries, each with a request of its own.

        Args:
            queries: The queries; may be empty.
            k: How many documents to return for each at most, at least 1.

        Returns:
            One list per query, in the order of the service.

        Raises:
            HTTPRetrievalError: If a query had no answer; it carries those of the others.
            ValueError: If ``k`` is less than 1, or ``queries`` is a single string.
        """
        check_search(queries, k)
        each = list(dict.fromkeys(queries))
        with ThreadPoolExecutor(self.settings.connections) as threads:
            answers = dict(
                zip(each, threads.map(lambda one: self._find(one, k), each), strict=True)
            )
        found = [answers[query] for query in queries]
        failures = [one for one in found if isinstance(one, HTTPRetrievalError)]
        if failures:
            raise HTTPRetrievalError(
                f"{len(failures)} of {len(queries)} queries failed: {failures[0]}",
                failures[0].kind,
                [None if isinstance(one, HTTPRetrievalError) else one for one in found],
                refused=[
                    place
                    for place, one in enumerate(found)
                    if isinstance(one, HTTPRetrievalError) and one.refused
                ],
            )
        return [list(one) for one in found if not isinstance(one, HTTPRetrievalError)]

    def _find(self, query: str, k: int) -> list[Document] | HTTPRetrievalError:
        kept = self._answers.get((query, k))
        if kept is not None:
            return kept
        if self.settings.replay:
            return HTTPRetrievalError(
                f"no answer to {query!r:.80} with k = {k} is kept in {self.settings.answers}",
                "unreachable",
                passing=False,
            )
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.settings.attempts),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=20),
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, HTTPRetrievalError) and error.passing
            ),
            reraise=True,
        )
        try:
            documents: list[Document] = retrying(self._ask, query, k)
        except HTTPRetrievalError as failure:
            return failure
        self._keep(query, k, documents)
        return documents

    def _ask(self, query: str, k: int) -> list[Document]:
        """One attempt."""
        settings = self.settings
        values: dict[str, Any] = {"query": query, "k": k, "key": self._key}
        parameters = {name: _filled(one, values) for name, one in settings.parameters.items()}
        headers = {name: str(_filled(one, values)) for name, one in settings.headers.items()}
        post = settings.method == "POST"
        request = httpx2.Request(
            settings.method,
            settings.url,
            params=None if post else parameters,
            json=parameters if post else None,
            headers={"user-agent": "igsearch-env", "accept": "application/json", **headers},
            extensions={"timeout": httpx2.Timeout(settings.timeout).as_dict()},
        )
        self._pace.wait()
        with self._lock:
            self.requests += 1
        status, content = self._answer(request)
        if status != 200:
            about_query = 400 <= status < 500 and status not in NOT_THE_QUERY
            raise self._error(
                f"answered {status}: {content[:200]!r}",
                "status",
                passing=status >= 500 or status in REPEATED_STATUSES,
                refused=(0,) if about_query else (),
            )
        try:
            return _documents(read_json(content), settings)[:k]
        except ValueError as error:
            raise self._error(str(error), "garbage", passing=False) from error

    def _answer(self, request: httpx2.Request) -> tuple[int, bytes]:
        end = time.monotonic() + self.settings.timeout
        content = bytearray()
        try:
            response = self._transport.handle_request(request)
            try:
                for part in response.iter_bytes():
                    content += part
                    if len(content) > MAX_BYTES:
                        message = f"answered more than {MAX_BYTES:,} bytes"
                        raise self._error(message, "garbage", passing=False)
                    if time.monotonic() > end:
                        raise httpx2.ReadTimeout("the answer did not end")
            finally:
                response.close()
            return response.status_code, bytes(content)
        except httpx2.TimeoutException:
            message = f"did not answer within {self.settings.timeout} s"
            raise self._error(message, "timeout") from None
        except httpx2.DecodingError as error:
            raise self._error(f"answered garbage: {error}", "garbage") from error
        except httpx2.RequestError as error:
            raise self._error(str(error) or type(error).__name__, "unreachable") from error

    def _error(self, message: str, kind: Any, **more: Any) -> HTTPRetrievalError:
        """An error that does not hold the key, which a service may send back."""
        text = f"{self.settings.url}: {message}"
        return HTTPRetrievalError(
            text.replace(self._key, "***") if self._key else text, kind, **more
        )

    def _keep(self, query: str, k: int, documents: list[Document]) -> None:
        row = {"query": query, "k": k, "time": int(time.time())}
        rows = [{"id": one.id, "title": one.title, "text": one.text} for one in documents]
        with self._lock:
            self._answers[query, k] = documents
            if self.settings.answers is not None:
                with Path(self.settings.answers).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**row, "documents": rows}) + "\n")

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.settings,)


def _read_answers(settings: WebSettings) -> dict[tuple[str, int], list[Document]]:
    """The kept answers; a last line that a kill cut short is taken out of the file."""
    file = Path(settings.answers) if settings.answers is not None else None
    if file is None or not file.exists():
        if file is not None and settings.replay:
            raise ValueError(f"there are no kept answers in {file}; run without replay first")
        return {}
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content) and not settings.replay:
        os.truncate(file, len(whole))
    found = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = read_json(line)
            documents = [Document(**one) for one in row["documents"]]
            found[str(row["query"]), int(row["k"])] = documents
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}, line {number}: no kept answer ({error!r})") from error
    return found


def _filled(value: Any, values: dict[str, Any]) -> Any:
    """A value of a template with the places in it filled; what is filled in is not looked at."""
    if not isinstance(value, str):
        return value
    if value == "{k}":
        return values["k"]
    parts = value.split("{")
    text = parts[0]
    for part in parts[1:]:
        name, end, rest = part.partition("}")
        text += f"{values[name]}{rest}" if end and name in values else "{" + part
    return text


def _documents(answer: Any, settings: WebSettings) -> list[Document]:
    """The results of an answer as documents; those without any text are left out.

    Raises:
        ValueError: If they are not where the template says.
    """
    results = _at(answer, settings.results)
    if not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
        names = ", ".join(map(repr, list(answer)[:8])) if isinstance(answer, dict) else "no object"
        raise ValueError(
            f"expected a list of objects at {settings.results!r}; the answer has {names}"
        )
    found: dict[str, Document] = {}
    for one in results:
        read = {name: _at(one, path) for name, path in settings.fields.items()}
        title, text = (_text(read.get(name)) for name in ("title", "text"))
        if not (title.strip() or text.strip()):
            continue
        made = hashlib.sha256(f"{title}\n{text}".encode("utf-8", "replace")).hexdigest()[:16]
        name = _text(read.get("id")) or made
        found.setdefault(name, Document(name, title, text))
    return list(found.values())


def _at(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _text(value: Any) -> str:
    return "" if value is None else str(value)
