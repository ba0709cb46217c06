"""The rows of verl's data sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from igsearch_env.episode import Question
from trainers.rollout_settings import make_label

NAME = "igsearch"
"""The name that verl knows the agent loop and the advantage estimator by."""
EPISODE = "igsearch_episode"
"""Where ``AgentLoopOutput.extra_fields`` holds the episode, as JSON."""


def rows(questions: Sequence[Question], *, training: bool) -> list[dict[str, Any]]:
    """One row per question, for a Parquet file.

    Args:
        questions: The questions.
        training: Whether the rows are trained on. Those of a validation draw no counterfactual
            evidence and leave none behind.
    """
    return [
        {
            # verl wants a prompt; the environment writes its own.
            "prompt": [{"role": "user", "content": question.text}],
            "agent_name": NAME,
            "data_source": NAME,
            "label": make_label(question, training=training),
            "reward_model": {"style": "rule", "ground_truth": question.golden_answers[0]},
            "extra_info": {"index": number},
        }
        for number, question in enumerate(questions)
    ]
