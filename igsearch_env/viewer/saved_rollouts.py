"""Rollouts that a run keeps to be looked at, with the advantage of every token."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from igsearch_env.completion import token_ends
from igsearch_env.episode import Episode
from igsearch_env.files import write_whole
from igsearch_env.record import episode_from_record, episode_record

GROUPS = 4
"""How many groups of a step are kept: the first ones, so that none is picked for its looks."""


@dataclass(frozen=True)
class SavedRollout:
    """An episode, and what its tokens were taught.

    Args:
        episode: The episode.
        advantages: Advantage of each policy token, shape (policy tokens,); None where it was not
            a finite number.
        token_ends: For each step, how many characters of its turn are complete after each token.
    """

    episode: Episode
    advantages: tuple[float | None, ...]
    token_ends: tuple[tuple[int, ...], ...]

    @classmethod
    def from_advantages(
        cls,
        episode: Episode,
        advantages: NDArray[np.float64],
        decode: Callable[[list[int]], str],
    ) -> Self:
        """Find the characters of every token by decoding the ids that were sampled."""
        ends = (
            token_ends(list(step.turn.token_ids or ()), step.turn.text, decode)
            for step in episode.steps
        )
        values = (float(value) if np.isfinite(value) else None for value in advantages)
        return cls(episode, tuple(values), tuple(map(tuple, ends)))

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """Read what :meth:`record` gave.

        Raises:
            ValueError: If it is no such record.
        """
        if set(record) != {"episode", "advantages", "token_ends"}:
            raise ValueError(
                f"expected a rollout with episode, advantages and token_ends, got {sorted(record)}"
            )
        episode = episode_from_record(record["episode"])
        return cls(episode, tuple(record["advantages"]), tuple(map(tuple, record["token_ends"])))

    def record(self) -> dict[str, Any]:
        """It as JSON-ready data."""
        return {
            "episode": episode_record(self.episode),
            "advantages": self.advantages,
            "token_ends": self.token_ends,
        }


def rollouts_file(run: Path, step: int) -> Path:
    """Where a run keeps the rollouts of a step."""
    return run / "rollouts" / f"step-{step:06d}.jsonl"


def save_rollouts(
    path: Path,
    episodes: Sequence[Episode],
    advantages: Sequence[NDArray[np.float64]],
    decode: Callable[[list[int]], str],
) -> None:
    """Write the first :data:`GROUPS` groups of a step, one rollout a line, in one piece.

    Args:
        path: The file.
        episodes: All episodes of the step.
        advantages: One array of shape (policy tokens,) per episode.
        decode: Maps the policy's ids to text.
    """
    groups = dict.fromkeys(episode.group_id for episode in episodes)
    kept = set(islice(groups, GROUPS))
    rollouts = (
        SavedRollout.from_advantages(episode, values, decode)
        for episode, values in zip(episodes, advantages, strict=True)
        if episode.group_id in kept
    )
    write_whole(path, "".join(json.dumps(one.record()) + "\n" for one in rollouts))


def saved_steps(run: Path) -> Iterator[tuple[int, Path]]:
    """The steps of a run whose rollouts are kept, and their files, oldest first."""
    for path in sorted((run / "rollouts").glob("step-*.jsonl")):
        yield int(path.stem.removeprefix("step-")), path
