"""The demo's plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

NAMES = {"ig_search": "IG-Search", "grpo": "GRPO"}
COLORS = {"ig_search": "#1a73e8", "grpo": "#e8710a"}
WINDOW = 5


def plot_curves(logs: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """Training curves of each arm: EM, gold documents, all-fail groups, information gain.

    Thin lines are single steps, thick ones their mean over five.
    """
    panels = {
        "em": "exact match (sampled, training questions)",
        "gold_documents": "gold documents retrieved",
        "all_fail": "groups in which every rollout fails",
        "information_gain": "mean information gain (nats per token)",
    }
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained")
    for (key, title), axis in zip(panels.items(), axes.flat, strict=True):
        for arm, log in logs.items():
            points = [(row["step"], row[key]) for row in log if key in row]
            if points:
                _curve(axis, points, arm)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _curve(axis: Axes, points: Sequence[tuple[int, float]], arm: str) -> None:
    steps, values = (np.array(column) for column in zip(*points, strict=True))
    axis.plot(steps, values, color=COLORS[arm], alpha=0.3, linewidth=0.8)
    width = min(WINDOW, len(values))
    smooth = np.convolve(values, np.ones(width) / width, mode="valid")
    axis.plot(steps[width - 1 :], smooth, color=COLORS[arm], linewidth=2, label=NAMES[arm])
