from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts.benchmarks import evaluation as bench_evaluation
from tests.igsearch_env.cli.evaluating import read_json


def test_it_measures_every_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_evaluation, "QUESTIONS", 4)
    monkeypatch.setattr(bench_evaluation, "ALONE", 2)
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--out", str(tmp_path)])
    bench_evaluation.main()
    one, many = read_json(tmp_path / "results.json")["rows"]
    assert (one["batch_size"], one["faster"], many["batch_size"]) == (1, 1.0, 128)
    assert all(row["seconds_per_question"] > 0 and len(row["rounds"]) == 3 for row in (one, many))


def test_the_ratio_is_that_of_each_round() -> None:
    row = bench_evaluation._row(8, [1.0, 2.0, 4.0], [5.0, 20.0, 12.0])
    assert (row["seconds_per_question"], row["faster"]) == (2.0, 5.0)
