"""Keys and values of single tokens, kept once each and gathered where they are needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from agents.sampling.growing_batch import Prefix


class KVPool:
    """Storage for the keys and values of a number of tokens, by slot.

    Slot 0 holds zeros and stands for padding: masked positions must hold finite numbers.

    Args:
        layers: Number of attention layers.
        slots: Number of slots, the padding slot included.
    """

    def __init__(self, layers: int, slots: int) -> None:
        self.slots = slots
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def layer(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, shape (slots, H, D) each.

        Args:
            number: Number of the layer.
            like: Keys of that layer, shape (B, H, T, D): they tell size, type and device.
        """
        stored = self.layers[number]
        if stored is None:
            shape = (self.slots, like.shape[1], like.shape[3])
            stored = (like.new_empty(shape), like.new_empty(shape))
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
            stored = self.layer(number, sources[0])
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
    """One layer's view of the pool: the past is gathered when the layer runs, and let go after."""

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
        stored = self.pool.layer(self.number, key_states)
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
