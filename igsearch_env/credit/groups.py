"""What methods share: which rollouts are compared, and how numbers of a group are compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from igsearch_env.episode import Episode


def rollout_groups(episodes: Sequence[Episode]) -> dict[str, list[int]]:
    """The indices of the episodes of each group.

    Those in which a search failed, or whose outcome could not be had, are left out: they say
    nothing about the policy.

    Raises:
        ValueError: If an episode has not ended.
    """
    groups: dict[str, list[int]] = {}
    for index, episode in enumerate(episodes):
        if episode.outcome is None and not episode.left_out:
            raise ValueError(
                f"the episode of question {episode.question.id!r} has no outcome yet; "
                "credit is assigned to finished episodes"
            )
        if not episode.left_out:
            groups.setdefault(episode.group_id, []).append(index)
    return groups


def group_advantages(episodes: Sequence[Episode], epsilon: float = 1e-6) -> list[float]:
    """Group-normalised outcome of each episode: (R - mean) / (std + epsilon).

    The standard deviation is the unbiased one (GRPO, arXiv 2402.03300, eq. 4.1.2). An episode in
    which a search failed gets 0 and is left out of its group's statistics. Groups of fewer than
    two other episodes, and groups whose outcomes are all equal, get 0.

    Raises:
        ValueError: If an episode has not ended.
    """
    advantages = [0.0] * len(episodes)
    for members in rollout_groups(episodes).values():
        outcomes = np.array([episodes[i].outcome for i in members], dtype=np.float64)
        # With equal outcomes rounding can leave a tiny deviation, which would blow up the noise.
        if len(members) < 2 or outcomes.min() == outcomes.max():
            continue
        scaled = (outcomes - outcomes.mean()) / (outcomes.std(ddof=1) + epsilon)
        for i, value in zip(members, scaled, strict=True):
            advantages[i] = float(value)
    return advantages


def leave_one_out(values: Sequence[float]) -> list[float]:
    """Each value less the mean of the others; 0 for a single value.

    >>> leave_one_out([1.0, 0.0, 0.5])
    [0.75, -0.75, 0.0]
    """
    others = len(values) - 1
    if others < 1:
        return [0.0] * len(values)
    total = float(np.sum(values))
    return [value - (total - value) / others for value in values]


def less_siblings(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Each value less the mean of the other rows' at its place; a row that has ended counts as 0.

    Where the values are returns-to-go of the rollouts of a group, this baseline is the same
    whatever the rollout itself does, also when it goes on where others stop.

    >>> less_siblings([[3.0, 1.0], [1.0]])
    [[2.0, 1.0], [-2.0]]
    """
    result: list[list[float]] = [[] for _ in rows]
    for place in range(max(map(len, rows), default=0)):
        column = [row[place] if place < len(row) else 0.0 for row in rows]
        for row, values, value in zip(rows, result, leave_one_out(column), strict=True):
            if place < len(row):
                values.append(value)
    return result


def discounted_sums(values: Sequence[float], gamma: float) -> list[float]:
    """The sum of gamma^(k-t) values[k] over k >= t, for each t.

    >>> discounted_sums([1.0, 2.0, 4.0], 0.5)
    [3.0, 4.0, 4.0]
    """
    sums: list[float] = []
    total = 0.0
    for value in reversed(values):
        total = value + gamma * total
        sums.append(total)
    return sums[::-1]


def on_every_token(
    episodes: Sequence[Episode], advantages: Sequence[float]
) -> list[NDArray[np.float64]]:
    """The advantage of each episode on all of its policy tokens, shape (policy tokens,) each."""
    return [
        np.full(episode.policy_tokens, advantage)
        for episode, advantage in zip(episodes, advantages, strict=True)
    ]


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Refuse an option that is not among the known ones.

    Raises:
        ValueError: If it is not.
    """
    if value not in known:
        listed = ", ".join(map(repr, known[:-1])) + f" or {known[-1]!r}"
        raise ValueError(f"{name} must be {listed}, got {value!r}")


def check_gamma(gamma: float) -> None:
    """Refuse a discount out of range.

    Raises:
        ValueError: If it does not lie between 0 and 1.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie between 0 and 1, got {gamma!r}")
