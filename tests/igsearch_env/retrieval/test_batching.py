from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from igsearch_env.episode import Document
from igsearch_env.retrieval.base import RetrievalError
from igsearch_env.retrieval.batching import MicroBatcher, Overloaded


def about(query: str, k: int) -> list[Document]:
    return [Document(f"{query}-{i}", query, query) for i in range(k)]


class GatedRetriever:
    """Holds its first call until it is let go; remembers its calls. "poison" makes a call fail."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], int]] = []
        self.started = threading.Event()
        self.go_on = threading.Event()

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        self.calls.append((list(queries), k))
        self.started.set()
        assert self.go_on.wait(120)
        if "poison" in queries:
            raise RetrievalError("poisoned")
        return [about(query, k) for query in queries]


async def run_behind_a_first_call(
    retriever: GatedRetriever, batcher: MicroBatcher, requests: Sequence[tuple[list[str], int]]
) -> list[list[list[Document]] | BaseException]:
    """Answers of requests that all arrive while a first one is being searched."""
    first = asyncio.create_task(batcher.search(["first"], 1))
    await asyncio.to_thread(retriever.started.wait, 120)
    rest = [asyncio.create_task(batcher.search(queries, k)) for queries, k in requests]
    await asyncio.sleep(0)  # let them queue up
    retriever.go_on.set()
    assert await first == [about("first", 1)]
    return await asyncio.gather(*rest, return_exceptions=True)


def play(
    max_batch: int, requests: Sequence[tuple[list[str], int]], max_waiting: int = 1000
) -> tuple[list[tuple[list[str], int]], list[list[list[Document]] | BaseException]]:
    retriever = GatedRetriever()
    sizes: list[int] = []
    batcher = MicroBatcher([retriever.search], max_batch, max_waiting, sizes.append)
    answers = asyncio.run(run_behind_a_first_call(retriever, batcher, requests))
    batcher.close()
    assert batcher.waiting == 0
    assert retriever.calls[0] == (["first"], 1)
    assert sum(sizes) == 1 + sum(
        len(queries)
        for (queries, _), a in zip(requests, answers, strict=True)
        if not isinstance(a, Overloaded)
    )
    return retriever.calls[1:], answers


def test_what_arrives_meanwhile_is_one_batch() -> None:
    calls, answers = play(64, [(["a", "b"], 2), (["c"], 2), (["d", "e"], 2)])
    assert calls == [(["a", "b", "c", "d", "e"], 2)]
    assert answers == [
        [about("a", 2), about("b", 2)],
        [about("c", 2)],
        [about("d", 2), about("e", 2)],
    ]


def test_a_batch_has_its_limit() -> None:
    calls, answers = play(3, [(["a", "b"], 1), (["c", "d"], 1), (["e"], 1), (list("vwxyz"), 1)])
    assert ["".join(queries) for queries, _ in calls] == ["abe", "cd", "vwx", "yz"]
    assert answers[3] == [about(query, 1) for query in "vwxyz"]


def test_a_batch_of_one_is_no_batching() -> None:
    calls, _ = play(1, [(["a"], 1), (["b"], 1), (["c"], 1)])
    assert [queries for queries, _ in calls] == [["a"], ["b"], ["c"]]


def test_another_number_of_documents_is_another_batch() -> None:
    calls, answers = play(64, [(["a"], 1), (["b"], 3), (["c"], 1)])
    assert calls == [(["a", "c"], 1), (["b"], 3)]
    assert answers == [[about("a", 1)], [about("b", 3)], [about("c", 1)]]


def test_a_request_that_fails_does_not_fail_its_neighbours() -> None:
    calls, answers = play(64, [(["a"], 1), (["poison"], 1), (["b"], 1)])
    assert [queries for queries, _ in calls] == [["a", "poison", "b"], ["a"], ["poison"], ["b"]]
    assert answers[0] == [about("a", 1)]
    assert isinstance(answers[1], RetrievalError)
    assert answers[2] == [about("b", 1)]


def test_too_many_that_wait_are_sent_away() -> None:
    calls, answers = play(64, [(["a", "b"], 1), (["c"], 1), (["d"], 1)], max_waiting=3)
    assert calls == [(["a", "b", "c"], 1)]
    assert isinstance(answers[2], Overloaded)


def test_it_goes_on_after_a_failure() -> None:
    retriever = GatedRetriever()
    retriever.go_on.set()
    batcher = MicroBatcher([retriever.search], 8, 8)

    async def scenario() -> None:
        with pytest.raises(RetrievalError, match="poisoned"):
            await batcher.search(["poison"], 1)
        assert await batcher.search(["a"], 1) == [about("a", 1)]

    asyncio.run(scenario())
    batcher.close()


def test_a_retriever_that_loses_a_query_is_an_error() -> None:
    class Forgetful:
        def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
            return [about(query, k) for query in queries][1:]

    batcher = MicroBatcher([Forgetful().search], 8, 8)
    with pytest.raises(ValueError, match="1 lists for 2 queries"):
        asyncio.run(batcher.search(["a", "b"], 1))
    batcher.close()


def test_a_request_that_was_given_up_disturbs_nobody() -> None:
    retriever = GatedRetriever()
    batcher = MicroBatcher([retriever.search], 8, 8)

    async def scenario() -> list[list[Document]]:
        gone = asyncio.create_task(batcher.search(["gone"], 1))
        await asyncio.to_thread(retriever.started.wait, 120)
        also_gone = asyncio.create_task(batcher.search(["also gone"], 1))
        stays = asyncio.create_task(batcher.search(["stays"], 1))
        await asyncio.sleep(0)
        gone.cancel()
        also_gone.cancel()
        retriever.go_on.set()
        return await stays

    assert asyncio.run(scenario()) == [about("stays", 1)]
    batcher.close()


def test_a_request_of_many_queries_takes_turns_with_the_others() -> None:
    """Neither delays the other by more than a batch, and the answers come in order."""
    long = [f"long {i}" for i in range(5)]
    calls, answers = play(2, [(long, 1), (["a"], 1), (["b", "c"], 1), (["d"], 1)])
    assert [queries for queries, _ in calls] == [
        ["long 0", "long 1"],
        ["a", "d"],
        ["b", "c"],
        ["long 2", "long 3"],
        ["long 4"],
    ]
    assert answers[0] == [about(query, 1) for query in long]
    assert answers[2] == [about("b", 1), about("c", 1)]


def test_a_request_that_fails_in_a_later_part_fails_alone() -> None:
    calls, answers = play(2, [(["x", "y", "poison"], 1), (["a", "b"], 1), (["c", "d"], 1)])
    assert [queries for queries, _ in calls] == [["x", "y"], ["a", "b"], ["c", "d"], ["poison"]]
    assert isinstance(answers[0], RetrievalError)
    assert answers[1:] == [[about("a", 1), about("b", 1)], [about("c", 1), about("d", 1)]]


class TestSeveralSearchers:
    def test_search_at_once_and_answers_come_in_order(self) -> None:
        together = threading.Barrier(3)

        def search(queries: Sequence[str], k: int) -> list[list[Document]]:
            together.wait(120)  # only three at once get past it
            return [about(query, k) for query in queries]

        batcher = MicroBatcher([search] * 3, 2, 100)
        queries = [str(number) for number in range(6)]
        assert asyncio.run(batcher.search(queries, 2)) == [about(query, 2) for query in queries]
        batcher.close()

    def test_a_part_that_fails_ends_its_request_alone(self) -> None:
        calls: list[str] = []

        def search(queries: Sequence[str], k: int) -> list[list[Document]]:
            calls.extend(queries)
            if "poison" in queries:
                raise RetrievalError("poisoned")
            return [about(query, k) for query in queries]

        async def scenario() -> list[Any]:
            batcher = MicroBatcher([search] * 2, 1, 100)
            requests = (["a", "poison", "b"], ["c", "d"], ["e"])
            work = [batcher.search(queries, 1) for queries in requests]
            answers = await asyncio.gather(*work, return_exceptions=True)
            await batcher.finish()
            batcher.close()
            assert batcher.waiting == 0
            return answers

        failed, *others = asyncio.run(scenario())
        assert isinstance(failed, RetrievalError)
        assert others == [[about("c", 1), about("d", 1)], [about("e", 1)]]
        assert sorted(set(calls) - {"b"}) == ["a", "c", "d", "e", "poison"]

    def test_finish_waits_for_all_that_was_asked(self) -> None:
        go_on = threading.Event()

        def search(queries: Sequence[str], k: int) -> list[list[Document]]:
            assert go_on.wait(120)
            return [about(query, k) for query in queries]

        async def scenario() -> None:
            batcher = MicroBatcher([search] * 2, 1, 100)
            asked = [asyncio.create_task(batcher.search([name], 1)) for name in "abcde"]
            await asyncio.sleep(0)
            end = asyncio.create_task(batcher.finish())
            await asyncio.sleep(0)
            assert not end.done()
            go_on.set()
            await end
            assert all(one.done() for one in asked)
            batcher.close()

        asyncio.run(scenario())
