"""Episodes as padded tensors, and the log-probabilities of their policy tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from agents.inference import decoder, decoder_config, logits_after
from agents.tokenization import SegmentTokenizer
from igsearch_env.episode import Episode, Segment
from trainers.config import LOGITS_AT_ONCE


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of B episodes, right-padded to T, and which of them the policy wrote.

    There is no attention mask: attention looks back only, so that no token sees the padding after
    it.

    Args:
        input_ids: Shape (B, T).
        policy_mask: True where the policy wrote the token, shape (B, T).
    """

    input_ids: Tensor
    policy_mask: Tensor

    @classmethod
    def from_episodes(
        cls,
        episodes: Sequence[Episode],
        tokenizer: SegmentTokenizer,
        device: torch.device | str = "cpu",
    ) -> TokenBatch:
        """Tokenise transcripts; sampled ids are used as they are.

        Raises:
            ValueError: If a turn of the policy has no token ids.
        """
        return cls.from_rows([episode_tokens(one, tokenizer) for one in episodes], device)

    @classmethod
    def from_rows(
        cls, rows: Sequence[tuple[list[int], list[bool]]], device: torch.device | str = "cpu"
    ) -> TokenBatch:
        """Pad rows of token ids, each with which of them the policy wrote."""
        length = max(len(ids) for ids, _ in rows)
        input_ids = torch.zeros(len(rows), length, dtype=torch.long)
        policy = torch.zeros(len(rows), length, dtype=torch.bool)
        for row, (ids, mask) in enumerate(rows):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            policy[row, : len(ids)] = torch.tensor(mask)
        return cls(input_ids.to(device), policy.to(device))

    def spread(self, values: Sequence[NDArray[np.float64]]) -> Tensor:
        """One number per policy token of each episode, joined: shape (policy tokens of all,).

        It is aligned with what :func:`policy_log_probs` returns.
        """
        joined = np.concatenate([np.asarray(v, dtype=np.float64) for v in values])
        expected = int(self.policy_mask.sum())
        if joined.shape != (expected,):
            raise ValueError(
                f"expected {expected} values, one per policy token, got shape {joined.shape}"
            )
        return torch.tensor(joined, dtype=torch.float32, device=self.input_ids.device)


def policy_log_probs(
    model: PreTrainedModel,
    batch: TokenBatch,
    temperature: float = 1.0,
    known_ids: int | None = None,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each policy token, and the entropy where it was chosen.

    Logits are computed at the positions before policy tokens only, and no more than
    ``logits_at_once`` numbers of them exist at a time: where there are more, they are computed in
    parts, and again in the backward pass.

    Args:
        model: A causal language model.
        batch: B episodes.
        temperature: Divides the logits, as in sampling.
        known_ids: Only ids below it have a probability, as in sampling; None for all.
        logits_at_once: Positions times vocabulary; at least one position is computed at a time.

    Returns:
        Log-probs in nats and entropies in nats (detached), shape (policy tokens,) each, in the
        order of the rows.
    """
    hidden = decoder(model)(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    chosen = batch.policy_mask[:, 1:]  # hidden: (B, T, H)
    states, targets = hidden[:, :-1][chosen], batch.input_ids[:, 1:][chosen]  # (P, H), (P,)
    size = max(1, logits_at_once // int(decoder_config(model).vocab_size))
    if len(states) <= size:
        return _read_off(model, states, targets, temperature, known_ids)
    parts = [
        checkpoint(_read_off, model, *part, temperature, known_ids, use_reentrant=False)
        for part in zip(states.split(size), targets.split(size), strict=True)
    ]
    log_probs, entropies = zip(*parts, strict=True)
    return torch.cat(log_probs), torch.cat(entropies)


def _read_off(
    model: PreTrainedModel,
    states: Tensor,
    targets: Tensor,
    temperature: float,
    known_ids: int | None,
) -> tuple[Tensor, Tensor]:
    """Log-probs of targets, shape (P,), after hidden states, shape (P, H), and the entropies."""
    logits = logits_after(model, states)[:, :known_ids].float() / temperature  # (P, V)
    log_probs = torch.log_softmax(logits, dim=-1)
    entropy = -(log_probs.detach().exp() * log_probs.detach()).sum(-1)
    return log_probs.gather(1, targets[:, None])[:, 0], entropy


def training_tokens(
    episode: Episode, tokenizer: SegmentTokenizer
) -> list[tuple[list[int], list[bool]]]:
    """The sequences that an episode is trained on (:attr:`Episode.training_sequences`).

    Returns:
        For each, its ids up to the last one that is trained on, and which of them are. All of them
        together hold each policy token of the episode once, in order.

    Raises:
        ValueError: If a turn has no token ids.
    """
    return [_tokens(episode, sequence, tokenizer) for sequence in episode.training_sequences]


def episode_tokens(episode: Episode, tokenizer: SegmentTokenizer) -> tuple[list[int], list[bool]]:
    """Ids up to the last one that the policy wrote (it saw them all), and which it wrote.

    Raises:
        ValueError: If a turn has no token ids, or the policy did not see all of this when it wrote,
            because its context was managed.
    """
    found = training_tokens(episode, tokenizer)
    if len(found) > 1:
        raise ValueError(
            f"the episode of question {episode.question.id!r} is trained on {len(found)} sequences "
            "since its context was managed, and only the local trainer knows of several; leave out "
            "keep_documents and drop_thoughts"
        )
    return found[0]


def _tokens(
    episode: Episode, sequence: Sequence[tuple[Segment, bool]], tokenizer: SegmentTokenizer
) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    mask: list[bool] = []
    for segment, trained in sequence:
        if trained and segment.token_ids is None:
            raise ValueError(
                f"a turn of question {episode.question.id!r} has no token ids; a policy that is "
                "trained must return Completions with token_ids"
            )
        piece = (
            tokenizer.encode_segment(segment, ids) if ids else tokenizer.encode_context((segment,))
        )
        ids += piece
        mask += [trained] * len(piece)
    length = len(mask) - mask[::-1].index(True) if True in mask else len(mask)
    return ids[:length], mask[:length]


def micro_batches(
    lengths: Sequence[int], budget: int, size: int | None = None
) -> Iterator[list[int]]:
    """Cut episodes into parts of similar length that fit into memory.

    Args:
        lengths: Tokens of each episode.
        budget: Tokens per part, padding included, at most, unless a single episode is longer.
        size: Episodes per part, at most; None for no limit.

    Returns:
        Indices of the episodes of each part.

    >>> list(micro_batches([5, 2, 9, 3], budget=8))
    [[1, 3], [0], [2]]
    """
    part: list[int] = []
    for index in np.argsort(lengths, kind="stable").tolist():
        # Lengths rise: this one is the width that the whole part is padded to.
        if part and (len(part) == size or (len(part) + 1) * lengths[index] > budget):
            yield part
            part = []
        part.append(index)
    if part:
        yield part
