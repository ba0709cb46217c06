"""Self-distillation of queries: GRPO, and a teacher that knows how the group's rollouts ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from igsearch_env.credit.base import CreditAssignment, Hindsight, register_credit
from igsearch_env.credit.groups import rollout_groups
from igsearch_env.credit.grpo import GRPO
from igsearch_env.episode import Episode


@register_credit("sd_search")
@dataclass(frozen=True)
class SDSearch(CreditAssignment):
    """GRPO's advantages, and a loss that pulls queries towards those of a teacher with hindsight.

    After SD-Search (arXiv 2605.18299): the teacher is the policy itself, whose context also says
    what all rollouts of the group searched for and which of them succeeded. The loss is the
    Jensen-Shannon divergence between policy and teacher on the tokens of queries. Nothing is
    scored. The wording of what the teacher reads and the weight are ours.

    Args:
        distillation: Weight of the divergence, a mean over query tokens in nats, in the loss.
    """

    uses_information_gain = False

    distillation: float = 0.1

    def __post_init__(self) -> None:
        value = self.distillation
        if not isinstance(value, int | float) or not (isfinite(value) and value >= 0):
            raise ValueError(f"distillation must be a finite number of at least 0, got {value!r}")

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """GRPO's advantages."""
        return GRPO()(episodes)

    def hindsight(self, episodes: Sequence[Episode]) -> Hindsight:
        """A line for each rollout of the group: whether it succeeded, and its queries."""
        texts = [""] * len(episodes)
        for members in rollout_groups(episodes).values():
            group = [episodes[i] for i in members]
            if any(episode.searches for episode in group):
                text = "\n".join(["Attempts at the question below:", *map(_line, group), ""])
                for i in members:
                    texts[i] = text
        return Hindsight(self.distillation, texts)


def _line(episode: Episode) -> str:
    verdict = "right" if (episode.outcome or 0.0) > 0 else "wrong"
    queries = "; ".join(step.query for step in episode.searches) or "nothing"
    return f"- {verdict}: searched for {queries}"
