"""The state of a warm start that was cut short: one file that is there whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write the state; where that fails, the state that was there before stays.

    Raises:
        OSError: If it cannot be written; the message names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    try:
        torch.save(state, unfinished)
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises the latter where the disk is full
        raise OSError(f"cannot write {path} ({error}); is the disk full?") from error
    finally:
        unfinished.unlink(missing_ok=True)


def read_state(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Read the state that a warm start goes on from; None if there is none.

    Args:
        path: The file.
        settings: Those of the warm start, which ``state["settings"]`` must equal.

    Raises:
        ValueError: If the file is damaged, or of a warm start with other settings.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        written = state.get("settings")
    except Exception as error:  # a cut or empty file makes torch raise whatever it likes
        # Its own words are left out: torch advises to load without its check.
        name = type(error).__name__
        raise ValueError(f"{path} is damaged ({name}); remove it to begin anew") from error
    if written != settings:
        raise ValueError(
            f"{path} is of a warm start with other settings; go on with its own, or remove it"
        )
    return state
