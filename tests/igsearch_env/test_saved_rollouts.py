"""Rollouts that a run keeps: which, and that every token keeps its own advantage."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from igsearch_env.episode import Episode, Question, Segment, Step
from igsearch_env.viewer.saved_rollouts import (
    GROUPS,
    SavedRollout,
    rollouts_file,
    save_rollouts,
    saved_steps,
)
from trainers.config import load_config, make_credit_from
from trainers.local.grpo import GRPOTrainer

Settings = Callable[..., list[str]]
QUESTION = Question("q", "Where?", ("Lima",))


def read(path: Path) -> list[SavedRollout]:
    return [SavedRollout.from_record(json.loads(line)) for line in path.open()]


def decode_bytes(token_ids: list[int]) -> str:
    return bytes(token_ids).decode("utf-8", errors="replace")


def written(*turns: str, group: str = "g") -> Episode:
    """An episode of some turns; a token is a byte."""
    steps: list[Step] = []
    start = 0
    for turn in turns:
        ids = tuple(turn.encode())
        span = slice(start, start + len(ids))
        steps.append(Step("invalid", Segment(turn, "policy", ids), None, span, slice(start, start)))
        start += len(ids)
    return Episode(QUESTION, Segment("?", "system"), tuple(steps), group)


@pytest.mark.parametrize("method", ["ig_search", "outcome"])
def test_a_run_keeps_whole_groups_with_the_advantages_of_their_tokens(
    tmp_path: Path, tiny_settings: Settings, method: str
) -> None:
    credit = [] if method == "ig_search" else ["credit.method=outcome"]
    settings = tiny_settings(
        "optimization.steps=6",
        "optimization.questions_per_step=6",
        "run.save_rollouts_every=4",
        *credit,
    )
    config = load_config(overrides=settings)
    trainer = GRPOTrainer(config, tmp_path / "run")
    trainer.run()
    steps = dict(saved_steps(trainer.out))
    assert list(steps) == [1, 4, 6]
    decode = trainer.policy.tokenizer.decode
    for step, path in steps.items():
        assert path == rollouts_file(trainer.out, step)
        kept = read(path)
        episodes = [one.episode for one in kept]
        groups = list(dict.fromkeys(episode.group_id for episode in episodes))
        assert [group.split("-")[:2] for group in groups] == [
            [str(step - 1), str(i)] for i in range(GROUPS)
        ]
        assert len(episodes) == GROUPS * config.optimization.group_size
        # Whole groups: credit over them alone is what it was over the batch.
        expected = make_credit_from(config.credit)(episodes)
        for one, values in zip(kept, expected, strict=True):
            assert list(one.advantages) == values.tolist()
            for turn, ends in zip(one.episode.steps, one.token_ends, strict=True):
                ids = turn.turn.token_ids or ()
                starts = (0, *ends[:-1])
                texts = [turn.turn.text[a:b] for a, b in zip(starts, ends, strict=True)]
                assert texts == [decode([token]) for token in ids]


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [1, 2, 3]), (50, [1, 3])])
def test_how_often_is_a_setting(
    tmp_path: Path, tiny_settings: Settings, every: int, steps: list[int]
) -> None:
    config = load_config(overrides=tiny_settings(f"run.save_rollouts_every={every}"))
    trainer = GRPOTrainer(config, tmp_path / "run")
    trainer.run()
    assert [step for step, _ in saved_steps(trainer.out)] == steps


def test_a_character_of_several_tokens_ends_at_the_last_of_them() -> None:
    episode = written("é🙂", "", "a")
    saved = SavedRollout.from_advantages(episode, np.arange(7.0), decode_bytes)
    assert saved.token_ends == ((0, 1, 1, 1, 1, 2), (), (1,))
    assert saved.advantages == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    groups = [written(str(i), group=str(i // 2)) for i in range(2 * GROUPS + 2)]
    advantages = [np.array([i / 3]) for i in range(len(groups))]
    path = tmp_path / "rollouts" / "step-000001.jsonl"
    save_rollouts(path, groups, advantages, decode_bytes)
    kept = read(path)
    assert [one.episode for one in kept] == groups[: 2 * GROUPS]
    assert [one.advantages for one in kept] == [(i / 3,) for i in range(2 * GROUPS)]


def test_what_is_no_number_is_kept_as_nothing() -> None:
    values = np.array([np.nan, np.inf, -0.5])
    saved = SavedRollout.from_advantages(written("abc"), values, decode_bytes)
    assert saved.advantages == (None, None, -0.5)
    assert "NaN" not in json.dumps(saved.record())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1}, "expected a rollout with episode, advantages and token_ends"),
        ({"episode": {}}, "expected the record of an episode"),
    ],
)
def test_what_is_no_rollout_is_refused(change: dict[str, Any], message: str) -> None:
    record = SavedRollout(replace(written("a"), group_id="g"), (0.0,), ((1,),)).record()
    with pytest.raises(ValueError, match=message):
        SavedRollout.from_record({**record, **change})
