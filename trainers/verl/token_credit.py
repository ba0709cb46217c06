"""Token-level advantages of a credit method in verl's trainers.

Import this module where verl trains, by the environment variable
``VERL_USE_EXTERNAL_MODULES=trainers.verl.token_credit``. It registers the advantage estimator
``igsearch`` (``algorithm.adv_estimator``). An estimator gets rewards and masks alone, so each of
verl's trainers is given a step before it: the trainer reads the episodes that the agent loop left
in ``extra_fields``, and asks the credit method for one advantage per token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from verl.experimental.agent_loop.utils import resolve_config_path
from verl.trainer.ppo.core_algos import register_adv_est
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer

from igsearch_env.credit import CreditAssignment, assign_credit
from igsearch_env.episode import Episode
from igsearch_env.evaluation.metrics import batch_metrics
from igsearch_env.record import episode_from_record
from trainers.config import make_credit_from
from trainers.steady import FAILED_TRIES, MAX_FAILED_SEARCHES, RetrieverLostError, failed_share
from trainers.verl.rows import EPISODE, NAME

_advantages: ContextVar[Tensor] = ContextVar("igsearch_advantages")


@register_adv_est(NAME)  # type: ignore[untyped-decorator]  # verl has no types
def token_credit(
    token_level_rewards: Tensor, response_mask: Tensor, **others: Any
) -> tuple[Tensor, Tensor]:
    """The advantages of the credit method, one per token of the policy.

    Args:
        token_level_rewards: Shape (B, T); not used.
        response_mask: 1 where the policy wrote and verl wants to learn, shape (B, T).
        **others: Not used.

    Returns:
        Advantages, shape (B, T), and the same as returns.

    Raises:
        RuntimeError: If the trainer was made before this module was imported.
    """
    try:
        advantages = _advantages.get()
    except LookupError as error:
        raise RuntimeError(
            "verl's trainer did not read the episodes; set the environment variable "
            "VERL_USE_EXTERNAL_MODULES=trainers.verl.token_credit for all processes of verl"
        ) from error
    advantages = advantages * response_mask
    return advantages, advantages


def with_token_credit(trainer: type[PPOTrainer]) -> type[PPOTrainer]:
    """A trainer of verl that reads the episodes before it computes advantages."""

    class TokenCredit(trainer):  # type: ignore[misc]
        lost_steps = 0

        def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
            if self.config.algorithm.adv_estimator != NAME:
                return super()._compute_advantage(batch, metrics)
            if self.config.algorithm.use_kl_in_reward:
                raise ValueError(
                    "algorithm.use_kl_in_reward=True would do nothing: the credit method makes "
                    "the advantages; use actor_rollout_ref.actor.use_kl_loss=True"
                )
            data = tq.kv_batch_get(
                keys=batch.keys,
                partition_id=batch.partition_id,
                select_fields=["extra_fields", "response_mask"],
            )
            # What verl pads a batch with are copies of its first row.
            real = [row for row, tag in enumerate(batch.tags) if not tag.get("is_padding")]
            # A list of dictionaries, or a stack of what holds them: it depends on the queue.
            fields = [getattr(one, "data", one) for one in data["extra_fields"]]
            episodes = [episode_from_record(json.loads(fields[row][EPISODE])) for row in real]
            metrics.update({f"igsearch/{k}": v for k, v in batch_metrics(episodes).items()})
            self._count_lost(failed_share(episodes))
            done = self.global_steps / max(1, self.total_training_steps)
            credit = credit_of(self.config).at(min(1.0, done))
            mask = data["response_mask"].to_padded_tensor(0)
            values = spread(mask[real], episodes, credit)
            advantages = torch.zeros(mask.shape, dtype=torch.float32)
            advantages[real] = 0.0 if self.lost_steps else values
            token = _advantages.set(advantages)
            try:
                return super()._compute_advantage(batch, metrics)
            finally:
                _advantages.reset(token)

        def _count_lost(self, failed: float) -> None:
            """Learn nothing from a step with too many failed searches; end after several."""
            self.lost_steps = self.lost_steps + 1 if failed > MAX_FAILED_SEARCHES else 0
            if self.lost_steps >= FAILED_TRIES:
                raise RetrieverLostError(
                    f"more than {MAX_FAILED_SEARCHES:.0%} of the searches failed in each of "
                    f"{self.lost_steps} steps; see to the retriever, and go on from the last "
                    "checkpoint"
                )

    TokenCredit.__name__ = TokenCredit.__qualname__ = trainer.__name__
    return TokenCredit


def credit_of(config: DictConfig) -> CreditAssignment:
    """The credit method that the entry of the agent loop names.

    Raises:
        ValueError: If the file of agent loops has no such entry.
    """
    path = config.actor_rollout_ref.rollout.agent.agent_loop_config_path
    entries = OmegaConf.load(resolve_config_path(path)) if path else []
    for entry in entries:
        if entry.name == NAME:
            settings: Any = OmegaConf.to_container(entry.credit, resolve=True)
            return make_credit_from(settings)
    raise ValueError(
        f"expected an agent loop named {NAME!r} in the file that "
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path names, got {path!r}"
    )


def spread(mask: Tensor, episodes: Sequence[Episode], credit: CreditAssignment) -> Tensor:
    """One advantage per policy token, where verl's batch has that token.

    Args:
        mask: 1 where the policy wrote, shape (B, T).
        episodes: The B episodes, in order.
        credit: The credit method.

    Returns:
        Shape (B, T); 0 elsewhere, and in episodes that are left out.

    Raises:
        ValueError: If a row has not as many policy tokens as its episode.
    """
    advantages = torch.zeros(mask.shape, dtype=torch.float32)
    for row, values in enumerate(assign_credit(credit, episodes)):
        columns = torch.where(mask[row] > 0)[0]
        if episodes[row].left_out:
            continue
        if len(columns) != len(values):
            raise ValueError(
                f"a rollout of question {episodes[row].question.id!r} has {len(values)} policy "
                f"tokens, but its row of verl's batch has {len(columns)}"
            )
        advantages[row, columns] = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    return advantages


for name, trainer in [*TRAINER_REGISTRY.items()]:
    TRAINER_REGISTRY[name] = with_token_credit(trainer)
