"""Turns of concurrent episodes share their searches, and are told what went wrong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers import PreTrainedTokenizerFast

from agents.tokenization import SegmentTokenizer
from igsearch_env.completion import Completion
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Document, Episode, Question
from igsearch_env.play_batcher import PlayBatcher
from igsearch_env.settings import make_engine

QUESTIONS = [Question(f"q{i}", f"who wrote book {i}?", ("Lima",)) for i in range(8)]


class SlowRetriever:
    """Holds its first search back until the others have come in."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.released = threading.Event()

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        self.asked.append(list(queries))
        assert self.released.wait(120)
        if "broken" in queries:
            raise ZeroDivisionError("the index is broken")
        return [[Document(query, "", query)] for query in queries]


def turn(tokenizer: SegmentTokenizer, text: str) -> Completion:
    ids = tokenizer.encode_answer("", text)[1]
    return Completion.from_tokens(ids, [-0.5] * len(ids), tokenizer.decode)


@pytest.fixture
def retriever() -> SlowRetriever:
    return SlowRetriever()


@pytest.fixture
def engine(retriever: SlowRetriever) -> SearchQAEngine:
    return make_engine(QUESTIONS, retriever, None, top_k=1, num_counterfactuals=0)


def test_what_comes_in_during_a_search_is_searched_at_once(
    bpe: PreTrainedTokenizerFast, engine: SearchQAEngine, retriever: SlowRetriever
) -> None:
    tokenizer = SegmentTokenizer(bpe)

    async def play() -> list[Episode]:
        batcher = PlayBatcher(engine)
        queries = [f"<search> cat {i} </search>" for i in range(len(QUESTIONS))]
        plays = []
        for question, query in zip(QUESTIONS, queries, strict=True):
            episode = engine.rules.begin(question)
            plays.append(asyncio.create_task(batcher.play(episode, turn(tokenizer, query))))
            while len(plays) == 1 and not retriever.asked:
                await asyncio.sleep(0.001)  # the loop goes on while the search waits
        await asyncio.sleep(0)
        retriever.released.set()
        episodes = await asyncio.gather(*plays)
        assert batcher.batches == 2
        return list(episodes)

    episodes = asyncio.run(play())
    assert [len(queries) for queries in retriever.asked] == [1, 7]
    for i, episode in enumerate(episodes):  # each coroutine got its own episode back
        (step,) = episode.steps
        assert episode.question == QUESTIONS[i]
        assert step.query == f"cat {i}" == step.documents[0].id
        assert step.turn.token_ids == turn(tokenizer, f"<search> cat {i} </search>").token_ids


def test_an_error_reaches_every_episode_of_its_batch_and_no_other(
    bpe: PreTrainedTokenizerFast, engine: SearchQAEngine, retriever: SlowRetriever
) -> None:
    tokenizer = SegmentTokenizer(bpe)
    retriever.released.set()

    async def play(*queries: str) -> list[Episode | BaseException]:
        plays = [
            batcher.play(engine.rules.begin(q), turn(tokenizer, f"<search> {query} </search>"))
            for q, query in zip(QUESTIONS, queries, strict=False)
        ]
        return await asyncio.gather(*plays, return_exceptions=True)

    async def both() -> tuple[list[Episode | BaseException], list[Episode | BaseException]]:
        return await play("cat", "broken"), await play("dog")

    batcher = PlayBatcher(engine)
    first, second = asyncio.run(both())
    assert [type(result) for result in first] == [ZeroDivisionError] * 2
    assert [type(result) for result in second] == [Episode]


def test_an_empty_turn_is_an_invalid_one(engine: SearchQAEngine) -> None:
    batcher = PlayBatcher(engine)
    episode = engine.rules.begin(QUESTIONS[0])
    episode = asyncio.run(batcher.play(episode, Completion("", (), None, ())))
    assert episode.steps[0].action == "invalid"
    assert episode.policy_tokens == 0


def test_a_search_does_not_wait_for_a_thread_of_others(
    bpe: PreTrainedTokenizerFast, engine: SearchQAEngine, retriever: SlowRetriever
) -> None:
    """Where the engine scores, threads of the event loop wait for it; searches go on."""
    tokenizer = SegmentTokenizer(bpe)
    retriever.released.set()
    scored = threading.Event()

    async def play() -> Episode:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        scoring = asyncio.create_task(asyncio.to_thread(scored.wait, 20))
        await asyncio.sleep(0)
        batcher = PlayBatcher(engine)
        first = engine.rules.begin(QUESTIONS[0])
        try:
            return await asyncio.wait_for(
                batcher.play(first, turn(tokenizer, "<search> cat </search>")), 10
            )
        finally:
            scored.set()
            await scoring

    assert asyncio.run(play()).steps[0].query == "cat"
