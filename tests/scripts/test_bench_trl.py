from __future__ import annotations

import pytest

from scripts.benchmarks import trl as bench_trl


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_trl, "GROUPS", 2)
    monkeypatch.setattr(bench_trl, "GROUP", 2)
    monkeypatch.setattr(bench_trl, "LENGTH", 5)
    monkeypatch.setattr(bench_trl, "PART", 2)  # two passes a step


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["local", "trl"])
def test_a_trainer_samples_completions_of_the_given_length(name: str) -> None:
    if name == "trl":
        pytest.importorskip("trl", reason="needs the extra trl")
    row = bench_trl.measure((name, 1, 1))
    assert row["trainer"] == name
    assert row["tokens_per_second"] > 0
    assert row["peak_mib"] > 50


def test_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="completions of 5 tokens, got 4"):
        bench_trl.check_length([1, 2, 3, 4])
    assert bench_trl.score([2, 4, 5, 7]) == 0.5
