"""The clipped surrogate and the KL penalty, as pure functions of per-token numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """The loss of a part of a batch, and what it tells.

    Args:
        loss: Sum over tokens divided by the number of tokens of the whole batch; a scalar.
        clipped: Number of tokens whose ratio was clipped.
        kl: Sum of the k3 estimates over tokens, in nats; 0 without a reference.
    """

    loss: Tensor
    clipped: float
    kl: float


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    total_tokens: int,
    *,
    clip: float = 0.2,
    kl: float = 0.0,
    reference_log_probs: Tensor | None = None,
) -> PolicyLoss:
    """PPO's clipped surrogate as one mean over all policy tokens of the batch.

    -(1 / total) * sum_p min(r_p A_p, clip(r_p, 1 - clip, 1 + clip) A_p) + kl * k3_p, with r_p the
    ratio to the policy that sampled (GRPO, arXiv 2402.03300, eq. 3) and
    k3 = exp(ref - log p) - (ref - log p) - 1. Tokens are averaged over the whole batch and not per
    sequence: a gain that was divided by the length of its query is not divided again.

    Args:
        log_probs: Under the present weights, nats, shape (tokens,), with gradient.
        old_log_probs: Under the weights that sampled, shape (tokens,).
        advantages: Shape (tokens,).
        total_tokens: Number of policy tokens of the whole batch.
        clip: Clip range.
        kl: Weight of the KL penalty.
        reference_log_probs: Under the reference policy, shape (tokens,); needed if ``kl`` > 0.

    Raises:
        ValueError: If ``kl`` is positive and there is no reference.
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    surrogate = torch.minimum(ratio * advantages, bounded * advantages)
    total = -surrogate.sum()
    clipped = float((bounded * advantages < ratio * advantages).sum())
    penalty = 0.0
    if kl > 0:
        if reference_log_probs is None:
            raise ValueError("a KL penalty needs reference_log_probs")
        gap = reference_log_probs - log_probs
        k3 = (gap.exp() - gap - 1).sum()
        total = total + kl * k3
        penalty = float(k3.detach())
    return PolicyLoss(total / total_tokens, clipped, penalty)
