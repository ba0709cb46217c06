"""The one fork server of a process, started afresh: it keeps modules and variables of its start."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any


@contextmanager
def fork_server(modules: Sequence[str]) -> Iterator[ForkServerContext]:
    """A fork server that has loaded ``modules`` and has the variables and folder of now.

    Another test may have started one with other modules, which would stay; and none is left for
    later tests.
    """
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    context = multiprocessing.get_context("forkserver")
    server._stop()
    context.set_forkserver_preload(list(modules))
    forkserver.ensure_running()
    try:
        yield context
    finally:
        server._stop()
