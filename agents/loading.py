"""Loading policies: checkpoint folders, here or in the checkout, and models of the hub.

``igsearch evaluate`` imports this module where it finds it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils.hub import cached_file

from agents.tokenization import SegmentTokenizer
from agents.transformers_policy import TransformersPolicy

CHECKOUT = Path(__file__).resolve().parent.parent


def load_policy(
    path: str, protocol: str | None = None, *, device: str = "cpu", **options: Any
) -> TransformersPolicy:
    """Load a policy; a relative path is looked up in the checkout too.

    Args:
        path: A checkpoint folder, or the name of a model on the Hugging Face hub.
        protocol: Name of the tag grammar; None for the checkpoint's own.
        device: Where it is to run.
        **options: See :meth:`TransformersPolicy.from_pretrained`.

    Raises:
        ValueError: If there is no such checkpoint, it cannot be read, or this machine has no such
            device.
    """
    check_device(device)
    folder = checkpoint_folder(path)
    try:
        return TransformersPolicy.from_pretrained(
            folder or path, protocol, device=device, **options
        )
    except Exception as error:  # transformers and what it is built on raise whatever they like
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot load a policy from {path!r}: expected a checkpoint folder or the name "
            f"of a model on the Hugging Face hub ({reason})"
        ) from error


def checkpoint_folder(path: str) -> Path | None:
    """The folder that a policy's path means, here or in the checkout; None if there is none."""
    return next((folder for folder in (Path(path), CHECKOUT / path) if folder.is_dir()), None)


def load_tokenizer(folder: Path) -> SegmentTokenizer:
    """The tokenizer of a checkpoint.

    Raises:
        ValueError: If there is none, or it is not a fast one.
    """
    loaded: Any = AutoTokenizer.from_pretrained(folder)  # checked by the wrapper
    return SegmentTokenizer(loaded)


def hub_folder(name: str) -> Path:
    """Where the files of a model of the hub lie, once it has been loaded."""
    found: Any = cached_file(name, "config.json", local_files_only=True)
    return Path(found).parent


def check_device(device: str) -> None:
    """Refuse a device that this machine or this build of torch does not have.

    Raises:
        ValueError: If it cannot be used.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot use the device {device!r} ({reason})") from error
