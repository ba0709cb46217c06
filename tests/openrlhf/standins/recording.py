"""Writes the experiences of a run under Ray to files; imported by ``--import recording``.

It stands where a user's credit method is imported, so it is loaded in the trainer's process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

try:
    from trainers.openrlhf.experience_maker import GainExperienceMaker
except ImportError:  # the command line is read before OpenRLHF is loaded
    GainExperienceMaker = None

if GainExperienceMaker is not None:
    compute = GainExperienceMaker.compute_advantages_and_returns

    def compute_and_write(self: Any, experiences: list[Any]) -> list[Any]:
        experiences = compute(self, experiences)
        folder = Path(os.environ["RECORDINGS"])
        rows = [
            {"index": i, **{name: getattr(e, name)[row] for name in FIELDS}}
            for e in experiences
            for row, i in enumerate(e.index)
        ]
        torch.save(rows, folder / f"{len(list(folder.iterdir())):03d}.pt")
        return experiences

    FIELDS = ("sequences", "attention_mask", "action_mask", "advantages")
    GainExperienceMaker.compute_advantages_and_returns = compute_and_write
