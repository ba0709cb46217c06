"""Comparing two evaluations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from igsearch_env.cli import program
from igsearch_env.cli.compare import main
from igsearch_env.episode import Episode, Question, Segment
from igsearch_env.evaluation.comparison import FinishedEvaluation, compare
from igsearch_env.record import episode_record
from tests.igsearch_env.cli.evaluating import evaluate, read_json
from tests.igsearch_env.fakes import policy_step


def played(name: str, em: float, dataset: str = "nq", answer: str = "x") -> Episode:
    question = Question(name, f"what is {name} ?", ("gold",), dataset)
    prompt = Segment("?", "system")
    return Episode(question, prompt, answer=answer, em=em, f1=em, outcome=em, terminated=True)


def write(folder: Path, episodes: Sequence[Episode]) -> Path:
    folder.mkdir()
    lines = "".join(json.dumps(episode_record(episode)) + "\n" for episode in episodes)
    (folder / "episodes.jsonl").write_text(lines)
    return folder


def compared(tmp_path: Path, one: Sequence[Episode], other: Sequence[Episode]) -> dict[str, Any]:
    return compare(
        FinishedEvaluation(write(tmp_path / "a", one)),
        FinishedEvaluation(write(tmp_path / "b", other)),
    )


def test_differences_are_paired_by_question_whatever_the_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(2, size=60).astype(float)
    after = np.where(rng.random(60) < 0.2, 1.0, before)  # some become right, none wrong
    one = [played(f"q{i}", em) for i, em in enumerate(before)]
    other = [played(f"q{i}", em) for i, em in enumerate(after)]
    found = compared(tmp_path, one, other[::-1])
    em = found["micro"]["em"]
    assert (em["a"], em["b"]) == (pytest.approx(before.mean()), pytest.approx(after.mean()))
    assert em["difference"] == pytest.approx((after - before).mean())
    low, high = em["interval"]
    assert 0 < low < em["difference"] < high  # unpaired, it would reach below 0
    assert len(found["flips"]["gained"]) == int((after - before).sum())
    assert found["flips"]["lost"] == []


def test_micro_and_macro_averages(tmp_path: Path) -> None:
    one = [played(f"a{i}", 0.0, "big") for i in range(3)] + [played("b", 1.0, "small")]
    other = [played(f"a{i}", 1.0, "big") for i in range(3)] + [played("b", 0.0, "small")]
    found = compared(tmp_path, one, other)
    assert found["micro"]["em"]["difference"] == pytest.approx((3 - 1) / 4)
    assert found["macro"]["em"]["difference"] == pytest.approx((1 - 1) / 2)
    rows = {(row["dataset"], row["metric"]): row["difference"] for row in found["rows"]}
    assert (rows["big", "em"], rows["small", "em"]) == (1.0, -1.0)
    (lost,) = found["flips"]["lost"]
    assert (lost["id"], lost["a"]["em"], lost["b"]["em"]) == ("b", 1.0, 0.0)


def test_samples_of_a_question_are_averaged(tmp_path: Path) -> None:
    one = [played("q", 1.0, answer="u"), played("q", 0.0, answer="v")]
    found = compared(tmp_path, one, [played("q", 1.0)])
    assert (found["n"], found["micro"]["em"]["difference"]) == (1, 0.5)
    (gained,) = found["flips"]["gained"]
    assert gained["a"] == {"em": 0.5, "answers": ["u", "v"]}


def test_what_is_in_one_run_only_is_counted_not_compared(tmp_path: Path) -> None:
    one = [played("p", 0.0), played("q", 1.0)]
    found = compared(tmp_path, one, [played("q", 1.0), played("r", 0.0), played("s", 0.0)])
    assert (found["n"], found["unpaired"], found["micro"]["em"]["a"]) == (1, 3, 1.0)
    assert found["same_questions"] is False


def test_the_program_on_two_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = ("--questions", "world-test", "--corpus", "world", "--limit", 30)
    for agent in ("search_once", "oracle"):
        assert evaluate(*world, "--agent", agent, "--out", tmp_path / agent) == 0
    capsys.readouterr()
    folders = [str(tmp_path / "search_once"), str(tmp_path / "oracle")]
    main([*folders, "--out", str(tmp_path / "out"), "--show", "2"])
    printed = capsys.readouterr().out
    results = read_json(tmp_path / "out" / "results.json")
    assert results["same_questions"] is True
    assert results["micro"]["em"]["b"] == 1.0
    right = read_json(tmp_path / "search_once" / "results.json")["micro"]["em"]
    gained = results["flips"]["gained"]
    assert len(gained) == round(30 * (1 - right))
    assert f"right more often in B: {len(gained)}" in printed
    assert gained[0]["id"] in printed
    assert f"and {len(gained) - 2} more" in printed
    assert "macro average" in printed


def test_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a", [played("q", 1.0)])
    others = {
        "have no question in common": write(tmp_path / "b", [played("p", 1.0)]),
        "its dataset is 'nq' in": write(tmp_path / "c", [played("q", 1.0, "popqa")]),
        "holds no finished evaluation": tmp_path / "none",
    }
    for message, folder in others.items():
        with pytest.raises(SystemExit):
            program.run(lambda folder=folder: main([str(a), str(folder)]))  # type: ignore[misc]
        assert message in capsys.readouterr().err
    (a / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged \(KeyError: 'inputs'\)"):
        FinishedEvaluation(a)


@pytest.mark.parametrize(
    ("scorers", "shown"),
    [
        (("UnigramScorer", "UnigramScorer"), "information_gain (UnigramScorer)"),
        (("UnigramScorer", "TrieScorer"), "UnigramScorer in A, TrieScorer in B: not comparable"),
    ],
)
def test_gains_are_named_with_their_scorers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scorers: Sequence[str], shown: str
) -> None:
    search = policy_step("search", 0, 1, search_step=0, information_gain=0.5)
    one = replace(played("q", 1.0), steps=(search,))
    folders = []
    for name, scorer in zip("ab", scorers, strict=True):
        folders.append(write(tmp_path / name, [one]))
        (folders[-1] / "manifest.json").write_text(json.dumps({"inputs": {"scorer": scorer}}))
    main([str(folder) for folder in folders])
    assert shown in capsys.readouterr().out
