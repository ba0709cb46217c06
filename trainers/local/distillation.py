"""Self-distillation with hindsight: a policy learns queries from itself, told how its group did.

Both sides read the same tokens; the teacher reads a text about the whole group before them. The
loss is the Jensen-Shannon divergence of their next-token distributions at the tokens of queries
(SD-Search, arXiv 2605.18299). The teacher's side has no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from agents.inference import decoder, decoder_config, logits_after
from agents.tokenization import SegmentTokenizer
from igsearch_env.episode import Episode, Segment
from trainers.config import LOGITS_AT_ONCE
from trainers.local.token_batch import TokenBatch, training_tokens


@dataclass(frozen=True)
class Lesson:
    """A sequence with queries that a teacher is asked about.

    Args:
        ids: Its tokens, up to the last one of a query.
        queries: Which of them belong to queries.
        before: What the teacher reads before them, in place of the first ``leading`` of them.
        leading: Tokens that begin every text (BOS), which ``before`` has, too.
    """

    ids: list[int]
    queries: list[bool]
    before: list[int]
    leading: int

    @property
    def teacher(self) -> tuple[list[int], list[bool]]:
        """The teacher's tokens, and which of them belong to queries."""
        ids, queries = self.ids[self.leading :], self.queries[self.leading :]
        return [*self.before, *ids], [*[False] * len(self.before), *queries]


def lessons(episode: Episode, hindsight: str, tokenizer: SegmentTokenizer) -> Iterator[Lesson]:
    """The sequences of an episode that hold queries.

    Args:
        episode: A finished episode.
        hindsight: What the teacher reads first. It quotes queries, so it is untrusted text.
        tokenizer: The policy's tokenizer.
    """
    leading = tokenizer.encode_context(())
    before = tokenizer.encode_context((Segment(hindsight, "document"),))
    of_query = np.zeros(episode.policy_tokens, np.bool_)
    for step in episode.searches:
        of_query[step.query_tokens] = True
    first = 0
    for ids, written in training_tokens(episode, tokenizer):
        places = np.flatnonzero(written)
        chosen = places[of_query[first : first + len(places)]]
        first += len(places)
        if len(chosen):
            queries = np.zeros(int(chosen[-1]) + 1, np.bool_)
            queries[chosen] = True
            shared = len(leading) if ids[: len(leading)] == leading else 0
            yield Lesson(ids[: len(queries)], queries.tolist(), before, shared)


def divergence(
    model: PreTrainedModel,
    lessons: Sequence[Lesson],
    temperature: float = 1.0,
    known_ids: int | None = None,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Tensor:
    """Sum over query tokens of the Jensen-Shannon divergence between policy and teacher, in nats.

    Args:
        model: A causal language model.
        lessons: What is read.
        temperature: Divides the logits, as in sampling.
        known_ids: Only ids below it have a probability, as in sampling; None for all.
        logits_at_once: Positions times vocabulary; at least one position is computed at a time.

    Returns:
        A scalar, with a gradient on the policy's side alone.
    """
    device = model.device
    student = TokenBatch.from_rows([(lesson.ids, lesson.queries) for lesson in lessons], device)
    teacher = TokenBatch.from_rows([lesson.teacher for lesson in lessons], device)
    with torch.no_grad():
        told = _states(model, teacher)
    own = _states(model, student)
    size = max(1, logits_at_once // int(decoder_config(model).vocab_size))
    parts = [
        checkpoint(_divergence, model, *part, temperature, known_ids, use_reentrant=False)
        for part in zip(own.split(size), told.split(size), strict=True)
    ]
    return torch.stack(parts).sum()


def _states(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """Hidden states before the chosen tokens, shape (chosen, d)."""
    hidden = decoder(model)(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    states: Tensor = hidden[:, :-1][batch.policy_mask[:, 1:]]
    return states


def _divergence(
    model: PreTrainedModel, own: Tensor, told: Tensor, temperature: float, known_ids: int | None
) -> Tensor:
    p, q = (
        torch.log_softmax(logits_after(model, s)[:, :known_ids].float() / temperature, dim=-1)
        for s in (own, told.detach())
    )
    q = q.detach()  # the output embedding is the teacher's, too, and has no gradient from there
    middle = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * (p.exp() * (p - middle) + q.exp() * (q - middle)).sum()
