"""A retriever in several processes: each searches for itself, and a mapped index is shared."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from igsearch_env.episode import Document
from igsearch_env.retrieval.base import Retriever, fingerprint

Load = Callable[[], Retriever]


class SearchProcess:
    """One process with a retriever of its own; a process that dies is started again.

    Args:
        load: Gives the retriever, in the process; it must be picklable.

    Attributes:
        size: How many documents the retriever has, if it knows.
        fingerprint: See :func:`igsearch_env.retrieval.base.fingerprint`.

    Raises:
        ValueError: If the retriever cannot be loaded.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._closed = self._dead = False
        self._lock = threading.Lock()
        try:
            self.size, self.fingerprint = self._start()
        except EOFError as error:
            raise ValueError(
                "a search process ended before its index was loaded; was it out of memory?"
            ) from error

    def _start(self) -> tuple[int | None, str | None]:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs, self._load), daemon=True)
        self._process.start()
        theirs.close()
        about: tuple[int | None, str | None] = self._receive()
        return about

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Search in the process.

        Raises:
            RuntimeError: If the process died again and again, or an index that was started again is
                another one by now.
            Exception: What the retriever raised.
        """
        for _ in range(3):
            try:
                if self._dead:
                    self._restart()
                self._connection.send((list(queries), k))
                found: list[list[Document]] = self._receive()
                return found
            except (EOFError, OSError):  # it was killed, or ran out of memory
                self._dead = True
        raise RuntimeError("a search process died over these queries three times")

    def close(self) -> None:
        """End the process at once; a search that it is at fails."""
        with self._lock:
            self._closed = True
            self._process.kill()
        self._connection.close()

    def _restart(self) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("the search process was closed")
            self._process.kill()
            _, found = self._start()
        if found != self.fingerprint:
            raise RuntimeError(
                "the index was replaced, and a search process that died cannot open the old one "
                "again; let the server load the new one: kill -HUP"
            )
        self._dead = False

    def _receive(self) -> Any:
        kind, value = self._connection.recv()
        if kind == "error":
            raise value
        return value


class SearchProcesses:
    """Several processes with the same retriever.

    Args:
        load: Gives the retriever, in each process; it must be picklable.
        count: How many processes.

    Attributes:
        searchers: The search of each.
        size: How many documents the retriever has, if it knows.
        fingerprint: See :func:`igsearch_env.retrieval.base.fingerprint`.

    Raises:
        ValueError: If the retriever cannot be loaded, or was replaced while it was.
    """

    def __init__(self, load: Load, count: int) -> None:
        with ThreadPoolExecutor(count) as threads:
            started = [threads.submit(SearchProcess, load) for _ in range(count)]
        processes = [one.result() for one in started if one.exception() is None]
        self._processes = processes
        failed = [error for one in started if (error := one.exception()) is not None]
        prints = {process.fingerprint for process in processes}
        if failed or len(prints) > 1:
            self.close()
            raise (
                failed[0]
                if failed
                else ValueError("the index was replaced while it was being opened; start again")
            )
        self.searchers = [process.search for process in processes]
        self.size, self.fingerprint = processes[0].size, processes[0].fingerprint

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.close()


def _answer(connection: Connection, load: Load) -> None:
    """Answer searches until the other side is gone."""
    for name in ("SIGINT", "SIGHUP"):  # a terminal sends them to all; the other side handles them
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    try:
        retriever = load()
        size = len(retriever) if isinstance(retriever, Sized) else None
        about = size, fingerprint(retriever)
    except Exception as error:
        connection.send(("error", ValueError(str(error))))
        return
    search = getattr(retriever, "search_rows", retriever.search)
    connection.send(("loaded", about))
    while True:
        try:
            queries, k = connection.recv()
        except EOFError:
            return
        try:
            answer = "found", search(queries, k)
        except Exception as error:
            answer = "error", RuntimeError(f"{type(error).__name__}: {error}")
        connection.send(answer)
