"""Threads, freed memory and garbage collection."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest
import torch

from igsearch_env.evaluation.setup import CHECKOUT
from igsearch_env.threads import free_cores, set_threads
from trainers.memory import keep_freed_memory, lasting_objects


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cores", "load", "free"),
    [(8, 0.0, 8), (8, 3.2, 5), (8, 7.9, 1), (8, 40.0, 1), (1, 0.0, 1), (2, 0.4, 2), (2, 1.1, 1)],
)
def test_busy_cores_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, cores: int, load: float, free: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 99.0, 99.0), raising=False)
    assert free_cores() == free
    assert set_threads() == free
    assert torch.get_num_threads() == free


def test_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "getloadavg", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert free_cores() == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert free_cores() == 1


def test_a_number_is_taken_as_it_is() -> None:
    assert set_threads(2) == torch.get_num_threads() == 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_glibc_takes_both_settings() -> None:
    assert keep_freed_memory()


HOLES = """
import ctypes, resource, sys
from trainers.memory import give_back_freed_memory, keep_freed_memory

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

assert keep_freed_memory()
size = 1 << 20
blocks = [ctypes.create_string_buffer(b"x" * (size - 1)) for _ in range(96)]
full = held()
del blocks[::2], blocks[:-1]  # the last one stays above the holes
assert full - held() < 8 * size, "malloc keeps what was freed"
assert not give_back_freed_memory(1 << 30), "so little may stay"
assert give_back_freed_memory(16 * size)
assert full - held() > 64 * size, "the holes went back"
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_holes_in_the_heap_go_back_to_the_system() -> None:
    """In a process of its own: the settings of malloc cannot be taken back."""
    subprocess.run([sys.executable, "-c", HOLES], check=True, cwd=CHECKOUT)


LARGE = """
import ctypes, resource, sys
from trainers.memory import keep_freed_memory, large_blocks_given_back

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def returned():
    blocks = [ctypes.create_string_buffer(b"x" * ((8 << 20) - 1)) for _ in range(16)]
    full = held()
    del blocks[:]
    return full - held()

with large_blocks_given_back():
    pass  # nobody has chosen yet, so nothing is set
assert keep_freed_memory()
with large_blocks_given_back():
    with large_blocks_given_back():
        pass
    assert returned() > 100 << 20
assert returned() < 28 << 20, "kept as before"
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_large_blocks_go_back_for_a_while() -> None:
    subprocess.run([sys.executable, "-c", LARGE], check=True, cwd=CHECKOUT)


def test_objects_are_spared_for_a_while_and_new_garbage_is_not() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self

    old = Cycle()
    gone = weakref.ref(old)
    with lasting_objects():
        assert gc.get_freeze_count() > 0
        del old
        young = weakref.ref(Cycle())
        gc.collect()
        assert young() is None
        assert gone() is not None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert gone() is None
