"""What every use of a frozen causal language model shares: modes, limits and checks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast


@contextmanager
def evaluating(model: PreTrainedModel, autocast: torch.dtype | None = None) -> Iterator[None]:
    """Run without dropout and without gradients; every module gets its mode back afterwards.

    Args:
        model: The model.
        autocast: As for :func:`computing_in`.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad(), computing_in(model, autocast):
            yield
    finally:
        for module in training:
            module.training = True


def computing_in(model: PreTrainedModel, autocast: torch.dtype | None) -> torch.autocast:
    """A context in which matrices are multiplied in another type than that of the weights.

    The weights stay as they are (float32 master weights with bfloat16 arithmetic, say). Each is
    rounded once per context and the rounded copy is used until the context ends.

    Args:
        model: The model.
        autocast: The type, as for :class:`torch.autocast`; None for the type of the weights.
    """
    return torch.autocast(model.device.type, autocast, enabled=autocast is not None)


def compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """The type that attention computes in now: that of autocast, or else of the weights."""
    device = model.device.type
    enabled = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if enabled else model.dtype


def decoder_config(model: PreTrainedModel) -> Any:
    """The configuration of the part that decodes text."""
    return model.config.get_text_config(decoder=True)


def decoder(model: PreTrainedModel) -> nn.Module:
    """The part that turns ids into hidden states."""
    untyped: Any = model
    module: nn.Module = untyped.get_decoder()
    return module


def output_embeddings(model: PreTrainedModel) -> nn.Module:
    """The part that turns hidden states into logits.

    Raises:
        ValueError: If there is none.
    """
    untyped: Any = model
    module: nn.Module | None = untyped.get_output_embeddings()
    if module is None:
        raise ValueError(
            f"expected a causal language model, got {type(model).__name__} without an output "
            "embedding; load it with AutoModelForCausalLM"
        )
    return module


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """The tokens that end a sequence, as the tokenizer and the generation configuration say."""
    config = model.generation_config
    stated = None if config is None else config.eos_token_id
    ids = {tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])}
    return frozenset(token for token in ids if token is not None)


def max_positions(model: PreTrainedModel) -> int | None:
    """The longest sequence that the model can read, in tokens; None if it states no limit."""
    limit = getattr(decoder_config(model), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def check_length(model: PreTrainedModel, longest: int) -> None:
    """Check that a sequence fits.

    Args:
        model: The model that is to read it.
        longest: Length of the longest sequence, in tokens.

    Raises:
        ValueError: If it is longer than the model's positions.
    """
    limit = max_positions(model)
    if limit is not None and longest > limit:
        raise ValueError(
            f"the longest context with its answer has {longest} tokens, but the model reads at "
            f"most {limit} (max_position_embeddings); shorten the contexts (fewer or shorter "
            "documents)"
        )


def sliding_window(model: PreTrainedModel) -> int | None:
    """How many tokens back the narrowest attention layer sees; None if all of them see everything.

    Raises:
        ValueError: If a layer is neither full nor sliding-window attention (linear, chunked, ...).
    """
    config = decoder_config(model)
    kinds = set(getattr(config, "layer_types", None) or ())
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise ValueError(
            "expected layers of full or sliding-window attention, got "
            f"{', '.join(sorted(unknown))}; only OneByOneScorer can run such a model"
        )
    if kinds and "sliding_attention" not in kinds:
        return None
    window = getattr(config, "sliding_window", None)
    return None if window is None else int(window)
