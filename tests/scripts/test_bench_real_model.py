"""What training did on held-out questions, put together from runs and evaluations, by hand."""

import json

import pytest

from scripts.benchmarks.real_model import main
from tests.igsearch_env.cli.test_compare import played, write


def write_run(folder, values):
    folder.mkdir()
    rows = [
        {"step": step, "em": em, "gold_documents": 0.5, "searches": 1.5, "invalid_turns": 0.0}
        | {"seconds": {"rollout": 2.0 * step, "update": 3.0}}
        for step, em in enumerate(values, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_runs_are_averaged_question_by_question(tmp_path):
    before = write(tmp_path / "before", [played("a", 0.0), played("b", 1.0, "small")])
    first = write(tmp_path / "one", [played("a", 1.0), played("b", 1.0, "small")])
    second = write(tmp_path / "two", [played("b", 0.0, "small"), played("a", 1.0)])
    runs = [write_run(tmp_path / f"run{i}", [0.25, 0.5 + i]) for i in range(2)]
    arguments = ["--out", str(tmp_path / "out"), "--before", str(before), "--runs", *runs]
    main([*arguments, "--after", str(first), str(second)])
    found = json.loads((tmp_path / "out/results.json").read_text())
    rows = {(row["run"], row["questions"]): row for row in found["rows"] if row["measure"] == "em"}
    mean = rows["mean", "all"]  # a: 0 to 1; b: 1 to the mean of 1 and 0
    assert (mean["n"], mean["before"], mean["after"]) == (2, 0.5, 0.75)
    assert mean["low"] == -0.5 < mean["difference"] == 0.25 < mean["high"] == 1.0
    assert rows["mean", "small"]["difference"] == -0.5
    assert [rows[run, "all"]["after"] for run in ("0", "1")] == [1.0, 0.5]
    assert found["seconds_of_a_step"] == [{"rollout": 3.0, "update": 3.0}] * 2
    assert [step["em"] for step in found["steps"][1]] == [0.25, 1.5]
    assert [step["searches"] for step in found["steps"][1]] == [1.5, 1.5]
    assert (tmp_path / "out/curves.png").stat().st_size > 10_000


def test_each_run_has_an_evaluation(tmp_path):
    folder = write(tmp_path / "before", [played("a", 0.0)])
    runs = [write_run(tmp_path / f"run{i}", [0.25]) for i in range(2)]
    arguments = ["--out", str(tmp_path / "out"), "--before", str(folder), "--runs", *runs]
    with pytest.raises(ValueError, match="one evaluation for each of the 2 runs, got 1"):
        main([*arguments, "--after", str(folder)])
