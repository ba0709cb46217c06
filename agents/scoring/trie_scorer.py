"""The fast exact scorer: every unique token of a call's contexts is run once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agents.inference import (
    check_length,
    check_logits,
    decoder,
    decoder_config,
    evaluating,
    sliding_window,
)
from agents.sampling.prefix_memory import PrefixMemory
from agents.scoring.one_by_one import OneByOneScorer
from agents.scoring.split_attention import split_attention
from agents.scoring.trie import build_trie
from agents.scoring.trie_forward import TrieForward
from agents.tokenization import SegmentTokenizer
from igsearch_env.episode import Context

_LARGE = 50_000_000
"""From this many parameters on, reading the weights costs a CPU more than cache misses do."""


class TrieScorer(OneByOneScorer):
    """Scores answers exactly, sharing the work of shared prefixes among all contexts of a call.

    The contexts of a rollout, real and counterfactual, and those of its siblings form a prefix
    tree. Its nodes are run in batches on top of their ancestors' keys and values. Values equal
    those of :class:`~agents.scoring.one_by_one.OneByOneScorer` up to rounding.

    Args:
        model: A causal language model with full attention in every layer that matters (Qwen2,
            Qwen3, Llama, Mistral, ...), whichever implementation of attention it was loaded with.
            Its weights at the time of the call are used.
        tokenizer: Its tokenizer.
        max_batch_tokens: At most this many padded positions in a batch and this many tokens in
            the key-value store, unless a single context is longer. It changes memory and speed,
            never results. None for 32,768 on a GPU. On a CPU, None for 4,096, because larger
            batches leave its caches; for 16,384 where the weights are so many that reading them
            for each batch costs more.
        memory: Keys and values that the policy kept when it sampled under the same weights; what
            they cover of the contexts is not run again.
        autocast: Type that matrices are multiplied in; None for that of the weights.

    Attributes:
        vocabulary_size: Number of tokens that the tokenizer knows.
        tokens_processed: Tokens run by the last call, padding aside: the unique prefixes of the
            contexts with their answers that some further token follows (nothing follows the last
            token of an answer, so it is predicted, but not run), less those that ``memory`` held.

    Raises:
        ValueError: If the tokenizer or the model does not meet these conditions.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast | SegmentTokenizer,
        *,
        max_batch_tokens: int | None = None,
        memory: PrefixMemory | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        if max_batch_tokens is None:
            max_batch_tokens = 32_768
            if model.device.type == "cpu":
                max_batch_tokens = 4_096 if model.num_parameters() < _LARGE else 16_384
        if max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens must be at least 1, got {max_batch_tokens}")
        if memory is not None and memory.model is not model:
            raise ValueError(
                "memory holds keys and values of another model, whose scores would be wrong; leave "
                "it out"
            )
        super().__init__(model, tokenizer, autocast=autocast)
        _check_model(model)
        self.max_batch_tokens = max_batch_tokens
        self.memory = memory
        self.longest = min(self.longest, sliding_window(model) or math.inf)

    def log_probs(
        self, contexts: Sequence[Context], answers: Sequence[str]
    ) -> list[NDArray[np.float64]]:
        """Score ``answers[i]`` as the continuation of ``contexts[i]``, as the plain scorer does.

        Raises:
            ValueError: If an answer has no tokens, or a context is longer than the model's
                positions or its attention window. Nothing has been run then.
        """
        pairs, longest = self.tokenizer.encode_all_scored(contexts, answers)
        check_length(self.model, longest)
        _check_window(self.model, longest)
        held = [] if self.memory is None else self.memory.held()
        trie = build_trie(
            [ids for ids, _ in pairs],
            held=[ids for ids, _ in held],
            scored=[count for _, count in pairs],
        )
        prefixes = [prefix for _, prefix in held]
        scored = [path[-count:] for path, (_, count) in zip(trie.paths, pairs, strict=False)]
        wanted = np.zeros(len(trie.ids), np.bool_)
        for tokens in scored:
            wanted[tokens] = True
        with evaluating(self.model, self.autocast), split_attention(self.model):
            forward = TrieForward(self.model, trie, prefixes, wanted, self.max_batch_tokens)
            values = forward.log_probs()
        self.tokens_processed = int(trie.lengths[trie.run].sum())
        return [values[tokens] for tokens in scored]


def _check_model(model: PreTrainedModel) -> None:
    config = decoder_config(model)
    sliding_window(model)
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        raise ValueError(
            f"{rope!r} rotary positions change with a context's length, so that keys cannot be "
            "shared among contexts; score with OneByOneScorer"
        )
    inputs = {
        "input_ids": torch.zeros((1, 1), dtype=torch.long, device=model.device),
        "attention_mask": torch.zeros((1, 1, 1, 0), dtype=model.dtype, device=model.device),
        "use_cache": False,
    }
    with evaluating(model), split_attention(model):
        decoder(model)(**inputs)  # raises where attention is more than the split one knows
        check_logits(model, attention_mask=inputs["attention_mask"])


def _check_window(model: PreTrainedModel, longest: int) -> None:
    window = sliding_window(model)
    if window is not None and longest > window:
        raise ValueError(
            f"the model's attention reaches {window} tokens back, but the longest context with its "
            f"answer has {longest}; score with OneByOneScorer"
        )
