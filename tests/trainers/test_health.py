"""When a run stops, and what it says."""

from __future__ import annotations

import gc
import logging
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainers.config import RunSettings, load_config
from trainers.local import grpo, update
from trainers.local.checkpoint import checkpoints
from trainers.local.grpo import GRPOTrainer
from trainers.local.health import Health, TrainingStoppedError
from trainers.local.run_log import read_log

OVERFLOW = torch.tensor(float("inf"))

MakeTrainer = Callable[..., GRPOTrainer]


def rows(*ems: float, invalid: float = 0.1, **more: float) -> list[dict[str, Any]]:
    return [
        {"step": step, "em": em, "invalid_turns": invalid, **more}
        for step, em in enumerate(ems, start=1)
    ]


def check_each(settings: RunSettings, everything: list[dict[str, Any]]) -> int:
    """Check after each row; returns how many steps went well."""
    health = Health(settings, [])
    for good, row in enumerate(everything):
        try:
            health.check(row)
        except TrainingStoppedError:
            return good
    return len(everything)


@pytest.mark.parametrize(
    ("ems", "good"),
    [
        # Means of two: .2, .3, .35, .25, .15: the last is below half of .35.
        ((0.2, 0.2, 0.4, 0.3, 0.2, 0.1), 5),
        ((0.2, 0.2, 0.4, 0.3, 0.2, 0.2), 6),
        ((0.4,), 1),  # no whole window yet
        ((0.0, 0.0, 0.0), 3),
    ],
)
def test_a_collapse_is_a_mean_below_a_share_of_the_best(ems: tuple[float, ...], good: int) -> None:
    settings = RunSettings(collapse=0.5, collapse_window=2)
    assert check_each(settings, rows(*ems)) == good
    assert check_each(RunSettings(collapse_window=2), rows(*ems)) == len(ems)  # off by default


def test_valid_turns_may_collapse_too() -> None:
    settings = RunSettings(collapse=0.5, collapse_window=1)
    health = Health(settings, rows(0.3))
    with pytest.raises(TrainingStoppedError, match=r"valid turns was 0.400, and 0.900 at its best"):
        health.check(*rows(0.3, invalid=0.6))


def test_the_best_checkpoint_is_that_of_the_best_mean() -> None:
    everything = rows(0.2, 0.2, 0.4, 0.4, 0.2, 0.4)
    health = Health(RunSettings(collapse=0.5, collapse_window=2), everything)
    assert health.best([2, 4, 6]) == 4
    assert health.best([2, 3, 6]) == 6  # as good as step 3, and later
    assert health.best([]) is None
    assert Health(RunSettings(), everything).best([2, 4, 6]) is None


def test_a_long_run_keeps_a_few_numbers_of_each_step() -> None:
    health = Health(RunSettings(collapse=0.5, collapse_window=2), [])
    tracemalloc.start()
    try:
        for row in rows(*[0.5] * 2_000, **{f"metric_{n}": 0.5 for n in range(50)}):
            health.check(row)
        del row
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2_000 * 100  # a row takes thousands of bytes


def test_steps_that_teach_nothing_are_counted_in_a_row() -> None:
    settings = RunSettings(max_wasted_steps=2)
    valid, invalid = rows(0.0)[0], rows(0.0, invalid=1.0)[0]
    assert check_each(settings, [invalid, valid, invalid, invalid]) == 3
    unused = rows(0.0, episodes_used=0.0)[0]
    assert check_each(settings, [unused, invalid, unused, unused]) == 3
    assert check_each(RunSettings(max_wasted_steps=0), [invalid, unused] * 4) == 8


def test_steps_with_a_skipped_update_are_counted_in_a_row() -> None:
    settings = RunSettings(max_bad_steps=2)
    good, bad = rows(0.0, updates_skipped=0.0)[0], rows(0.0, updates_skipped=1.0)[0]
    assert check_each(settings, [bad, good, bad, bad]) == 3
    assert check_each(RunSettings(max_bad_steps=0), [bad] * 8) == 8


def test_a_run_of_bad_batches_stops_with_sound_weights(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each loss overflows, as it may in a half-precision type."""
    real = update.policy_loss
    monkeypatch.setattr(
        update, "policy_loss", lambda *args, **more: replace(real(*args, **more), loss=OVERFLOW)
    )
    trainer = make_trainer("optimization.steps=9", "run.max_bad_steps=2")
    before = {name: value.clone() for name, value in trainer.policy.model.state_dict().items()}
    with pytest.raises(TrainingStoppedError, match="the last 2 steps had an update that was skip"):
        trainer.run()
    assert [row["updates_skipped"] for row in read_log(trainer.out / "metrics.jsonl")] == [1, 1]
    saved = checkpoints(trainer.out / "checkpoints")[-1]
    assert saved.name == "step-000002"
    kept = load_file(saved / "model.safetensors")
    assert kept
    assert all(torch.equal(before[name], value) for name, value in kept.items())


def test_many_invalid_turns_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_each(RunSettings(), rows(0.0, 0.0, invalid=0.9, cut_turns=0.7))
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert message.startswith("step 1: 90 % of the turns are no valid action; 70% of them were cut")
    assert "scripts.warm_start" in message
    caplog.clear()
    check_each(RunSettings(), rows(0.0, invalid=0.79))
    assert not caplog.records


def test_a_run_without_a_valid_turn_stops_with_a_checkpoint(make_trainer: MakeTrainer) -> None:
    short = "policy.max_new_tokens=1"
    trainer = make_trainer(short, "optimization.steps=5", "run.max_wasted_steps=2")
    with pytest.raises(TrainingStoppedError, match="no turn of the last 2 steps was a valid"):
        trainer.run()
    assert len(read_log(trainer.out / "metrics.jsonl")) == 2
    assert [path.name for path in checkpoints(trainer.out / "checkpoints")][-1] == "step-000002"
    assert not (trainer.out / "policy").exists()


def test_after_a_collapse_the_best_checkpoint_is_still_there(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ems = iter([0.2, 0.5, 0.4, 0.3, 0.1])
    real = grpo.batch_metrics
    monkeypatch.setattr(grpo, "batch_metrics", lambda es: {**real(es), "em": next(ems)})
    settings = ("run.collapse=0.5", "run.collapse_window=1", "run.keep_checkpoints=1")
    trainer = make_trainer(*settings, "optimization.steps=6", "optimization.questions_per_step=1")
    best = r"policy\.path=.*checkpoints/step-000002"
    with pytest.raises(TrainingStoppedError, match=rf"exact match was 0\.100, and 0\.500 .*{best}"):
        trainer.run()
    kept = [path.name for path in checkpoints(trainer.out / "checkpoints")]
    assert kept == ["step-000002", "step-000005"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run.collapse=1.0", "collapse must be less than 1"),
        ("run.collapse_window=0", "collapse_window must be greater than or equal to 1"),
        ('run.trackers=["mlflow"]', "trackers must be 'tensorboard', 'wandb' or 'trackio', got"),
    ],
)
def test_settings_out_of_range_are_refused(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, [change])
