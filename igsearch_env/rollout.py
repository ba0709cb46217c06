"""Collecting episodes: an agent plays many questions side by side."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from igsearch_env.agent import Agent
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Episode, Question


def collect(
    engine: SearchQAEngine,
    agent: Agent,
    questions: Sequence[Question],
    group_ids: Sequence[str] | None = None,
    *,
    seconds: defaultdict[str, float] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Episode]:
    """Play one episode per question until all have ended.

    Args:
        engine: The environment's engine (``SearchQAVectorEnv(...).engine``).
        agent: Writes the turns.
        questions: What is asked, one per episode; repeat a question for a group of rollouts.
        group_ids: The group of each episode; the question's id if left out.
        seconds: Where the time is added up: ``rollout`` (the agent) and ``retrieval`` (searches
            and the environment).
        progress: Called with the number of episodes that ended in each step.

    Returns:
        Finished episodes in the order of the questions.
    """
    clock = defaultdict[str, float](float) if seconds is None else seconds
    groups = [question.id for question in questions] if group_ids is None else group_ids
    episodes = [engine.rules.begin(q, g) for q, g in zip(questions, groups, strict=True)]
    running = list(range(len(episodes)))
    while running:
        started = time.perf_counter()
        turns = agent.act([episodes[row] for row in running])
        acted = time.perf_counter()
        played = engine.step([episodes[row] for row in running], turns)
        clock["rollout"] += acted - started
        clock["retrieval"] += time.perf_counter() - acted
        for row, (episode, _) in zip(running, played, strict=True):
            episodes[row] = episode
        still = [row for row in running if not episodes[row].finished]
        if progress is not None:
            progress(len(running) - len(still))
        running = still
    return episodes
