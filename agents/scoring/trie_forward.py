"""Runs a trie of tokens through a model: each node once, on top of its ancestors' keys and values.

Nodes whose keys and values were kept from sampling are not run at all. The others are taken in
waves by depth, so that all their ancestors are done. A batch gathers the keys and values of its
ancestors padded on the left; its new tokens are padded on the right. ``position_ids`` are the true
depths, and attention gets the padding of the past: leaving either out would be wrong without
an error. Padding on the right follows every token that counts, so causality hides it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from agents.inference import compute_dtype, decoder, decoder_config, logits_after
from agents.sampling.sampler import Prefix
from agents.scoring.trie import Ints, Trie

_LOGITS_AT_ONCE = 1 << 26  # numbers; bounds the memory of the logits


class TrieForward:
    """One pass over a trie.

    Args:
        model: A causal language model in evaluation mode, its attention split
            (:func:`~agents.scoring.split_attention.split_attention`).
        trie: The tokens.
        held: Keys and values of the trie's last paths, those that are held.
        scored: Tokens whose log-probabilities are wanted, shape (tokens,); none at a root.
        budget: At most this many padded positions (past and new) in one batch, and this many
            tokens whose keys and values are held, unless a single path is longer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trie: Trie,
        held: Sequence[Prefix],
        scored: NDArray[np.bool_],
        budget: int,
    ) -> None:
        self.model = model
        self.trie = trie
        self.held = held
        self.budget = budget
        self._holders = np.zeros(len(trie.ids), np.int64)  # a prefix that holds the token
        for holder, path in enumerate(trie.paths[len(trie.paths) - len(held) :]):
            self._holders[path] = holder
        wanted = np.flatnonzero(scored)
        self._wanted = wanted[np.argsort(trie.parents[wanted], kind="stable")]
        # Sorted by the token that predicts them, so that those of a node are one range.
        self._predictors = trie.parents[self._wanted]
        self._results = torch.zeros(len(wanted), dtype=torch.float32, device=model.device)
        self._slots = np.zeros(len(trie.ids), np.int64)  # of the tokens in the pool
        self._pool = KVPool(int(decoder_config(model).num_hidden_layers), slots=1)

    def log_probs(self) -> NDArray[np.float64]:
        """Log-probability of each wanted token in nats, NaN elsewhere, shape (tokens,)."""
        for nodes in self._chunks():
            self._open_pool(nodes)
            for batch in self._batches(nodes):
                hidden = self._run(batch)
                self._read_off(batch, hidden)
        log_probs = np.full(len(self.trie.ids), np.nan)
        log_probs[self._wanted] = self._results.double().cpu().numpy()
        return log_probs

    def _chunks(self) -> Iterator[Ints]:
        """Ranges of nodes whose keys and values fit the budget together."""
        # Only inner nodes are stored: nothing below a leaf would read its keys. A chunk starts with
        # the tokens above its first node, which are carried over.
        first, held = 0, 0
        stored = np.where(self.trie.inner, self.trie.lengths, 0).tolist()
        for node, tokens in enumerate(stored):
            if node > first and held + tokens > self.budget:
                yield np.arange(first, node)
                first, held = node, int(self.trie.depths[node])
            held += tokens
        yield np.arange(first, len(stored))

    def _open_pool(self, nodes: Ints) -> None:
        """Make room for a chunk, keeping what it needs of the chunk before.

        Nodes are numbered depth first: whatever a chunk needs from before it lies above its first
        node.
        """
        carried = self.trie.ancestors(nodes[0]) if len(nodes) else nodes
        inner = nodes[self.trie.inner[nodes]]
        stored = _ranges(self.trie.starts[inner], self.trie.lengths[inner])
        size = 1 + len(carried) + len(stored)
        self._pool = self._pool.moved(self._tensor(self._slots[carried]), size)
        self._slots[carried] = np.arange(1, 1 + len(carried))
        self._slots[stored] = np.arange(1 + len(carried), size)
        self._load(inner[self.trie.held[inner]])

    def _load(self, nodes: Ints) -> None:
        """Put the keys and values of held nodes into the pool."""
        trie = self.trie
        tokens = _ranges(trie.starts[nodes], trie.lengths[nodes])
        columns = _ranges(trie.depths[nodes], trie.lengths[nodes])
        holders = self._holders[tokens]
        for holder in np.unique(holders).tolist():
            of_it = holders == holder
            slots, taken = self._slots[tokens[of_it]], columns[of_it]
            self._pool.load(self._tensor(slots), self.held[holder], self._tensor(taken))

    def _batches(self, nodes: Ints) -> Iterator[Ints]:
        """Nodes of one wave and of similar length, shallow waves first."""
        # Padding is work for nothing, so nodes of a batch differ in length by a quarter at most;
        # the 4 lets the many short answers share a batch.
        trie = self.trie
        nodes = nodes[trie.run[nodes]]
        nodes = nodes[np.lexsort((trie.depths[nodes], trie.lengths[nodes], trie.waves[nodes]))]
        waves, lengths = trie.waves[nodes].tolist(), trie.lengths[nodes].tolist()
        first, deepest = 0, 0
        for last, depth in enumerate(trie.depths[nodes].tolist()):
            width = max(deepest, depth) + lengths[last]
            if last > first and (
                waves[last] != waves[first]
                or lengths[last] > 1.25 * lengths[first] + 4
                or width * (last + 1 - first) > self.budget
            ):
                yield nodes[first:last]
                first, deepest = last, 0
            deepest = max(deepest, depth)
        if len(nodes):
            yield nodes[first:]

    def _run(self, nodes: Ints) -> Tensor:
        """Run nodes whose ancestors are in the pool; last hidden states, shape (B, Q, d)."""
        trie = self.trie
        lengths = trie.lengths[nodes][:, None]  # (B, 1)
        depths = trie.depths[nodes][:, None]  # (B, 1)
        columns = np.arange(lengths.max())  # (Q,)
        real = columns < lengths  # (B, Q)
        # Padding repeats the last token at its own position: an id and a depth that are in range.
        columns = np.minimum(columns, lengths - 1)
        tokens = trie.starts[nodes][:, None] + columns  # (B, Q)
        past = np.zeros((len(nodes), depths.max()), np.int64)  # (B, P); slot 0 is padding
        for row, node in enumerate(nodes.tolist()):
            ancestors = trie.ancestors(node)
            past[row, past.shape[1] - len(ancestors) :] = self._slots[ancestors]
        kept = np.flatnonzero(real & trie.inner[nodes][:, None])
        slots = self._slots[tokens.reshape(-1)[kept]]
        cache = self._pool.cache(*map(self._tensor, (past, kept, slots)))
        output = decoder(self.model)(
            input_ids=self._tensor(trie.ids[tokens]),
            attention_mask=self._past_mask(trie.depths[nodes]),
            position_ids=self._tensor(depths + columns),
            past_key_values=cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _past_mask(self, depths: Ints) -> Tensor:
        """What is added to scores of the past, (B, 1, 1, P); one row if the depths are equal."""
        padding = depths.max() - (depths if np.ptp(depths) else depths[:1])
        device, dtype = self.model.device, compute_dtype(self.model)
        past = torch.arange(int(depths.max()), device=device)
        hidden = past < self._tensor(padding)[:, None, None, None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
        return mask.masked_fill_(hidden, torch.finfo(dtype).min)

    def _read_off(self, nodes: Ints, hidden: Tensor) -> None:
        """Score the wanted tokens that follow a token of these nodes."""
        starts = self.trie.starts[nodes]
        first = np.searchsorted(self._predictors, starts)
        counts = np.searchsorted(self._predictors, starts + self.trie.lengths[nodes]) - first
        wanted = _ranges(first, counts)  # (E,)
        rows = np.repeat(np.arange(len(nodes)), counts)
        columns = self._predictors[wanted] - starts[rows]
        # A logit row is as wide as the vocabulary, so only the rows that predict a wanted token are
        # made, and those in parts: the whole batch's would be the largest tensor by far.
        size = max(1, _LOGITS_AT_ONCE // int(decoder_config(self.model).vocab_size))
        for at in range(0, len(wanted), size):
            part = slice(at, at + size)
            states = hidden[self._tensor(rows[part]), self._tensor(columns[part])]  # (E, d)
            log_probs = torch.log_softmax(
                logits_after(self.model, states).float(), dim=-1
            )  # (E, V)
            targets = self._tensor(self.trie.ids[self._wanted[wanted[part]]])
            scores = log_probs.gather(1, targets[:, None])[:, 0]
            self._results[self._tensor(wanted[part])] = scores

    def _tensor(self, array: NDArray[np.int64] | NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(array).to(self.model.device)


def _ranges(starts: Ints, lengths: Ints) -> Ints:
    """The numbers of several ranges, one range after another."""
    before = np.cumsum(lengths) - lengths
    total = int(lengths.sum())
    return np.repeat(starts - before, lengths) + np.arange(total)


class KVPool:
    """Storage for the keys and values of a number of tokens, by slot.

    Slot 0 holds zeros and stands for padding: masked positions must hold finite numbers, because
    0 * NaN is NaN.

    Args:
        layers: Number of attention layers.
        slots: Number of slots, the padding slot included.
    """

    def __init__(self, layers: int, slots: int) -> None:
        self.slots = slots
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def layer(self, number: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, shape (slots, H, D) each.

        Args:
            number: Number of the layer.
            keys: Keys of that layer, shape (B, H, T, D), of the same size, type and device.
            values: Values of it, likewise.
        """
        stored = self.layers[number]
        if stored is None:
            made = (x.new_empty((self.slots, x.shape[1], x.shape[3])) for x in (keys, values))
            stored = (next(made), next(made))
            for tensor in stored:
                tensor[0].zero_()
            self.layers[number] = stored
        return stored

    def moved(self, sources: Tensor, slots: int) -> KVPool:
        """A new pool that holds the given slots of this one from slot 1 on.

        Args:
            sources: Slots of this pool, shape (kept,).
            slots: Number of slots of the new pool.
        """
        pool = KVPool(len(self.layers), slots)
        for number, stored in enumerate(self.layers):
            if stored is None:
                continue
            fresh = tuple(tensor.new_empty((slots, *tensor.shape[1:])) for tensor in stored)
            for new, old in zip(fresh, stored, strict=True):
                new[0].zero_()
                new[1 : 1 + len(sources)] = old.index_select(0, sources)
            pool.layers[number] = (fresh[0], fresh[1])
        return pool

    def load(self, slots: Tensor, prefix: Prefix, columns: Tensor) -> None:
        """Copy keys and values that were computed elsewhere.

        Args:
            slots: Where to store them, shape (tokens,).
            prefix: Where they are.
            columns: Which of its tokens are copied, shape (tokens,).
        """
        taken = prefix.columns[columns]
        for number, sources in enumerate(prefix.layers):
            stored = self.layer(number, *sources)
            for new, old in zip(stored, sources, strict=True):
                new[slots] = old[prefix.row].index_select(1, taken).transpose(0, 1)

    def cache(self, past: Tensor, kept: Tensor, slots: Tensor) -> Cache:
        """A cache for one forward pass that reads and writes this pool.

        Args:
            past: Slots to attend to before the new tokens, shape (B, P); padding is slot 0.
            kept: Which new tokens to store, as indices into the flattened (B, Q) batch,
                shape (kept,).
            slots: Where to store them, shape (kept,).
        """
        numbers = range(len(self.layers))
        return Cache(layers=[_PoolLayer(self, n, past, kept, slots) for n in numbers])


class _PoolLayer(DynamicLayer):
    """One layer's view of the pool: the past is gathered when the layer runs, and freed after it.

    transformers calls ``update`` in the middle of each layer, so no more than one layer's gathered
    past is in memory at a time.
    """

    def __init__(
        self, pool: KVPool, number: int, past: Tensor, kept: Tensor, slots: Tensor
    ) -> None:
        super().__init__()
        self.pool, self.number, self.past, self.kept, self.slots = pool, number, past, kept, slots

    def get_seq_length(self) -> int:
        return self.past.shape[1]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        key_states = key_states.to(value_states.dtype)  # float32 after rotation under autocast
        stored = self.pool.layer(self.number, key_states, value_states)
        keys = self._extend(stored[0], key_states)
        return keys, self._extend(stored[1], value_states)

    def _extend(self, stored: Tensor, new: Tensor) -> Tensor:
        rows, heads, _, size = new.shape
        by_token = new.transpose(1, 2)  # (B, Q, H, D)
        if len(self.kept):
            flat = by_token.reshape(-1, heads, size)
            stored.index_copy_(0, self.slots, flat.index_select(0, self.kept))
        if not self.past.shape[1]:
            return new
        past = stored.index_select(0, self.past.flatten()).view(rows, -1, heads, size)
        return torch.cat((past, by_token), dim=1).transpose(1, 2)  # (B, H, P + Q, D)
