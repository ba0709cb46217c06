"""Playing questions to see how good an agent is, in chunks that can be repeated one by one."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

from igsearch_env.agent import Agent
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Episode, Question
from igsearch_env.gain.pool import EvidencePool
from igsearch_env.gain.scorer import AnswerScorer
from igsearch_env.rollout import collect


class Reseedable(Protocol):
    """A policy that makes agents with its weights and generators of their own."""

    batch_size: int

    def fresh(self, seed: int, *, greedy: bool = False) -> Agent:
        """An agent with the same weights and settings, and a generator of its own."""
        ...


def play_questions(
    engine: SearchQAEngine,
    policy: Reseedable,
    questions: Sequence[Question],
    *,
    seed: int,
    greedy: bool = False,
    scorer: AnswerScorer | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Episode]:
    """Play questions with the policy's weights but generators of their own.

    Args:
        engine: Rules and retriever; its pool is left alone.
        policy: The policy; as many questions as its ``batch_size`` are played side by side.
        questions: What is asked.
        seed: Seed of sampling.
        greedy: Take the most likely tokens instead of sampling.
        scorer: Settles the information gain of every search; None for searches without
            counterfactuals.
        progress: Called with the number of episodes that ended in each step.
    """
    counterfactuals = engine.num_counterfactuals if scorer is not None else 0
    scoring = replace(engine, scorer=scorer, num_counterfactuals=counterfactuals)
    return [
        episode
        for chunk in make_chunks(questions, seed=seed, size=policy.batch_size)
        for episode in play_chunk(
            scoring, policy.fresh(chunk.seed, greedy=greedy), chunk, progress=progress
        )
    ]


@dataclass(frozen=True)
class Chunk:
    """Questions that are played side by side, apart from all others.

    Args:
        number: Its number, from 0.
        sample: How many times its questions were asked before.
        seed: Seed of all that is drawn while it is played.
        questions: The questions.
    """

    number: int
    sample: int
    seed: int
    questions: Sequence[Question]


def make_chunks(
    questions: Sequence[Question], *, seed: int, size: int, samples: int = 1
) -> list[Chunk]:
    """Cut questions into chunks: all of them once, then all of them again for each further sample.

    Args:
        questions: What is asked.
        seed: Seed of everything; the seed of a chunk follows from it and the chunk's number.
        size: Questions per chunk; the last one of a sample may be shorter.
        samples: How many times each question is asked.
    """
    parts = [
        (sample, questions[start : start + size])
        for sample in range(samples)
        for start in range(0, len(questions), size)
    ]
    return [
        Chunk(number, sample, random.Random(f"chunk {seed} {number}").getrandbits(63), part)
        for number, (sample, part) in enumerate(parts)
    ]


def play_chunk(
    engine: SearchQAEngine,
    agent: Agent,
    chunk: Chunk,
    *,
    seconds: defaultdict[str, float] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Episode]:
    """Play one chunk; what it gives depends on nothing but the chunk.

    Args:
        engine: Rules and retriever; its pool is left alone. Where it has a scorer, information gain
            is settled at the end.
        agent: Who plays.
        chunk: What is played.
        seconds: Where the time is added up, under ``information_gain`` and as
            :func:`igsearch_env.rollout.collect` does.
        progress: Called with the number of episodes that ended in each step.
    """
    clock = defaultdict[str, float](float) if seconds is None else seconds
    fresh = replace(engine, scorer=None, pool=EvidencePool(seed=chunk.seed))
    episodes = collect(fresh, agent, chunk.questions, seconds=clock, progress=progress)
    if engine.scorer is not None:
        started = time.perf_counter()
        episodes = engine.information_gain.settle(episodes, engine.scorer)
        clock["information_gain"] += time.perf_counter() - started
    return episodes


def play_at_once(
    engine: SearchQAEngine,
    agent_of: Callable[[Chunk], Agent],
    chunks: Iterable[Chunk],
    workers: int,
    *,
    seconds: defaultdict[str, float],
    stop: Callable[[], None],
) -> Iterator[tuple[Chunk, list[Episode]]]:
    """Play chunks in threads, several at a time; for agents that wait for others.

    Args:
        engine: See :func:`play_chunk`; its retriever must stand several searches at once.
        agent_of: Makes the agent of a chunk.
        chunks: What is played.
        workers: How many at a time.
        seconds: Where the time of all threads is added up.
        stop: Called if a chunk fails or the caller stops early; it shall end those under way.

    Yields:
        Each chunk with its episodes, as soon as they have ended.
    """

    def play(chunk: Chunk) -> tuple[list[Episode], defaultdict[str, float]]:
        clock = defaultdict[str, float](float)
        return play_chunk(engine, agent_of(chunk), chunk, seconds=clock), clock

    waiting = iter(chunks)
    with ThreadPoolExecutor(workers) as threads:
        running = {threads.submit(play, chunk): chunk for chunk in islice(waiting, workers)}
        try:
            while running:
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(ended, key=lambda one: one.exception() is not None):
                    episodes, clock = future.result()  # those that failed come last
                    for part, value in clock.items():
                        seconds[part] += value
                    yield running.pop(future), episodes
                    for chunk in islice(waiting, 1):
                        running[threads.submit(play, chunk)] = chunk
        except BaseException:
            stop()
            raise
