"""What every use of a frozen causal language model shares: modes, limits and checks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
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


def logits_after(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits from hidden states, as the model itself computes them.

    Some models change what their output embedding gives: they scale it (Cohere, Granite) or cap it
    softly (Gemma). :func:`check_logits` refuses those that do something else.

    Args:
        model: A causal language model.
        states: What its decoder gives, shape (..., d).

    Returns:
        Shape (..., V).
    """
    logits: Tensor = output_embeddings(model)(states)
    return _finished(model, logits)


def _finished(model: PreTrainedModel, logits: Tensor) -> Tensor:
    config = decoder_config(model)
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def check_weights(model: nn.Module) -> None:
    """Refuse a model that holds NaN or infinity.

    Raises:
        ValueError: If a weight is not a finite number; the message names it.
    """
    # Least and largest value need no room, which torch.isfinite of a whole matrix would.
    extremes = {
        name: torch.stack(torch.aminmax(value.detach()))
        for name, value in model.named_parameters()
        if value.numel() and value.is_floating_point()
    }
    wrong = [name for name, pair in extremes.items() if not torch.isfinite(pair).all()]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(extremes)} weight matrices hold numbers that are not finite, "
            f"{wrong[0]} among them"
        )


def check_logits(model: PreTrainedModel, **options: Any) -> None:
    """Check that :func:`logits_after` gives the model's own logits, whatever its weights are.

    Args:
        model: A causal language model.
        **options: What its ``forward`` has to be given besides.

    Raises:
        ValueError: If it does not.
    """
    head, config = output_embeddings(model), decoder_config(model)
    size = int(config.vocab_size)
    # The output embedding is made to give these numbers, so that no weight hides what follows it.
    planted = torch.linspace(-60, 60, size, device=model.device, dtype=model.dtype)
    read: list[Tensor] = []

    def plant(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        read.append(inputs[0])
        return planted.expand_as(output)

    generator = torch.Generator().manual_seed(0)
    width = int(config.hidden_size)
    embeds = torch.randn((1, 2, width), generator=generator).to(model.device, model.dtype)
    inputs = {"inputs_embeds": embeds, "use_cache": False, **options}
    handle = head.register_forward_hook(plant)
    try:
        with evaluating(model):
            states = decoder(model)(**inputs).last_hidden_state
            logits = model(**inputs).logits[0, -1]
    finally:
        handle.remove()
    same = torch.allclose(_finished(model, planted), logits, rtol=1e-2, atol=1e-2)
    if not same or not torch.allclose(read[-1][0, -1], states[0, -1], rtol=1e-2, atol=1e-2):
        raise ValueError(
            f"{type(model).__name__} changes its hidden states or its logits around the output "
            "embedding in a way that is not known here"
        )


def attends_alone(model: PreTrainedModel) -> bool:
    """Whether keys and values are all that the model remembers of a context.

    Layers of linear attention, convolutions and state spaces (Qwen3-Next, Qwen3.5, LFM2, Mamba)
    remember a state instead, and those of chunked attention a part of the context.
    """
    kinds = set(getattr(decoder_config(model), "layer_types", None) or ())
    stateful = bool(getattr(model, "_is_stateful", False))
    return not stateful and kinds <= {"full_attention", "sliding_attention"}


def check_cache(model: PreTrainedModel) -> None:
    """Check that the model can be sampled from step by step.

    Raises:
        ValueError: If it does not take the cache that transformers makes.
    """
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"{type(model).__name__} keeps what it remembers in a form of its own (it takes no "
            "past_key_values), so that turns cannot be sampled from it; choose another model"
        )


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
