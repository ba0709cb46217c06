"""From the log-probabilities of an answer's tokens to one score."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def answer_score(
    log_probs: NDArray[np.float64],
    head_tokens: int = 0,
    head_weight: float = 1.0,
    floor: float | None = None,
) -> float:
    """Weighted mean of an answer's token log-probabilities, in nats per token.

    Args:
        log_probs: Log-probability of each answer token in nats, shape (answer tokens,).
        head_tokens: How many leading tokens weigh more.
        head_weight: Their weight against 1 for the others; weights are scaled to mean 1.
        floor: Each token counts at least this much, in nats; None for no floor.

    Raises:
        ValueError: If there are no tokens, one is not a log-probability, one is -inf and there is
            no floor, or the weights are out of range.
    """
    check_head(head_tokens, head_weight)
    values = np.asarray(log_probs, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(
            "an answer needs at least one token: expected log-probs of shape (answer tokens,), "
            f"got shape {values.shape}"
        )
    if not values.max() <= 1e-6:  # nor is NaN
        raise ValueError(f"log-probs must be numbers of at most 0, got {values.tolist()}")
    if floor is not None:
        values = np.maximum(values, floor)
    elif np.isneginf(values).any():
        raise ValueError(f"a log-prob of -inf needs a floor, got {values.tolist()} and no floor")
    if head_tokens == 0:
        return float(values.mean())
    weights = np.ones_like(values)
    weights[:head_tokens] = head_weight
    return float(values @ weights / weights.sum())


def check_head(head_tokens: int, head_weight: float) -> None:
    """Refuse weights of leading tokens that are out of range."""
    if head_tokens < 0 or not head_weight > 0:
        raise ValueError(
            "head_tokens must be at least 0 and head_weight above 0, "
            f"got {head_tokens} and {head_weight}"
        )
