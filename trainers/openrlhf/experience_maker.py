"""Experiences with the project's advantages in place of OpenRLHF's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

from igsearch_env.credit import GRPO, CreditAssignment, assign_credit
from igsearch_env.episode import Episode
from igsearch_env.evaluation.metrics import batch_metrics
from igsearch_env.plugins import import_plugin
from trainers.config import make_credit_from
from trainers.local.update import sign_flips
from trainers.steady import (
    RetrieverLostError,
    failed_share,
)


class GainExperienceMaker(RemoteExperienceMaker):  # type: ignore[misc]
    """OpenRLHF's experience maker, which settles gains and asks the credit method for advantages.

    The episodes come in the experiences' ``labels``. Rollouts in which a search failed get
    advantage 0 and are masked but for one token, without which a batch of nothing but failures
    would divide by zero. The reference policy is made to agree with the policy on that token, so
    that a KL loss is 0 there, and its gradient too until the policy has moved within the step.

    Attributes:
        credit: The credit assignment method.
        progress: How far training has come, from 0 to 1, for methods that change with it.
        metrics: Those of the last batch; see :func:`igsearch_env.evaluation.metrics.batch_metrics`.
        seconds: How long settling its gains took.
        lost_steps: Steps in a row in which too many searches failed.
    """

    credit: CreditAssignment
    progress: float
    metrics: dict[str, float]
    seconds: float
    lost_steps: int

    @classmethod
    def in_place_of(cls, maker: Any) -> Self:
        """A maker with the parts of OpenRLHF's own, in the process that trains."""
        for module in maker.args.ig.modules:  # they may register the credit method
            import_plugin(module)
        made = cls(
            maker.actor_model_group,
            maker.critic_model_group,
            maker.reward_model_group,
            maker.initial_model_group,
            maker.kl_ctl,
            maker.strategy,
            maker.tokenizer,
        )
        made.credit = make_credit_from(made.args.ig.credit)
        made.progress, made.metrics, made.seconds, made.lost_steps = 0.0, {}, 0.0, 0
        return made

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """Let OpenRLHF do its bookkeeping, then write the advantages of the credit method."""
        order = list(chain.from_iterable(experience.index for experience in experiences))
        taken = list(chain.from_iterable(experience.labels for experience in experiences))
        rollouts = dict(zip(order, taken, strict=True))
        episodes = grouped([rollouts[i] for i in range(len(order))], self.group_size)
        for experience in experiences:
            experience.labels = []  # episodes are not for the training processes
        experiences = super().compute_advantages_and_returns(experiences)
        self._count_lost(failed_share(episodes))
        credit = self.credit.at(self.progress)
        started = time.perf_counter()
        if credit.needs_scorer() and self.args.ig.rollout.scorer == "policy":
            episodes = self.settle(episodes, credit)
        self.seconds = time.perf_counter() - started
        advantages = assign_credit(credit, episodes)
        for experience in experiences:
            rows = experience.index
            write_advantages(
                experience,
                [episodes[i] for i in rows],
                [advantages[i] for i in rows],
                skip=self.lost_steps > 0,
            )
        self.metrics = {
            **batch_metrics(episodes),
            "sign_flips": sign_flips(advantages, GRPO()(episodes)),
        }
        return experiences

    def _count_lost(self, failed: float) -> None:
        """Count steps in which too many searches failed: nothing is learned from one.

        The rollouts that are left are those that did not search.
        """
        most, tries = self.args.ig.rollout.max_failed_searches, self.args.ig.rollout.failed_tries
        self.lost_steps = self.lost_steps + 1 if failed > most else 0
        if self.lost_steps >= tries:
            raise RetrieverLostError(
                f"more than {most:.0%} of the searches failed in each of "
                f"{self.lost_steps} steps, {failed:.0%} in the last; see to the retriever, and go "
                "on with --resume from the last checkpoint"
            )

    @property
    def group_size(self) -> int:
        """Rollouts per question."""
        return int(self.args.rollout.n_samples_per_prompt)

    def settle(self, episodes: Sequence[Episode], credit: CreditAssignment) -> list[Episode]:
        """Compute what a credit method reads, each group by one of the policy's processes."""
        group = self.actor_model_group
        ranks = len(group._actor_handlers) // group.duplicate_actors
        shares = shared_out(episodes, self.group_size, ranks)
        parts = [[episodes[i] for i in share] for share in shares]
        refs = group.async_run_method_batch(
            method_name="settle", episodes=parts, credit=[credit] * ranks
        )
        settled = self._flatten_results(refs, group.duplicate_actors)
        whole = list(episodes)
        for share, part in zip(shares, settled, strict=True):
            for i, episode in zip(share, part, strict=True):
                whole[i] = episode
        return whole


def grouped(episodes: Sequence[Episode], size: int) -> list[Episode]:
    """Rollouts with their groups: each run of ``size`` is one, even if a question occurs twice.

    Raises:
        ValueError: If the rollouts of a group answer different questions.
    """
    named = []
    for i, episode in enumerate(episodes):
        first = episodes[i - i % size].question
        if episode.question.id != first.id:
            raise ValueError(
                f"rollout {i} answers question {episode.question.id!r}, the first of its group "
                f"{first.id!r}; OpenRLHF was expected to keep the {size} rollouts of a question "
                "together"
            )
        named.append(replace(episode, group_id=f"{i // size}-{first.id}"))
    return named


def shared_out(episodes: Sequence[Episode], size: int, ranks: int) -> list[list[int]]:
    """Numbers of the rollouts that each rank scores: whole groups, about equally many searches."""
    groups = [range(i, min(i + size, len(episodes))) for i in range(0, len(episodes), size)]
    costs = [sum(len(episodes[i].searches) for i in group) for group in groups]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for number in sorted(range(len(groups)), key=lambda g: -costs[g]):
        least = loads.index(min(loads))
        loads[least] += costs[number]
        shares[least] += groups[number]
    return shares


def write_advantages(
    experience: Experience,
    episodes: Sequence[Episode],
    advantages: Sequence[NDArray[np.float64]],
    *,
    skip: bool = False,
) -> None:
    """Put one number per policy token where the experience has that token.

    Args:
        experience: B rollouts. The token at place s of ``sequences`` belongs to column s - 1 of
            ``action_mask`` and ``advantages``.
        episodes: The same rollouts, in order.
        advantages: One array of shape (policy tokens,) for each.
        skip: Learn from none of them, as from a rollout in which a search failed.

    Raises:
        ValueError: If a row has not as many policy tokens as its episode.
    """
    experience.advantages = torch.zeros_like(experience.advantages)
    for row, (episode, values) in enumerate(zip(episodes, advantages, strict=True)):
        columns = torch.where(experience.action_mask[row])[0]
        if len(columns) != len(values):
            raise ValueError(
                f"a rollout of question {episode.question.id!r} has {len(values)} policy tokens, "
                f"but its experience has {len(columns)}; was it cut at data.max_len?"
            )
        if skip or episode.left_out:
            experience.action_mask[row, columns[1:]] = 0
            if experience.base_action_log_probs is not None:
                kept = (row, columns[:1])
                experience.base_action_log_probs[kept] = experience.action_log_probs[kept]
        else:
            experience.advantages[row, columns] = torch.as_tensor(
                values, dtype=experience.advantages.dtype
            )
