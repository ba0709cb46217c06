"""Whether a run still learns something: what its rows say, and when it is to stop."""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from trainers.config import RunSettings

logger = logging.getLogger(__name__)

MANY_INVALID = 0.8
"""Share of invalid turns above which the log says what to try."""


COLLAPSES = {"em": "exact match", "valid_turns": "the share of valid turns"}
"""Metrics whose fall is a collapse, and how they are called."""


class TrainingStoppedError(ValueError):
    """Going on would teach nothing, or spoil what was learned."""


class Health:
    """Watches the rows of ``metrics.jsonl``. Of old rows it keeps a few numbers, for long runs.

    Args:
        settings: ``collapse``, ``collapse_window``, ``max_wasted_steps`` and ``max_bad_steps`` are
            read.
        rows: The rows of the run so far.
    """

    def __init__(self, settings: RunSettings, rows: Iterable[dict[str, Any]]) -> None:
        self.settings = settings
        self._newest: deque[dict[str, Any]] = deque(
            maxlen=max(1, settings.max_bad_steps, settings.max_wasted_steps)
        )
        self._steps = array("q")
        self._values = {name: array("d") for name in COLLAPSES}
        self._means = {name: array("d") for name in COLLAPSES}
        self._warned = False
        for row in rows:
            self._add(row)

    def check(self, row: dict[str, Any]) -> None:
        """Look at a new row.

        Raises:
            TrainingStoppedError: If training has collapsed, or several steps in a row had no valid
                turn, no rollout to learn from, or an update that was skipped.
        """
        self._add(row)
        self._warn()
        self._check_bad()
        self._check_wasted()
        self._check_collapse()

    def _add(self, row: dict[str, Any]) -> None:
        self._newest.append(row)
        self._steps.append(row["step"])
        for name, values in self._values.items():
            values.append(_value(row, name))
            self._means[name].append(float(np.mean(values[-self.settings.collapse_window :])))

    def best(self, steps: Sequence[int]) -> int | None:
        """The step, of some, up to which the mean exact match was highest; the later of two.

        None if a collapse is not looked for.
        """
        found = {step: at for at, step in enumerate(self._steps)}
        known = [step for step in steps if step in found]
        if not self.settings.collapse or not known:
            return None
        return max(known, key=lambda step: (self._means["em"][found[step]], step))

    def _check_collapse(self) -> None:
        window, fraction = self.settings.collapse_window, self.settings.collapse
        if not fraction or len(self._steps) < window:
            return
        for name, words in COLLAPSES.items():
            last, best = self._means[name][-1], max(self._means[name][window - 1 :])
            if last < fraction * best:
                raise TrainingStoppedError(
                    f"training has collapsed: over the last {window} steps {words} was "
                    f"{last:.3f}, and {best:.3f} at its best (run.collapse = {fraction} "
                    "stops below that share of the best)"
                )

    def _check_bad(self) -> None:
        count = self.settings.max_bad_steps
        newest = list(self._newest)[-count:]
        if count and len(newest) == count and all(row.get("updates_skipped") for row in newest):
            raise TrainingStoppedError(
                f"each of the last {count} steps had an update that was skipped, because the loss "
                "or the gradient was not finite; a lower learning rate, a smaller clip_high, or "
                "precision float32 may help"
            )

    def _check_wasted(self) -> None:
        count = self.settings.max_wasted_steps
        newest = list(self._newest)[-count:]
        if not count or len(newest) < count:
            return
        if all(not row.get("episodes_used", 1) for row in newest):
            raise TrainingStoppedError(
                f"none of the last {count} steps had a rollout to learn from: a search failed in "
                "each, its outcome could not be had, or the policy wrote nothing; see to the "
                "retriever (igsearch check), to the judge and to the length of prompts"
            )
        if all(_value(row, "valid_turns") == 0 for row in newest):
            raise TrainingStoppedError(
                f"no turn of the last {count} steps was a valid action, so that there is nothing "
                f"to learn from; {_advice(newest[-1])}"
            )

    def _warn(self) -> None:
        row = self._newest[-1]
        if not self._warned and (share := row.get("invalid_turns", 0.0)) > MANY_INVALID:
            self._warned = True
            logger.warning(
                "step %d: %.0f %% of the turns are no valid action; %s",
                row["step"],
                100 * share,
                _advice(row),
            )


def _value(row: dict[str, Any], name: str) -> float:
    """A metric of a row; 0 where there were no rollouts to take it from."""
    if name == "valid_turns":
        return 1.0 - float(row.get("invalid_turns", 1.0))
    return float(row.get(name, 0.0))


def _advice(row: dict[str, Any]) -> str:
    """What to try where turns are invalid."""
    cut = row.get("cut_turns", 0.0)
    longer = f"{cut:.0%} of them were cut: raise policy.max_new_tokens; or " if cut > 0.5 else ""
    return (
        f"{longer}try a model that follows instructions (trainers/configs/instruct.toml), a "
        "grammar that it knows (environment.protocol), or teach it the tags first (python -m "
        "scripts.warm_start --policy ...)"
    )
