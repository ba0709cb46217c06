"""The figures of the endurance runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.campaigns import soak


def test_a_slope_is_what_a_run_adds() -> None:
    line = [9.0] * 50 + [3.0 + 0.5 * place for place in np.linspace(0.0, 1.0, 50)]
    found = soak.slope(line)
    assert found["change"] == pytest.approx(0.5 / 0.5)
    assert found["mean"] == pytest.approx(3.25)
    assert found["low"] == pytest.approx(found["high"])


def test_what_never_changes_has_a_slope_of_nothing() -> None:
    assert soak.slope([9.0] * 100) == {"mean": 9.0, "change": 0.0, "low": 0.0, "high": 0.0}


def test_an_interval_holds_the_slope_of_a_noisy_line() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        places = np.linspace(0.0, 1.0, 100)
        found = soak.slope(list(2.0 * places + rng.normal(0.0, 1.0, 100)))
        held += found["low"] <= 2.0 <= found["high"]
    assert 0.9 < held / 200 < 0.99


def test_the_environment_is_sampled(tmp_path: Path) -> None:
    samples = soak.environment(tmp_path, 1 / 160)
    assert samples[-1]["done"] == 100 * 64
    assert len(samples) == 100
    assert all(one["memory_mib"] > 0 and one["files"] > 0 for one in samples)
    rows = soak.table({"environment": samples})
    assert all(one["cpu_ms"] > 0 and one["relative"] > 0 for one in samples)
    assert {row["quantity"] for row in rows} == {*soak.QUANTITIES}
    assert "| environment steps | 6,400 | memory, MiB |" in soak.markdown(rows)


def test_training_is_compared_with_a_run_that_has_just_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "SAMPLES", 2)
    samples = soak.training(tmp_path, 1 / 150)
    assert [one["done"] for one in samples] == [10, 20]
    assert all(0 < one["relative"] < np.inf for one in samples)
    assert (tmp_path / "training" / "checkpoints").is_dir()
