"""Checkpoints are there whole or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from agents.transformers_policy import TransformersPolicy
from igsearch_env.files import alone_in
from trainers.local.checkpoint import checkpoints, load_checkpoint, save_checkpoint

MakePolicy = Callable[..., TransformersPolicy]


def load_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path / "trainer.pt", weights_only=False)
    return state


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_are_kept(tmp_path: Path, make_policy: MakePolicy) -> None:
    policy = make_policy()
    assert checkpoints(tmp_path / "absent") == []
    for step in (1, 2, 10, 11):
        path = save_checkpoint(tmp_path, policy, {"step": step}, step, keep=2)
        assert path.name == f"step-{step:06d}"
        assert checkpoints(tmp_path)[-1] == path
    assert names(tmp_path) == ["step-000010", "step-000011"]
    assert [load_state(path)["step"] for path in checkpoints(tmp_path)] == [10, 11]


def test_a_checkpoint_holds_policy_and_state(tmp_path: Path, make_policy: MakePolicy) -> None:
    policy = make_policy()
    tensor = torch.arange(5)
    state = {"tensor": tensor, "nested": {"list": [1, None, "x"]}}
    path = save_checkpoint(tmp_path, policy, state, 3, keep=1)
    restored: list[Any] = []
    load_checkpoint(path, make_policy().model, lambda *parts: restored.extend(parts))
    loaded, weights = restored
    assert all(torch.equal(value, weights[n]) for n, value in policy.model.state_dict().items())
    assert torch.equal(loaded.pop("tensor"), tensor)
    assert loaded == {"nested": {"list": [1, None, "x"]}}
    again = TransformersPolicy.from_pretrained(path, policy.protocol)
    for name, value in policy.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


@pytest.mark.parametrize("moment", ["policy", "state", "rename"])
def test_one_that_was_cut_short_does_not_count(
    tmp_path: Path, make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    policy = make_policy()
    first = save_checkpoint(tmp_path, policy, {"step": 1}, 1, keep=1)

    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "policy":
            patch.setattr(policy.tokenizer.tokenizer, "save_pretrained", killed)
        elif moment == "state":
            patch.setattr(torch, "save", killed)
        else:
            patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, policy, {"step": 2}, 2, keep=1)
    assert checkpoints(tmp_path) == [first]
    assert load_state(first) == {"step": 1}
    second = save_checkpoint(tmp_path, policy, {"step": 2}, 2, keep=1)
    assert checkpoints(tmp_path) == [second]
    assert names(tmp_path) == ["step-000002"]


def test_an_old_one_that_was_half_removed_is_not_the_newest(
    tmp_path: Path, make_policy: MakePolicy
) -> None:
    policy = make_policy()
    for step in (1, 2):
        save_checkpoint(tmp_path, policy, {"step": step}, step, keep=2)
    (tmp_path / "step-000001" / "model.safetensors").unlink()
    assert load_state(checkpoints(tmp_path)[-1])["step"] == 2
    (tmp_path / "step-000009").mkdir()  # without a state it is no checkpoint
    assert load_state(checkpoints(tmp_path)[-1])["step"] == 2
    save_checkpoint(tmp_path, policy, {"step": 3}, 3, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000003"]


def test_copies_that_somebody_made_stay(tmp_path: Path, make_policy: MakePolicy) -> None:
    policy = make_policy()
    save_checkpoint(tmp_path, policy, {"step": 1}, 1, keep=1)
    for name in ("step-000001.bak", "step-best"):
        shutil.copytree(tmp_path / "step-000001", tmp_path / name)
    for step in (999_999, 1_000_000):
        assert save_checkpoint(tmp_path, policy, {}, step, keep=1) == checkpoints(tmp_path)[-1]
    assert names(tmp_path) == ["step-000001.bak", "step-1000000", "step-best"]


def test_weights_that_are_missing_are_not_drawn_at_random(
    tmp_path: Path, make_policy: MakePolicy
) -> None:
    policy = make_policy()
    path = save_checkpoint(tmp_path, policy, {"step": 1}, 1, keep=1)
    weights = load_file(path / "model.safetensors")
    lost = sorted(weights)[-1]
    del weights[lost]
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.safetensors does not match its checksum"):
        load_checkpoint(path, policy.model, lambda *parts: None)
    (path / "sha256.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"is damaged .*lacks the weights {re.escape(lost)}"):
        load_checkpoint(path, policy.model, lambda *parts: None)


def test_no_advice_to_load_a_damaged_state_without_a_check(
    tmp_path: Path, make_policy: MakePolicy
) -> None:
    policy = make_policy()
    path = save_checkpoint(tmp_path, policy, {"step": 1}, 1, keep=1)
    (path / "trainer.pt").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="is damaged") as found:
        load_checkpoint(path, policy.model, lambda *parts: None)
    assert "weights_only" not in str(found.value)


def test_two_processes_do_not_train_in_one_folder(make_trainer: Any, tmp_path: Path) -> None:
    first, second = make_trainer("optimization.steps=1"), make_trainer("optimization.steps=1")
    with alone_in(tmp_path / "run"), pytest.raises(ValueError, match="another process is at work"):
        first.run()
    assert not (tmp_path / "run" / "config.json").exists()
    first.run()
    written = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"another process has trained in .* meanwhile"):
        second.run()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == written
