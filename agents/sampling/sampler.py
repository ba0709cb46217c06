"""Batched sampling, token by token: rows of unequal length share one key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from agents.inference import attends_alone, decoder_config

READ_AT_ONCE = 1 << 23
"""Numbers of the widest activation of a layer, on a CPU; bounds the memory of reading contexts."""
PADDING = 128
"""Columns of padding among rows that are read together, at most: beyond it, a pass is cheaper."""

Rows: TypeAlias = slice | list[int]
"""All rows of a batch, as a slice, or some of them."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a sequence that was run: some columns of one row of a batch.

    Args:
        layers: Keys and values of each layer, shape (B, H, T, D).
        row: The row.
        columns: The columns that hold its tokens, in reading order, shape (tokens,).
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    row: int
    columns: Tensor

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.columns)

    def alone(self) -> Prefix:
        """A copy that does not keep the other rows of its batch alive."""
        row = slice(self.row, self.row + 1)
        layers = tuple(
            (keys[row].index_select(2, self.columns), values[row].index_select(2, self.columns))
            for keys, values in self.layers
        )
        return Prefix(layers, 0, torch.arange(len(self), device=self.columns.device))


class SampleRequest(NamedTuple):
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
    requests: Sequence[SampleRequest],
    choose: Callable[[Tensor], tuple[Tensor, Tensor]],
    ended: Callable[[list[int]], bool],
) -> list[Sample]:
    """Continue contexts token by token; finished rows leave the batch once they are the majority.

    Args:
        model: A causal language model in evaluation mode, gradients off.
        requests: What to continue.
        choose: Maps float32 logits (B, V) to sampled ids and their log-probabilities, (B,) each.
        ended: Whether a row stops after these sampled ids.
    """
    samples = [Sample() for _ in requests]
    batch = GrowingBatch(
        model,
        [request.context for request in requests],
        [request.prefix for request in requests],
        room=max(request.limit for request in requests),
    )
    rows = list(range(len(requests)))  # the sample of each row of the batch
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
            if len(current.ids) >= requests[rows[row]].limit or ended(current.ids):
                done[row] = True
                current.prefix = batch.prefix(row)
        if all(done):
            return samples
        batch.append(tokens)
        # Dropping a row copies the whole cache, so finished rows idle along until they are most.
        if 2 * sum(done) > len(done):
            active = [row for row, over in enumerate(done) if not over]
            batch.keep(active)
            rows = [rows[row] for row in active]
            done = [False] * len(rows)


class GrowingBatch:
    """Rows that are sampled together, each of them reading its own context first.

    Columns are ``[past | new tokens | room]``: what a row's prefix holds, what it still has to read
    and what will be sampled. Past and new tokens are both padded on the left, so that the last
    token of every row stands in the same column and one logit a row is enough.

    A model that remembers more than keys and values (a hybrid) has transformers' own cache. It
    reads every context from its beginning, and leaves no prefix.

    Args:
        model: A causal language model.
        contexts: Token ids of each row.
        prefixes: Keys and values of a proper prefix of each context, or None.
        room: Columns to keep free for sampled tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        contexts: Sequence[Sequence[int]],
        prefixes: Sequence[Prefix | None],
        room: int,
    ) -> None:
        self.model = model
        held = [len(prefix or ()) for prefix in prefixes]
        past = max(held)
        width = max(len(ids) - skip for ids, skip in zip(contexts, held, strict=True))
        self.end = past + width
        ids = torch.zeros((len(contexts), width), dtype=torch.long)
        positions = torch.zeros_like(ids)
        mask = torch.zeros((len(contexts), self.end + room), dtype=torch.bool)
        for row, (context, skip) in enumerate(zip(contexts, held, strict=True)):
            first = width - (len(context) - skip)
            ids[row, first:] = torch.tensor(context[skip:])
            positions[row, first:] = torch.arange(skip, len(context))
            mask[row, past - skip : past] = True
            mask[row, past + first : self.end] = True
        # Columns are no positions here: a row has gaps wherever another one is longer. So both the
        # mask and the true positions are given; without either, logits are wrong without an error.
        self.ids, self.positions = ids.to(model.device), positions.to(model.device)  # (B, N)
        self.mask = mask.to(model.device)  # (B, P + N + room)
        config = decoder_config(model)
        self.own_cache = None if attends_alone(model) else DynamicCache(config=config)
        # transformers' own cache grows by concatenation, which copies all keys for every token.
        count = 0 if self.own_cache else int(config.num_hidden_layers)
        self.layers = [_GrowingLayer(len(contexts), self.end, room) for _ in range(count)]
        for row, prefix in enumerate(prefixes):
            if prefix is not None:
                self._load(row, prefix, past)

    def _load(self, row: int, prefix: Prefix, past: int) -> None:
        for layer, (keys, values) in zip(self.layers, prefix.layers, strict=True):
            if not layer.is_initialized:
                layer.allocate(keys, values)
            assert layer.keys is not None
            assert layer.values is not None
            taken = slice(past - len(prefix), past)
            layer.keys[row, :, taken] = keys[prefix.row].index_select(1, prefix.columns)
            layer.values[row, :, taken] = values[prefix.row].index_select(1, prefix.columns)

    def logits(self) -> Tensor:
        """Run the tokens that were not run yet; logits after the last of them, shape (B, V)."""
        count = self.ids.shape[1]
        passes = self._passes()
        parts: list[tuple[Rows, Tensor]] = []
        for rows, start, stop in passes:
            # Columns that are padding for all rows of a part are left out.
            first = int(self.mask[rows].byte().argmax(dim=1).min()) if len(passes) > 1 else 0
            done = self.end - count + start
            for layer in self.layers:
                layer.show(rows, first, done)
            output = self.model(
                input_ids=self.ids[rows, start:stop],
                attention_mask=self.mask[rows, first : done + stop - start],
                position_ids=self.positions[rows, start:stop],
                past_key_values=self.own_cache or Cache(layers=list(self.layers)),
                use_cache=True,
                logits_to_keep=1,
            )
            if stop == count:
                parts.append((rows, output.logits[:, -1].float()))
        if len(parts) == 1:
            return parts[0][1]
        logits = parts[0][1].new_empty((len(self.ids), parts[0][1].shape[1]))
        for rows, part in parts:
            logits[rows] = part
        return logits

    def _passes(self) -> list[tuple[Rows, int, int]]:
        """Rows, and the first and last column (of those that were not run yet) of each pass.

        One pass, or several if so many tokens are not read together: then rows that have about as
        much to read go together, since padding costs as much as a token.
        """
        rows, count = self.ids.shape
        limit = _tokens_at_once(self.model)
        if limit is None or rows * count <= limit:
            return [(slice(None), 0, count)]
        passes: list[tuple[Rows, int, int]] = []
        new = self.mask[:, self.end - count : self.end].sum(dim=1).tolist()
        for group in _alike(new, limit):
            start = count - max(new[row] for row in group)
            size = max(1, limit // len(group))
            # Autocast rounds each weight where it is first used, and keeps it. Beside large
            # temporaries the rounded weights would cut up the room that the next layer needs, so
            # that the process held twice as much: the first pass is one column.
            if not passes and count - start > 1:
                passes.append((group, start, start + 1))
                start += 1
            stops = range(start + size, count, size)
            passes += [(group, *pair) for pair in pairwise((start, *stops, count))]
        return passes

    def append(self, tokens: Tensor) -> None:
        """Add one token to each row, shape (B,)."""
        self.ids = tokens[:, None]
        self.positions = self.positions[:, -1:] + 1
        self.mask[:, self.end] = True
        self.end += 1

    def keep(self, rows: list[int]) -> None:
        """Keep the given rows only."""
        # Indexing copies, which leaves the old buffers to the prefixes that were taken from them.
        index: Any = torch.tensor(rows, device=self.model.device)  # a LongTensor, says transformers
        self.ids, self.positions = self.ids[index], self.positions[index]
        self.mask = self.mask[index]
        if self.own_cache:
            self.own_cache.reorder_cache(index)
        for layer in self.layers:
            assert layer.keys is not None
            assert layer.values is not None
            layer.keys, layer.values = layer.keys[index], layer.values[index]

    def prefix(self, row: int) -> Prefix | None:
        """What a row holds now; None where that is more than keys and values."""
        if self.own_cache:
            return None
        columns = self.mask[row, : self.end].nonzero()[:, 0]
        layers = [(layer.keys, layer.values) for layer in self.layers]
        stored = tuple((k, v) for k, v in layers if k is not None and v is not None)
        return Prefix(stored, row, columns)


def _tokens_at_once(model: PreTrainedModel) -> int | None:
    """How many new tokens are run together, padding included; None where all are."""
    config = decoder_config(model)
    widest = getattr(config, "intermediate_size", None)
    if isinstance(widest, list | tuple):  # of each layer
        widest = max(widest, default=None)
    # A GPU's allocator copes with large temporaries, and large batches are what it is good at. A
    # state of its own, as hybrids have, is not read in parts.
    if model.device.type != "cpu" or not widest or not attends_alone(model):
        return None
    return None if _rotates_by_length(config) else max(1, READ_AT_ONCE // int(widest))


def _alike(new: Sequence[int], limit: int) -> list[list[int]]:
    """Rows to read together, by the number of tokens that each has to read; least first."""
    groups: list[list[int]] = []
    for row in sorted(range(len(new)), key=new.__getitem__):
        group = [*groups[-1], row] if groups else []
        columns = new[row] * len(group)
        if group and columns <= limit and columns - sum(new[one] for one in group) <= PADDING:
            groups[-1] = group
        else:
            groups.append([row])
    return groups


def _rotates_by_length(config: Any) -> bool:
    """Whether the positions of early tokens depend on how far the running pass reaches.

    Some ways to reach beyond the length of training change all angles once a pass goes beyond it.
    """
    given = getattr(config, "rope_parameters", None) or {}
    every = [given, *(one for one in given.values() if isinstance(one, dict))]  # of kinds of layers
    return any(one.get("rope_type") in ("dynamic", "longrope") for one in every)


class _GrowingLayer(DynamicLayer):
    """Keys and values in a buffer with room for all columns, written in place."""

    def __init__(self, rows: int, filled: int, room: int) -> None:
        super().__init__()
        self.shape = rows, filled + room
        self.filled = filled
        self.rows: Rows = slice(None)
        self.first = self.length = 0

    def show(self, rows: Rows, first: int, length: int) -> None:
        """Let the next pass see these rows, from the first column to where its own tokens begin."""
        self.rows, self.first, self.length = rows, first, length

    def get_seq_length(self) -> int:
        return self.length - self.first

    def allocate(self, keys: Tensor, values: Tensor) -> None:
        """Make room for keys and values like these; the columns of contexts are zero."""
        rows, columns = self.shape
        # Latent attention (DeepSeek) has values that are narrower than its keys.
        self.keys, self.values = (
            like.new_empty((rows, like.shape[1], columns, like.shape[3])) for like in (keys, values)
        )
        # What no token fills is masked, but 0 * NaN is NaN: it must hold numbers.
        self.keys[:, :, : self.filled].zero_()
        self.values[:, :, : self.filled].zero_()
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        # Under autocast rotary positions leave keys in float32, which attention would round anew at
        # each token; they are kept as attention reads them, in the type of the values.
        key_states = key_states.to(value_states.dtype)
        if not self.is_initialized:
            self.allocate(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[self.rows, :, start : self.length] = key_states
        self.values[self.rows, :, start : self.length] = value_states
        seen = self.rows, slice(None), slice(self.first, self.length)
        return self.keys[seen], self.values[seen]
