"""One GRPO update: from settled episodes and their advantages to new weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from agents.inference import evaluating
from agents.tokenization import SegmentTokenizer
from igsearch_env.episode import Episode
from trainers.config import OptimizationSettings
from trainers.local.losses import policy_loss
from trainers.local.token_batch import TokenBatch, policy_log_probs


class Updater:
    """Applies GRPO updates to a model.

    Args:
        model: The policy's model.
        tokenizer: Its tokenizer.
        config: Settings of the optimisation.
        temperature: Temperature that turns are sampled at.
        reference: The frozen initial policy, if there is a KL penalty.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: SegmentTokenizer,
        config: OptimizationSettings,
        temperature: float = 1.0,
        reference: PreTrainedModel | None = None,
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.temperature, self.reference = temperature, reference
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        updates = config.steps * config.epochs * config.minibatches
        self.schedule = _schedule(self.optimizer, config, updates)

    def step(
        self,
        episodes: Sequence[Episode],
        advantages: Sequence[NDArray[np.float64]],
        rng: np.random.Generator,
    ) -> dict[str, float]:
        """Learn from a batch.

        Args:
            episodes: Finished episodes; those in which a search failed are left out.
            advantages: One array of shape (policy tokens,) per episode.
            rng: Shuffles the episodes into minibatches.

        Returns:
            Means over the batch's policy tokens: ``loss``, ``kl``, ``clipped``, ``entropy`` (left
            out if no episode can be learned from); ``grad_norm``, the mean over updates, before
            clipping; and ``learning_rate``, that of the last update.
        """
        usable = [
            (episode, advantage)
            for episode, advantage in zip(episodes, advantages, strict=True)
            if not episode.retrieval_failed and episode.policy_tokens
        ]
        sums: defaultdict[str, float] = defaultdict(float)
        norms, rates = [], [0.0]
        for _ in range(self.config.epochs):
            order = rng.permutation(len(usable))
            for part in np.array_split(order, self.config.minibatches):
                if len(part):
                    rates.append(float(self.schedule.get_last_lr()[0]))
                    norms.append(self._update([usable[i] for i in part], sums))
        tokens = sums.pop("tokens", 0.0)
        means = {name: value / tokens for name, value in sums.items()}
        return {**means, "grad_norm": float(np.mean(norms or [0.0])), "learning_rate": rates[-1]}

    def _update(
        self, pairs: list[tuple[Episode, NDArray[np.float64]]], sums: defaultdict[str, float]
    ) -> float:
        """One optimizer step on a minibatch; returns the norm of the gradient."""
        total = sum(episode.policy_tokens for episode, _ in pairs)
        pairs = sorted(pairs, key=lambda pair: len(pair[0].steps))  # less padding
        size = self.config.micro_batch_size
        self.model.eval()  # no dropout, like the policy that sampled: ratios start at 1
        self.optimizer.zero_grad(set_to_none=True)
        for start in range(0, len(pairs), size):
            self._accumulate(pairs[start : start + size], total, sums)
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.max_grad_norm, error_if_nonfinite=True
        )
        self.optimizer.step()
        self.schedule.step()
        sums["tokens"] += total
        return float(norm)

    def _accumulate(
        self,
        pairs: list[tuple[Episode, NDArray[np.float64]]],
        total: int,
        sums: defaultdict[str, float],
    ) -> None:
        episodes = [episode for episode, _ in pairs]
        batch = TokenBatch.from_episodes(episodes, self.tokenizer, self.model.device)
        log_probs, entropy = policy_log_probs(self.model, batch, self.temperature)
        reference = None
        if self.reference is not None:
            with evaluating(self.reference):
                reference, _ = policy_log_probs(self.reference, batch, self.temperature)
        result = policy_loss(
            log_probs,
            batch.spread([_sampled_log_probs(episode) for episode in episodes]),
            batch.spread([advantage for _, advantage in pairs]),
            total,
            clip=self.config.clip,
            kl=self.config.kl,
            reference_log_probs=reference,
        )
        result.loss.backward()
        sums["loss"] += float(result.loss.detach()) * total
        sums["clipped"] += result.clipped
        sums["kl"] += result.kl
        sums["entropy"] += float(entropy.sum())


def sign_flips(
    advantages: Sequence[NDArray[np.float64]], outcome: Sequence[NDArray[np.float64]]
) -> float:
    """Share of policy tokens on which credit has another sign than the outcome's advantage.

    There the other side of the clip is active than under GRPO.
    """
    ours, theirs = np.concatenate(list(advantages)), np.concatenate(list(outcome))
    return float(np.mean(ours * theirs < 0)) if ours.size else 0.0


def _sampled_log_probs(episode: Episode) -> NDArray[np.float64]:
    rows = [step.log_probs for step in episode.steps]
    if any(row is None for row in rows):
        raise ValueError(
            f"a turn of question {episode.question.id!r} has no log_probs; a policy that is "
            "trained must return Completions with log_probs"
        )
    return np.array([value for row in rows for value in row or ()], dtype=np.float64)


def _schedule(
    optimizer: torch.optim.Optimizer, config: OptimizationSettings, updates: int
) -> torch.optim.lr_scheduler.LambdaLR:
    def factor(done: int) -> float:
        if done < config.warmup_steps:
            return (done + 1) / (config.warmup_steps + 1)
        if config.schedule == "constant":
            return 1.0
        progress = (done - config.warmup_steps) / max(1, updates - config.warmup_steps)
        return float(0.5 * (1 + np.cos(np.pi * min(1.0, progress))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
