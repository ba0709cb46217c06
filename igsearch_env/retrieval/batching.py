"""Searches that arrive together, run as one: encoders and dense indexes are faster by the batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue

from igsearch_env.episode import Document
from igsearch_env.retrieval.base import Retriever

Found = list[list[Document]]


class Overloaded(Exception):
    """More queries wait than may; try again later."""


@dataclass(eq=False)
class _Waiting:
    """A request: its queries, and the documents of those that were searched already."""

    queries: Sequence[str]
    k: int
    answer: asyncio.Future[Found]
    found: Found = field(default_factory=list)

    def next(self, count: int) -> Sequence[str]:
        """The next queries to search, ``count`` at most."""
        return self.queries[len(self.found) : len(self.found) + count]


@dataclass(frozen=True)
class _Call:
    queries: Sequence[str]
    k: int
    found: Future[Found]


class MicroBatcher:
    """Runs the searches of concurrent requests, one batch at a time, on a thread of its own.

    While a batch runs, what arrives waits; then all of it that fits makes the next one. So a lone
    request waits for nobody, and batches grow with the load. A request with more queries than a
    batch holds is searched in parts, and goes to the end of the queue after each: the others wait
    for one batch of it, not for all. Requests share a batch only if they want the same number of
    documents: an approximate index may find others for another number. A batch that fails is run
    again request by request, so that one of them cannot fail the others.

    Args:
        retriever: Searches.
        max_batch: Queries of one batch, at most; 1 runs every query by itself.
        max_waiting: Queries that may wait.
        observe: Called with the number of queries of each batch.
    """

    def __init__(
        self,
        retriever: Retriever,
        max_batch: int,
        max_waiting: int,
        observe: Callable[[int], None] = lambda queries: None,
    ) -> None:
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._observe = observe
        self._waiting: list[_Waiting] = []
        self._running: asyncio.Task[None] | None = None
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        # Not a thread of a pool: the end of the process waits for those, however long they take.
        threading.Thread(
            target=_search_each, args=(retriever, self._calls), name="retriever", daemon=True
        ).start()

    @property
    def waiting(self) -> int:
        """Queries that wait for the batch before theirs."""
        return sum(len(one.queries) - len(one.found) for one in self._waiting)

    async def search(self, queries: Sequence[str], k: int) -> Found:
        """Search, together with whoever else wants to.

        Raises:
            Overloaded: If too many queries wait already.
        """
        if self._waiting and self.waiting + len(queries) > self._max_waiting:
            raise Overloaded(f"{self.waiting} queries wait, at most {self._max_waiting} may")
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(queries, k, answer))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await answer

    def close(self) -> None:
        """End the thread once its batch is done, without waiting for it."""
        self._calls.put(None)

    async def _run(self) -> None:
        while self._waiting:
            batch = self._take()
            self._observe(sum(map(len, batch.values())))
            try:
                await self._answer(batch)
            except Exception as error:
                if len(batch) == 1:
                    _refuse(next(iter(batch)), error)
                    continue
                for one, queries in batch.items():
                    try:
                        await self._answer({one: queries})
                    except Exception as own_error:
                        _refuse(one, own_error)
        self._running = None

    def _take(self) -> dict[_Waiting, Sequence[str]]:
        """The next batch: queries of the oldest request, and of those that may run with it."""
        k = self._waiting[0].k
        batch: dict[_Waiting, Sequence[str]] = {}
        rest: list[_Waiting] = []
        room = self._max_batch
        for one in self._waiting:
            queries = one.next(self._max_batch)
            if one.k == k and len(queries) <= room:
                batch[one] = queries
                room -= len(queries)
            else:
                rest.append(one)
        self._waiting = rest
        return batch

    async def _answer(self, batch: dict[_Waiting, Sequence[str]]) -> None:
        queries = [query for part in batch.values() for query in part]
        k = next(iter(batch)).k
        call = _Call(queries, k, Future())
        self._calls.put(call)
        found = await asyncio.wrap_future(call.found)
        if len(found) != len(queries):
            raise ValueError(f"the retriever found {len(found)} lists for {len(queries)} queries")
        start = 0
        for one, part in batch.items():
            one.found += found[start : start + len(part)]
            start += len(part)
            if one.answer.done():  # given up
                continue
            if len(one.found) == len(one.queries):
                one.answer.set_result(one.found)
            else:
                self._waiting.append(one)


def _search_each(retriever: Retriever, calls: SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        if not call.found.set_running_or_notify_cancel():
            continue
        try:
            call.found.set_result(retriever.search(call.queries, call.k))
        except BaseException as error:  # whoever waits for the call raises it
            call.found.set_exception(error)


def _refuse(one: _Waiting, error: Exception) -> None:
    if not one.answer.done():
        one.answer.set_exception(error)
