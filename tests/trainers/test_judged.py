"""Training on the verdicts of a judge, a real HTTP server on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.scripted_server import ScriptedServer
from trainers.local.grpo import GRPOTrainer
from trainers.local.health import TrainingStoppedError
from trainers.local.run_log import read_log

MakeTrainer = Callable[..., GRPOTrainer]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A judge that takes every other answer for right, by its length."""
    one = ScriptedServer()

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        data = json.loads(body["messages"][1]["content"].split("\n", 1)[0])
        text = json.dumps({"reason": "", "correct": len(data["submitted_answer"]) % 2 == 0})
        return 200, {"choices": [{"message": {"content": text}}]}

    one.answer = answer
    yield one
    one.close()


def settings(server: ScriptedServer, *more: str) -> list[str]:
    return [
        "optimization.steps=2",
        "environment.outcome={judge = 1.0, searches = -0.1}",
        f"environment.judge={json.dumps(server.url)}",
        "environment.judge_model=m",
        *more,
    ]


def test_verdicts_are_learned_from_logged_and_kept(
    make_trainer: MakeTrainer, server: ScriptedServer, tmp_path: Path
) -> None:
    cache = f"environment.judge_cache={json.dumps(str(tmp_path / 'verdicts'))}"
    trainer = make_trainer(*settings(server, cache))
    before = {name: value.clone() for name, value in trainer.policy.model.state_dict().items()}
    trainer.run()
    rows = read_log(trainer.out / "metrics.jsonl")
    for row in rows:
        assert 0 < row["outcome_judge"] < 1
        paid = row["outcome_judge"] - 0.1 * row["outcome_searches"]
        assert row["outcome"] == pytest.approx(paid)
        assert row["unscored_rollouts"] == 0
    assert rows[-1]["judge"]["calls"] == len(server.asked)
    assert rows[-1]["judge"]["judgements"] >= rows[-1]["judge"]["calls"]
    after = trainer.policy.model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)

    asked = len(server.asked)
    again = make_trainer(*settings(server, cache), name="again")
    again.run()
    assert len(server.asked) == asked  # the same seed gives the same answers, all judged before
    assert [row["outcome"] for row in read_log(again.out / "metrics.jsonl")] == [
        row["outcome"] for row in rows
    ]
    moved = make_trainer(*settings(server, "environment.judge=http://127.0.0.1:9/v1"), resume=True)
    assert moved.step == 2


def test_a_judge_that_always_fails_teaches_nothing_and_ends_the_run(
    make_trainer: MakeTrainer, server: ScriptedServer
) -> None:
    server.answer = lambda number, body: (401, {"error": {"message": "no key"}})
    trainer = make_trainer(*settings(server, "optimization.steps=9", "run.max_wasted_steps=2"))
    before = {name: value.clone() for name, value in trainer.policy.model.state_dict().items()}
    with pytest.raises(TrainingStoppedError, match="its outcome could not be had"):
        trainer.run()
    rows = read_log(trainer.out / "metrics.jsonl")
    assert len(rows) == 2
    for row in rows:  # those without an answer are wrong, and need no judge
        assert row["unscored_rollouts"] > 0
        assert row["judge"]["failed"] > 0
    after = trainer.policy.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
