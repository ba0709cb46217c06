from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.benchmarks import trl_update
from trainers.config import load_config

pytest.importorskip("trl")
Settings = Callable[..., list[str]]


def test_both_trainers_are_measured_on_the_same_episodes(tiny_settings: Settings) -> None:
    words = [*tiny_settings(), "environment.max_searches=2", "optimization.group_size=2"]
    config = load_config(None, words)
    found = [trl_update.measure((config, 2, rows)) for rows in (0, 2)]
    assert found[0]["tokens"] == found[1]["tokens"] > 0
    assert min(one[name] for one in found for name in ("tokens_per_second", "peak_gib")) > 0


def test_a_micro_batch_that_does_not_divide_the_episodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--rows must divide the 20 episodes"):
        trl_update.main(["--out", str(tmp_path), "--rows", "3"])
    assert not (tmp_path / "results.json").exists()
