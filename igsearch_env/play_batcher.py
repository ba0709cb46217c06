"""Turns of concurrent episodes, played together: one search for all that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Episode


class _Waiting(NamedTuple):
    episode: Episode
    action: str
    played: asyncio.Future[Episode]


class PlayBatcher:
    """Plays turns of many coroutines through an engine of the environment, a batch at a time.

    While a batch is on its way, in a thread of its own, the turns that come in form the next one.
    So the event loop never waits for a search, no two threads are in the engine at once, and a
    search never waits for a free thread.

    Args:
        engine: The environment's engine.
        patience: How long the first turn of a batch waits for others, in seconds.

    Attributes:
        batches: Number of batches played.
    """

    def __init__(self, engine: SearchQAEngine, patience: float = 0.002) -> None:
        self.engine = engine
        self.patience = patience
        self.batches = 0
        self._thread = ThreadPoolExecutor(1, "play")
        self._waiting: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None

    async def play(self, episode: Episode, action: str) -> Episode:
        """Play one turn of an unfinished episode.

        Args:
            episode: The episode.
            action: The text of the turn; a :class:`~igsearch_env.completion.Completion` keeps its
                tokens.

        Returns:
            The episode with the turn added.

        Raises:
            Exception: Whatever the engine raised for the batch that the turn was in.
        """
        played: asyncio.Future[Episode] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(episode, action, played))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await played

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            await asyncio.sleep(self.patience)
            batch, self._waiting = self._waiting, []
            self.batches += 1
            try:
                episodes = await loop.run_in_executor(self._thread, self._play, batch)
            except Exception as error:  # each coroutine that waits raises it
                for waiting in batch:
                    if not waiting.played.done():
                        waiting.played.set_exception(error)
                continue
            for waiting, episode in zip(batch, episodes, strict=True):
                if not waiting.played.done():  # its coroutine may have been cancelled
                    waiting.played.set_result(episode)

    def _play(self, batch: Sequence[_Waiting]) -> list[Episode]:
        actions = [waiting.action for waiting in batch]
        played = self.engine.step([waiting.episode for waiting in batch], actions)
        return [episode for episode, _ in played]
