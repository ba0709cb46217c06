"""A retriever that asks a server over HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any, Self
from urllib.parse import urljoin

from igsearch_env.episode import Document
from igsearch_env.extras import extra
from igsearch_env.retrieval.base import check_search
from igsearch_env.retrieval.http_line import HTTPLine, HTTPRetrievalError, retrieve_url
from igsearch_env.retrieval.wire import DIALECTS, Dialect
from igsearch_env.text import without_logins

with extra("http"):
    import tenacity

log = logging.getLogger(__name__)

Found = list[Document] | HTTPRetrievalError
PLAIN = "ready?"
"""A query that no server has a reason to refuse."""


class HTTPRetriever:
    """Searches with a server that speaks one of the dialects of :mod:`igsearch_env.retrieval.wire`.

    May be used from several threads, pickled, and used after a fork. Its connections are closed by
    :meth:`close`, or once nobody uses it any more. Proxies of the environment are not used: a
    retriever stands beside its trainer.

    Args:
        url: Where to post to, ``http://HOST:PORT/retrieve``; the path may be left out. A login
            (``http://NAME:PASSWORD@HOST``) is sent, and never written or printed; without one, that
            of the environment variable ``IGSEARCH_RETRIEVER_LOGIN`` is (``NAME:PASSWORD``).
        dialect: ``"search-r1"``, ``"skyrl"`` or ``"rllm"``.
        timeout: Seconds that one attempt may take as a whole, until its last byte.
        attempts: How often a request is tried. Between attempts it waits, at random, up to 0.25,
            0.5, 1, ... seconds more, at most ``max_wait``.
        max_wait: Seconds. A search ends once the server has answered none for ``(attempts + 1) *
            (timeout + max_wait)``.
        batch: Queries of one request at most, where the dialect takes several.
        connections: Requests that are on their way at once.
        cache_size: Searches whose documents are kept, the latest used; 0 for none.

    Attributes:
        url: Where it posts to, without the login.
        counts: What has happened: ``requests`` (attempts), ``cached`` (queries answered from the
            cache), ``failed`` (queries that had no answer), and failed attempts by their kind.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        url: str,
        dialect: Dialect = "search-r1",
        *,
        timeout: float = 30.0,
        attempts: int = 5,
        max_wait: float = 5.0,
        batch: int = 64,
        connections: int = 16,
        cache_size: int = 4096,
    ) -> None:
        if dialect not in DIALECTS:
            raise ValueError(f"unknown dialect {dialect!r}: expected one of {', '.join(DIALECTS)}")
        times = 0 < timeout < math.inf and 0 <= max_wait < math.inf
        if not times or min(attempts, batch, connections) < 1 or cache_size < 0:
            raise ValueError(
                "HTTPRetriever needs timeout > 0, max_wait >= 0, attempts, batch and connections "
                f">= 1 and cache_size >= 0, times finite, got {timeout}, {max_wait}, {attempts}, "
                f"{batch}, {connections} and {cache_size}"
            )
        self._address = retrieve_url(url)
        self.url = without_logins(self._address)
        self.dialect: Dialect = dialect
        self.timeout = timeout
        self.attempts = attempts
        self.max_wait = max_wait
        self.batch = batch if dialect == "search-r1" else 1
        self.connections = connections
        self.cache_size = cache_size
        self.counts: Counter[str] = Counter()
        self._cache: OrderedDict[tuple[str, int], list[Document]] = OrderedDict()
        self._lock = threading.Lock()
        self._line: HTTPLine | None = None

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Search for several queries at once.

        Args:
            queries: The queries; may be empty.
            k: How many documents to return for each at most, at least 1; fewer where the server
                has fewer.

        Returns:
            One list per query, in the order of the server.

        Raises:
            HTTPRetrievalError: If a query had no answer; it carries those of the others, and says
                which queries the server refused for what they are (a status from 400 to 499).
            ValueError: If ``k`` is less than 1, or ``queries`` is a single string.
        """
        check_search(queries, k)
        if not queries:
            return []
        line = self._open_line()
        found: list[Found]
        try:
            found = line.run(self._search(line, queries, k))
        except HTTPRetrievalError as closed:
            found = [closed] * len(queries)
        failures = [one for one in found if isinstance(one, HTTPRetrievalError)]
        answers = [None if isinstance(one, HTTPRetrievalError) else list(one) for one in found]
        if failures:
            lost = {query for query, docs in zip(queries, answers, strict=True) if docs is None}
            with self._lock:
                self.counts["failed"] += len(lost)
            refused = [
                place
                for place, one in enumerate(found)
                if isinstance(one, HTTPRetrievalError) and one.refused
            ]
            if refused and not self._answers(line, k):
                refused = []
            first = failures[0]
            message = f"{len(failures)} of {len(queries)} queries failed: {first}"
            log.warning("%s", message)
            raise HTTPRetrievalError(message, first.kind, answers, refused=refused)
        return [answer for answer in answers if answer is not None]

    def check_ready(self) -> None:
        """Ask once whether the server is there and has loaded its index, as it says at ``/ready``.

        A server without that page counts as ready.

        Raises:
            HTTPRetrievalError: If it is not.
        """
        line = self._open_line()
        response = line.run(line.request("GET", urljoin(self.url, "/ready")))
        if response.status_code == 503:
            raise HTTPRetrievalError(
                f"{self.url} still loads its index, as it says at /ready", "status"
            )

    def wait_until_ready(self, seconds: float = 600.0) -> None:
        """Wait until the server answers a search, however long its index takes to load.

        Raises:
            HTTPRetrievalError: If it does not within that time, or speaks another dialect.
        """
        end = time.monotonic() + seconds
        line = self._open_line()
        while True:
            (answer,) = line.run(self._ask(line, [PLAIN], 1))
            if not isinstance(answer, HTTPRetrievalError):
                return
            if not answer.passing or time.monotonic() > end:
                raise answer
            time.sleep(min(1.0, seconds))

    def close(self) -> None:
        """Close the connections; a later search opens them again.

        Searches of other threads that are on their way fail, with ``"closed"``.
        """
        with self._lock:
            line, self._line = self._line, None
        if line is not None:
            line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __getstate__(self) -> dict[str, Any]:
        own: dict[str, Any] = {
            "_lock": None,
            "_line": None,
            "_cache": OrderedDict(),
            "counts": Counter(),
        }
        return self.__dict__ | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _answers(self, line: HTTPLine, k: int) -> bool:
        """Whether the server answers a query that is beyond reproach.

        One that refuses this too has lost its index, speaks another dialect or is another program;
        then it is not the queries that are at fault.
        """
        try:
            (answer,) = line.run(self._ask(line, [PLAIN], k))
        except HTTPRetrievalError:  # closed meanwhile
            return False
        return not isinstance(answer, HTTPRetrievalError)

    def _open_line(self) -> HTTPLine:
        """The connections of this process: those that were made before a fork belong to another."""
        with self._lock:
            if self._line is None or self._line.process != os.getpid():
                self._line = HTTPLine(self._address, self.timeout, self.connections)
            return self._line

    async def _search(self, line: HTTPLine, queries: Sequence[str], k: int) -> list[Found]:
        found: dict[str, Found] = {}
        for query in dict.fromkeys(queries):
            if (query, k) in self._cache:
                self._cache.move_to_end((query, k))
                self.counts["cached"] += 1
                found[query] = self._cache[query, k]
        wanted = [query for query in dict.fromkeys(queries) if query not in found]
        parts = [wanted[at : at + self.batch] for at in range(0, len(wanted), self.batch)]
        answers = await asyncio.gather(*(self._ask_in_time(line, part, k) for part in parts))
        for part, answer in zip(parts, answers, strict=True):
            found |= zip(part, answer, strict=True)
        for query in wanted:
            documents = found[query]
            if not isinstance(documents, HTTPRetrievalError):
                self._cache[query, k] = documents
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return [found[query] for query in queries]

    async def _ask_in_time(self, line: HTTPLine, queries: list[str], k: int) -> list[Found]:
        """Ask, but give up if the server answers nobody, even if no connection gets free.

        While others are answered, this request is on its way or in the queue, and goes on.
        """
        limit = (self.attempts + 1) * (self.timeout + self.max_wait)
        now = asyncio.get_running_loop().time
        asking, start = asyncio.ensure_future(self._ask_patiently(line, queries, k)), now()
        try:
            while (left := max(start, line.answered) + limit - now()) > 0:
                if (await asyncio.wait([asking], timeout=left))[0]:
                    return asking.result()
        finally:
            asking.cancel()
        message = f"{self.url} answered no search for {limit:.1f} s, all attempts together"
        return [HTTPRetrievalError(message, "timeout")] * len(queries)

    async def _ask_patiently(self, line: HTTPLine, queries: list[str], k: int) -> list[Found]:
        """Ask with retries; where a batch fails by what is in it, ask for each query alone."""
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=tenacity.wait_random_exponential(multiplier=0.25, max=self.max_wait),
            retry=tenacity.retry_if_result(
                lambda found: isinstance(found[0], HTTPRetrievalError) and found[0].passing
            ),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        found: list[Found] = await retrying(self._ask, line, queries, k)
        failure = found[0] if isinstance(found[0], HTTPRetrievalError) else None
        if len(queries) > 1 and failure and failure.kind in ("status", "dialect"):
            alone = await asyncio.gather(*(self._ask(line, [query], k) for query in queries))
            return [answer for (answer,) in alone]
        return found

    async def _ask(self, line: HTTPLine, queries: list[str], k: int) -> list[Found]:
        """One attempt: the documents of each query, or the failure for each."""
        async with line.free:
            self.counts["requests"] += 1
            try:
                return [*await line.ask(self.dialect, queries, k)]
            except HTTPRetrievalError as failure:
                self.counts[failure.kind] += 1
                return [failure] * len(queries)
