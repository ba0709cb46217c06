"""Checkpoints: the policy in Hugging Face format, and the state of the trainer beside it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from agents.lora import has_adapters, read_adapters
from agents.transformers_policy import TransformersPolicy
from igsearch_env.files import sha256_of, write_json

STATE = "trainer.pt"
SUMS = "sha256.json"


def save_checkpoint(
    folder: Path,
    policy: TransformersPolicy,
    state: dict[str, Any],
    step: int,
    keep: int,
    best: Callable[[Sequence[int]], int | None] = lambda steps: None,
) -> Path:
    """Write ``folder/step-N`` in one piece, and remove all but the newest ``keep`` checkpoints.

    Args:
        folder: Where checkpoints are kept.
        policy: What is saved with ``save_pretrained``, its adapters alone if it has some.
        state: What else a resumed run needs.
        step: Number of steps done.
        keep: How many checkpoints stay.
        best: Says which of some steps is that of a checkpoint which stays besides; None for none.

    Raises:
        OSError: If it cannot be written; the checkpoints before it are still there then.
        ValueError: If a weight or a number of the state is not finite; likewise.
    """
    _check_state(state)

    def write(unfinished: Path) -> None:
        policy.save_pretrained(unfinished, adapters_only=has_adapters(policy.model))
        torch.save(state, unfinished / STATE)
        sums = {file.name: sha256_of(file) for file in sorted(unfinished.iterdir())}
        write_json(unfinished / SUMS, sums)

    target = folder / f"step-{step:06d}"
    _write_folder(target, write)
    found = checkpoints(folder)
    # A later one is of steps that are done again, since it could not be read.
    found, later = found[: found.index(target) + 1], found[found.index(target) + 1 :]
    good = best([step_of(one) for one in found])
    for old in [*(one for one in found[:-keep] if step_of(one) != good), *later]:
        shutil.rmtree(old)
    return target


def save_policy(folder: Path, policy: TransformersPolicy, *, adapters_only: bool = False) -> None:
    """Write a policy with ``save_pretrained``, in one piece.

    Raises:
        OSError: If it cannot be written.
        ValueError: If a weight is not a finite number; nothing is written then.
    """
    _write_folder(folder, partial(policy.save_pretrained, adapters_only=adapters_only))


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder that were written to the end, oldest first."""
    whole = (path for path in folder.glob("step-*") if (path / STATE).is_file())
    # A copy that somebody made, such as step-000020.bak, is neither read nor removed.
    return sorted((one for one in whole if re.fullmatch(r"step-\d+", one.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Number of steps that a checkpoint is of."""
    return int(checkpoint.name.removeprefix("step-"))


def load_checkpoint(
    checkpoint: Path,
    model: PreTrainedModel,
    restore: Callable[[dict[str, Any], dict[str, Tensor]], None],
) -> None:
    """Read a checkpoint and restore it.

    Args:
        checkpoint: Its folder.
        model: A model of the same class, with adapters if the checkpoint has them.
        restore: Is given the trainer's state and the weights, in the type of ``model``, or those of
            the adapters. Where it raises, the checkpoint does not fit; another one must be restored
            then.

    Raises:
        ValueError: If a part of it cannot be read, is missing or does not fit.
    """
    try:
        _check_sums(checkpoint)
        state = torch.load(checkpoint / STATE, weights_only=True, map_location="cpu")
        if has_adapters(model):
            restore(state, read_adapters(checkpoint))
            return
        kind: Any = type(model)  # whose types do not know what output_loading_info returns
        loaded, info = kind.from_pretrained(checkpoint, dtype=model.dtype, output_loading_info=True)
        if missing := info["missing_keys"]:  # transformers would draw them at random
            raise ValueError(f"it lacks the weights {', '.join(sorted(missing))}")
        restore(state, loaded.state_dict())
    except Exception as error:  # torch, safetensors and transformers raise whatever they like
        # torch advises to load what it cannot check without a check, which would run it.
        words = "" if isinstance(error, UnpicklingError) else f": {_line(error)}"
        raise ValueError(
            f"the checkpoint {checkpoint} is damaged ({type(error).__name__}{words})"
        ) from error


def _check_sums(checkpoint: Path) -> None:
    """A flipped bit in a weight would go unnoticed, and be trained on."""
    sums = json.loads((checkpoint / SUMS).read_text(encoding="utf-8"))
    for name, wanted in sums.items():
        if sha256_of(checkpoint / name) != wanted:
            raise ValueError(f"the content of {name} does not match its checksum")


def _write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside its place and rename it: a kill leaves a whole one or none."""
    unfinished = target.with_name(f".unfinished-{target.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        write(unfinished)
    except ValueError:  # weights that are not finite
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # how torch and safetensors say it
        shutil.rmtree(unfinished, ignore_errors=True)  # it may be what fills the disk
        raise OSError(f"cannot write {target} ({_line(error)}); is the disk full?") from error
    if target.exists():
        shutil.rmtree(target)
    unfinished.rename(target)


def _check_state(part: Any, name: str = "state") -> None:
    """Refuse tensors with numbers that are not finite, such as an optimizer's."""
    if isinstance(part, dict):
        for key, value in part.items():
            _check_state(value, f"{name}.{key}")
        return
    if isinstance(part, Tensor) and part.is_floating_point() and part.numel():
        extremes = torch.stack(torch.aminmax(part.detach()))
        if not torch.isfinite(extremes).all():
            raise ValueError(f"the {name} of training is not all finite numbers")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
