"""Ctrl-C and SIGTERM, which must not stop an update half-way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_delayed() -> Iterator[None]:
    """Let Ctrl-C, and a request to end (SIGTERM), wait until the block has ended."""
    if threading.current_thread() is not threading.main_thread():  # no signals arrive there
        yield
        return
    waiting: list[int] = []
    delayed = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(one, lambda number, _: waiting.append(number)) for one in delayed]
    try:
        yield
    finally:
        for one, handler in zip(delayed, before, strict=True):
            signal.signal(one, handler)
    for number in waiting:
        signal.raise_signal(number)  # whoever handled it before does so now
