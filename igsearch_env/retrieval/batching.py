"""Searches that arrive together, run as one: encoders and dense indexes are faster by the batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue

from igsearch_env.episode import Document
from igsearch_env.retrieval.base import Retriever

Found = list[list[Document]]


class Overloaded(Exception):
    """More queries wait than may; try again later."""


@dataclass(frozen=True)
class _Waiting:
    queries: Sequence[str]
    k: int
    answer: asyncio.Future[Found]


@dataclass(frozen=True)
class _Call:
    queries: Sequence[str]
    k: int
    found: Future[Found]


class MicroBatcher:
    """Runs the searches of concurrent requests, one batch at a time, on a thread of its own.

    While a batch runs, what arrives waits; then all of it that fits makes the next one. So a lone
    request waits for nobody, and batches grow with the load. Requests share a batch only if they
    want the same number of documents: an approximate index may find others for another number. A
    batch that fails is run again request by request, so that one of them cannot fail the others.

    Args:
        retriever: Searches.
        max_batch: Queries of one batch; 1 runs every request by itself. A request with more
            queries is a batch of its own.
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
        return sum(len(one.queries) for one in self._waiting)

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
            self._observe(sum(len(one.queries) for one in batch))
            try:
                await self._answer(batch)
            except Exception as error:
                if len(batch) == 1:
                    _refuse(batch[0], error)
                    continue
                for one in batch:
                    try:
                        await self._answer([one])
                    except Exception as own_error:
                        _refuse(one, own_error)
        self._running = None

    def _take(self) -> list[_Waiting]:
        """The next batch: the oldest request, and those after it that it may run with."""
        k = self._waiting[0].k
        batch: list[_Waiting] = []
        rest: list[_Waiting] = []
        room = self._max_batch
        for one in self._waiting:
            if one.k == k and (not batch or len(one.queries) <= room):
                batch.append(one)
                room -= len(one.queries)
            else:
                rest.append(one)
        self._waiting = rest
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        queries = [query for one in batch for query in one.queries]
        call = _Call(queries, batch[0].k, Future())
        self._calls.put(call)
        found = await asyncio.wrap_future(call.found)
        if len(found) != len(queries):
            raise ValueError(f"the retriever found {len(found)} lists for {len(queries)} queries")
        start = 0
        for one in batch:
            if not one.answer.done():
                one.answer.set_result(found[start : start + len(one.queries)])
            start += len(one.queries)


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
