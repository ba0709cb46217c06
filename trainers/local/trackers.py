"""Where the numbers of ``metrics.jsonl`` go besides: TensorBoard, Weights & Biases, Trackio."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from igsearch_env.files import write_whole

PROJECT = "igsearch-env"


class Tracker(Protocol):
    """What a run tells its numbers to."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Take the numbers of a step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class _TensorBoard:
    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run wrote after its checkpoint is dropped.
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A resumed run goes on in the same chart; its environment variables say where that is."""

    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any]) -> None:
        import wandb

        # "allow" makes the run or goes on with it.
        self._run: Any = wandb.init(
            project=PROJECT,
            name=folder.name,
            id=_run_id(folder, new=step == 0),
            resume="allow",
            dir=str(folder),
            config=dict(settings),
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """As for Weights & Biases; the data stays on this computer."""

    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any]) -> None:
        import trackio

        name = f"{folder.name}-{_run_id(folder, new=step == 0)}"
        self._run: Any = trackio.init(
            project=PROJECT, name=name, resume="allow", config=dict(settings), embed=False
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


_KINDS: dict[str, Callable[[Path, int, Mapping[str, Any]], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "trackio": _Trackio,
}


def open_tracker(name: str, folder: Path, step: int, settings: Mapping[str, Any]) -> Tracker:
    """Open a tracker.

    Args:
        name: A name of ``run.trackers``; that is also its package.
        folder: Folder of the run; its name is that of the run.
        step: Number of steps done; above 0 the run of before goes on.
        settings: Of the run, by section.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return _KINDS[name](folder, step, settings)
    except ImportError as error:
        raise ImportError(
            f"run.trackers names {name!r}, which is not installed ({error}): pip install {name}"
        ) from error


def _run_id(folder: Path, *, new: bool) -> str:
    """A name that no other run has, kept in its folder."""
    file = folder / "tracker_id.txt"
    if new or not file.is_file():
        write_whole(file, uuid.uuid4().hex[:12])
    return file.read_text(encoding="utf-8")
