"""Searches that arrive together, run as one: encoders and dense indexes are faster by the batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue

from igsearch_env.episode import Document

Found = list[list[Document]]
Search = Callable[[Sequence[str], int], Found]
"""Finds documents for queries, as :meth:`Retriever.search` does."""


class Overloaded(Exception):
    """More queries wait than may; try again later."""


class _Waiting:
    """A request: its queries, how many were taken to be searched, and what was found."""

    def __init__(self, queries: Sequence[str], k: int, answer: asyncio.Future[Found]) -> None:
        self.queries, self.k, self.answer = queries, k, answer
        self.taken = 0
        self.missing = len(queries)
        self.found: Found = [[] for _ in queries]


@dataclass(frozen=True)
class _Part:
    """Some queries of a request, from ``start`` on."""

    request: _Waiting
    start: int
    queries: Sequence[str]


@dataclass(frozen=True)
class _Call:
    queries: Sequence[str]
    k: int
    found: Future[Found]


class MicroBatcher:
    """Runs the searches of concurrent requests in batches, on threads of its own.

    There is a thread for each searcher. While all of them search, what arrives waits; then all of
    it that fits makes the next batch. So a lone request waits for nobody, and batches grow with the
    load. A request with more queries than a
    batch holds is searched in parts, and goes to the end of the queue after each: the others wait
    for one batch of it, not for all. Searchers that are free share its parts. Requests share a
    batch only if they want the same number of documents: an approximate index may find others for
    another number. A batch that fails is run again request by request, so that one of them cannot
    fail the others.

    Args:
        searchers: Search, each for one batch at a time; all must find the same.
        max_batch: Queries of one batch, at most; 1 runs every query by itself.
        max_waiting: Queries that may wait.
        observe: Called with the number of queries of each batch.
    """

    def __init__(
        self,
        searchers: Sequence[Search],
        max_batch: int,
        max_waiting: int,
        observe: Callable[[int], None] = lambda queries: None,
    ) -> None:
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._observe = observe
        self._waiting: list[_Waiting] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._active = 0  # tasks that still take batches
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._searchers = len(searchers)
        for search in searchers:
            # Not threads of a pool: the end of the process waits for those, however long they take.
            threading.Thread(
                target=_search_each, args=(search, self._calls), name="retriever", daemon=True
            ).start()

    @property
    def waiting(self) -> int:
        """Queries that wait to be searched."""
        return sum(len(one.queries) - one.taken for one in self._waiting)

    async def search(self, queries: Sequence[str], k: int) -> Found:
        """Search, together with whoever else wants to.

        Raises:
            Overloaded: If too many queries wait already.
        """
        if self._waiting and self.waiting + len(queries) > self._max_waiting:
            raise Overloaded(f"{self.waiting} queries wait, at most {self._max_waiting} may")
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(queries, k, answer))
        self._start()
        return await answer

    async def finish(self) -> None:
        """Wait until all that was asked for is answered; nothing more may be asked for."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        """End the threads once their batches are done, without waiting for them."""
        for _ in range(self._searchers):
            self._calls.put(None)

    def _start(self) -> None:
        """Begin to search what waits, if a searcher is free."""
        if self._active < self._searchers:
            self._active += 1
            task = asyncio.create_task(self._run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        while batch := self._take():
            rest = [one.request for one in batch if one.request.taken < len(one.request.queries)]
            if rest and self._active < self._searchers:  # another one goes on with it at once
                self._waiting += rest
                rest = []
                self._start()
            self._observe(sum(len(part.queries) for part in batch))
            try:
                await self._answer(batch)
            except Exception as error:
                if len(batch) == 1:
                    _refuse(batch[0].request, error)
                else:
                    await self._answer_one_by_one(batch)
            self._waiting += rest
        self._active -= 1

    def _take(self) -> list[_Part]:
        """The next batch: queries of the oldest request, and of those that may run with it."""
        waiting = [one for one in self._waiting if not one.answer.done()]  # failed or given up
        batch: list[_Part] = []
        self._waiting, room = [], self._max_batch
        for one in waiting:
            queries = one.queries[one.taken : one.taken + self._max_batch]
            if one.k == waiting[0].k and len(queries) <= room:
                batch.append(_Part(one, one.taken, queries))
                one.taken += len(queries)
                room -= len(queries)
            else:
                self._waiting.append(one)
        return batch

    async def _answer_one_by_one(self, batch: list[_Part]) -> None:
        for part in batch:
            try:
                await self._answer([part])
            except Exception as error:
                _refuse(part.request, error)

    async def _answer(self, batch: list[_Part]) -> None:
        queries = [query for part in batch for query in part.queries]
        call = _Call(queries, batch[0].request.k, Future())
        self._calls.put(call)
        found = await asyncio.wrap_future(call.found)
        if len(found) != len(queries):
            raise ValueError(f"the retriever found {len(found)} lists for {len(queries)} queries")
        at = 0
        for part in batch:
            one, count = part.request, len(part.queries)
            one.found[part.start : part.start + count] = found[at : at + count]
            at += count
            one.missing -= count
            if one.missing == 0 and not one.answer.done():
                one.answer.set_result(one.found)


def _search_each(search: Search, calls: SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        if not call.found.set_running_or_notify_cancel():
            continue
        try:
            call.found.set_result(search(call.queries, call.k))
        except BaseException as error:  # whoever waits for the call raises it
            call.found.set_exception(error)


def _refuse(one: _Waiting, error: Exception) -> None:
    if not one.answer.done():
        one.answer.set_exception(error)
