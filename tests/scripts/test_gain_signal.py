"""The table of gains by what a search found: by hand, and of real rollouts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from igsearch_env import Document, Episode
from scripts.laboratory import gain_signal
from scripts.laboratory.gain_signal import signal
from tests.igsearch_env.credit.test_ig_search import episode_of


def found(episode: Episode, *documents: str) -> Episode:
    """The episode with the named document for each search; "gold" is a supporting passage."""
    question = replace(episode.question, gold_ids=("gold",))
    names = iter(documents)
    steps = [
        replace(step, documents=(Document(next(names), "", "text"),))
        if step.action == "search"
        else step
        for step in episode.steps
    ]
    return replace(episode, question=question, steps=tuple(steps))


def test_gains_are_sorted_by_what_was_found() -> None:
    episodes = [
        found(episode_of(0.0, (1, 1.0), (1, 0.5), (1, -0.2)), "gold", "gold", "miss"),
        found(episode_of(0.0, (1, 3.0), (1, None)), "gold", "miss"),
        found(episode_of(0.0, (1, 0.05), (1, 0.1)), "miss", "miss"),
    ]
    rows = [list(row.values()) for row in signal(episodes)]
    assert rows == [
        ["first", True, True, 2, 2.0, 1.0, 1.0],
        ["first", False, True, 1, 0.05, 0.0, 0.0],
        ["later", True, False, 1, 0.5, 0.0, 1.0],
        ["later", False, True, 1, -0.2, 0.0, 0.0],
        ["later", False, False, 1, 0.1, 0.0, 0.0],
    ]


def play(out: Path, *flags: str) -> None:
    sizes = ("world.people=40", "optimization.group_size=2", "optimization.questions_per_step=4")
    settings = [word for size in sizes for word in ("--set", size)]
    gain_signal.main(
        ["--config", "trainers/configs/demo.toml", "--out", str(out), *settings, *flags]
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--questions", "2", "--set", 'credit={method = "outcome"}'),
            "no search has a gain; set environment.",
        ),
        (("--questions", "100000"), "--questions asks for 100000, but there are "),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        play(tmp_path, *flags)
    assert not (tmp_path / "results.json").exists()


def test_real_rollouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play(tmp_path, "--questions", "6")
    assert "12 rollouts" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert sum(row["searches"] for row in results["rows"]) > 12
    assert results["config"]["world"]["people"] == 40
    assert all(0 <= row["noticeable"] <= 1 for row in results["rows"])
    assert results["rows"][0]["search"] == "first"
