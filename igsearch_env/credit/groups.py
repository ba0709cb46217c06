"""What methods share: which rollouts are compared, and sums over what comes later."""

from __future__ import annotations

from collections.abc import Sequence

from igsearch_env.episode import Episode


def rollout_groups(episodes: Sequence[Episode]) -> dict[str, list[int]]:
    """The places of the episodes of each group; those in which a search failed are left out.

    Raises:
        ValueError: If an episode has not ended.
    """
    groups: dict[str, list[int]] = {}
    for index, episode in enumerate(episodes):
        if episode.outcome is None:
            raise ValueError(
                f"the episode of question {episode.question.id!r} has no outcome yet; "
                "credit is assigned to finished episodes"
            )
        if not episode.retrieval_failed:
            groups.setdefault(episode.group_id, []).append(index)
    return groups


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


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Refuse an option that is not among the known ones.

    Raises:
        ValueError: If it is not.
    """
    if value not in known:
        listed = ", ".join(map(repr, known[:-1])) + f" or {known[-1]!r}"
        raise ValueError(f"{name} must be {listed}, got {value!r}")


def check_gamma(gamma: float) -> None:
    """Refuse a discount that is not one.

    Raises:
        ValueError: If it lies outside of 0 and 1.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie between 0 and 1, got {gamma!r}")
