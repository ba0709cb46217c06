"""From the log-probabilities of an answer's tokens to one score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def answer_scores(
    log_probs: Sequence[NDArray[np.float64]],
    head_tokens: int = 0,
    head_weight: float = 1.0,
    floor: float | None = None,
) -> NDArray[np.float64]:
    """Weighted mean of the token log-probabilities of each answer, in nats per token.

    Args:
        log_probs: Log-probability of each token in nats, one array of shape (answer tokens,) per
            answer.
        head_tokens: How many leading tokens of an answer weigh more.
        head_weight: Their weight against 1 for the others.
        floor: Each token counts at least this much, in nats; None for no floor.

    Returns:
        The scores, shape (answers,).

    Raises:
        ValueError: If an answer has no tokens, a number is not a log-probability, one is -inf and
            there is no floor, or the weights are out of range.
    """
    check_head(head_tokens, head_weight)
    if not log_probs:
        return np.zeros(0)
    arrays = [np.asarray(values, dtype=np.float64) for values in log_probs]
    for values in arrays:
        if values.ndim != 1 or values.size == 0:
            raise ValueError(
                "an answer needs at least one token: expected log-probs of shape (answer tokens,), "
                f"got shape {values.shape}"
            )
    lengths = np.array([values.size for values in arrays])
    starts = np.cumsum(lengths) - lengths  # (answers,)
    flat = np.concatenate(arrays)  # (tokens of all answers,)
    if not flat.max() <= 1e-6:  # nor is NaN
        wrong = next(values for values in arrays if not values.max() <= 1e-6)
        raise ValueError(f"log-probs must be numbers of at most 0, got {wrong.tolist()}")
    if floor is not None:
        flat = np.maximum(flat, floor)
    elif np.isneginf(flat).any():
        wrong = next(values for values in arrays if np.isneginf(values).any())
        raise ValueError(f"a log-prob of -inf needs a floor, got {wrong.tolist()} and no floor")
    places = np.arange(flat.size) - np.repeat(starts, lengths)
    weights = np.where(places < head_tokens, head_weight, 1.0)
    scores: NDArray[np.float64] = np.add.reduceat(flat * weights, starts)
    return scores / np.add.reduceat(weights, starts)


def check_head(head_tokens: int, head_weight: float) -> None:
    """Refuse weights of leading tokens that are out of range."""
    if head_tokens < 0 or not head_weight > 0:
        raise ValueError(
            "head_tokens must be at least 0 and head_weight above 0, "
            f"got {head_tokens} and {head_weight}"
        )
