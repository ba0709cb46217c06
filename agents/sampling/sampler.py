"""Batched sampling, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from agents.sampling.growing_batch import GrowingBatch, Prefix


class Job(NamedTuple):
    """A context to continue.

    Args:
        context: Its ids, at least one.
        prefix: Keys and values of a proper prefix of it, or None.
        limit: The largest number of tokens to sample, at least 1.
    """

    context: Sequence[int]
    prefix: Prefix | None
    limit: int


@dataclass
class Sample:
    """What was sampled after one context.

    Args:
        ids: Sampled ids, shape (tokens,).
        log_probs: Log-probability of each under the distribution it was drawn from, in nats.
        prefix: Keys and values of the context and all sampled tokens but the last.
    """

    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    prefix: Prefix | None = None


def sample(
    model: PreTrainedModel,
    jobs: Sequence[Job],
    choose: Callable[[Tensor], tuple[Tensor, Tensor]],
    ended: Callable[[list[int]], bool],
) -> list[Sample]:
    """Continue contexts token by token; finished rows leave the batch once they are the majority.

    Args:
        model: A causal language model in evaluation mode, gradients off.
        jobs: What to continue.
        choose: Maps float32 logits (B, V) to sampled ids and their log-probabilities, (B,) each.
        ended: Whether a row stops after these sampled ids.
    """
    samples = [Sample() for _ in jobs]
    batch = GrowingBatch(
        model,
        [job.context for job in jobs],
        [job.prefix for job in jobs],
        room=max(job.limit for job in jobs),
    )
    rows = list(range(len(jobs)))  # the sample of each row of the batch
    done = [False] * len(rows)
    while True:
        tokens, log_probs = choose(batch.logits())
        drawn = zip(tokens.tolist(), log_probs.tolist(), strict=True)
        for row, (token, log_prob) in enumerate(drawn):
            if done[row]:
                continue
            current = samples[rows[row]]
            current.ids.append(token)
            current.log_probs.append(log_prob)
            if len(current.ids) >= jobs[rows[row]].limit or ended(current.ids):
                done[row] = True
                current.prefix = batch.prefix(row)
        if all(done):
            return samples
        batch.append(tokens)
        if 2 * sum(done) > len(done):
            active = [row for row, over in enumerate(done) if not over]
            batch.keep(active)
            rows = [rows[row] for row in active]
            done = [False] * len(rows)
