from __future__ import annotations

import platform

import pytest

from trainers.memory import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_glibc_takes_both_settings() -> None:
    assert keep_freed_memory()
