from __future__ import annotations

import gc
import platform
import weakref

import pytest

from trainers.local.memory import keep_freed_memory, lasting_objects


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_glibc_takes_both_settings() -> None:
    assert keep_freed_memory()


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
