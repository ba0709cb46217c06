"""Checkpoints: the policy in Hugging Face format, and the state of the trainer beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from agents.transformers_policy import TransformersPolicy

STATE = "trainer.pt"


def save_checkpoint(
    folder: Path, policy: TransformersPolicy, state: dict[str, Any], step: int, keep: int
) -> Path:
    """Write ``folder/step-N`` in one piece, and remove all but the newest ``keep`` checkpoints.

    It is written beside its place and then renamed, so that a kill leaves a whole one or none.

    Args:
        folder: Where checkpoints are kept.
        policy: What is saved with ``save_pretrained``.
        state: What else a resumed run needs.
        step: Number of steps done.
        keep: How many checkpoints stay.
    """
    target = folder / f"step-{step:06d}"
    unfinished = folder / f".unfinished-{step:06d}"
    for stale in (unfinished, target):
        if stale.exists():
            shutil.rmtree(stale)
    unfinished.mkdir(parents=True)
    policy.save_pretrained(unfinished)
    torch.save(state, unfinished / STATE)
    unfinished.rename(target)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE).is_file())


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The trainer's state of a checkpoint."""
    state: dict[str, Any] = torch.load(checkpoint / STATE, weights_only=False, map_location="cpu")
    return state
