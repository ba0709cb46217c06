"""Rollouts of a training step, which must not be learned from if many of their searches failed."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence

from igsearch_env.agent import Agent
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Episode, Question
from igsearch_env.rollout import collect

log = logging.getLogger(__name__)

MAX_FAILED_SEARCHES = 0.2
FAILED_TRIES = 3


class RetrieverLostError(OSError):
    """Too many searches have failed, several times in a row."""


def collect_steadily(
    engine: SearchQAEngine,
    agent: Agent,
    questions: Sequence[Question],
    group_ids: Sequence[str],
    *,
    step: int,
    max_failed: float = MAX_FAILED_SEARCHES,
    tries: int = FAILED_TRIES,
    seconds: defaultdict[str, float] | None = None,
    watched: Callable[[], Callable[[int], None]] | None = None,
    restore: Callable[[], None] | None = None,
) -> list[Episode]:
    """Play one episode per question; again, if too many searches failed.

    The rollouts that are left when many fail are those that did not search: learning from them
    would teach the policy not to.

    Args:
        engine: The environment's engine.
        agent: Writes the turns.
        questions: See :func:`igsearch_env.rollout.collect`, as for the two below.
        group_ids: The group of each episode.
        step: Number of the step, for messages.
        max_failed: Largest share of the searches that may fail.
        tries: How often the episodes are played.
        seconds: Where the time is added up.
        watched: Makes, for each try, what is called with the number of episodes that ended.
        restore: Called before each further try: puts generators back to where they were, so that
            a retriever that recovers leaves no trace.

    Raises:
        RetrieverLostError: If too many searches failed in each try.
    """
    for number in range(tries):
        if number and restore is not None:
            restore()
        progress = None if watched is None else watched()
        episodes = collect(engine, agent, questions, group_ids, seconds=seconds, progress=progress)
        failed = failed_share(episodes)
        if failed <= max_failed:
            return episodes
        log.warning(
            "step %d: %.0f %% of the searches failed; nothing is learned from it, and it is tried "
            "again",
            step,
            100 * failed,
        )
    raise RetrieverLostError(
        f"{failed:.0%} of the searches of step {step} failed in the last of {tries} tries (at most "
        f"{max_failed:.0%} may); see to the retriever, and resume the run"
    )


def failed_share(episodes: Sequence[Episode]) -> float:
    """Share of the searches and other calls of some episodes that failed; 0 without any."""
    steps = [step for episode in episodes for step in episode.steps]
    failed = [step.retrieval_failed for step in steps if step.action in ("search", "tool")]
    return sum(failed) / len(failed) if failed else 0.0
