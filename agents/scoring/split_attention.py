"""Attention of new tokens to their past and to one another, computed apart and joined exactly.

New tokens see all of their past, padding aside, and of each other what came before: two calls that
need no mask of queries by keys. Joined by the logarithm of their normalisers they give what one
call gives that computes, and then hides, the upper half of the new tokens' square.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from agents.inference import decoder_config

_NAME = "igsearch_split"
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # what some models add to attention


@contextmanager
def split_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let the layers of a model use :func:`attend` in place of their attention.

    ``attention_mask`` must then be what is added to scores of the past: 0, or very negative where
    a row's past is padded on the left, shape (B, 1, 1, P); or zeros, shape (1, 1, 1, P), where no
    row is padded.

    Raises:
        ValueError: If the model's class does not let its attention be replaced.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(
            f"the attention of {type(model).__name__} cannot be replaced; score with OneByOneScorer"
        )
    # transformers looks the name up in every layer's call, so the model itself stays untouched.
    config = decoder_config(model)
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention of Q new tokens after a past of P.

    Args:
        module: The layer.
        query: Shape (B, heads, Q, D).
        key: Keys of past and new tokens, shape (B, key-value heads, P + Q, D).
        value: Values, of the same shape; they may be narrower.
        attention_mask: What is added to the scores of the past; see :func:`split_attention`.
        scaling: Factor of scores; None for ``D ** -0.5``.
        **options: What the model says besides; all of it is ignored.

    Returns:
        Shape (B, Q, heads, D); and None, for the weights.

    Raises:
        ValueError: If the model adds something to its attention.
    """
    if extra := [name for name in _UNSUPPORTED if options.get(name) is not None]:
        raise ValueError(
            f"{type(module).__name__} adds {', '.join(extra)} to its attention; "
            "score with OneByOneScorer"
        )
    query, key = query.to(value.dtype), key.to(value.dtype)  # float32 under autocast
    # The CPU kernel wants as many key-value heads as heads; expanding copies nothing until flatten.
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (
            shared[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2)
            for shared in (key, value)
        )
    width = value.shape[-1]
    if width < key.shape[-1]:  # latent attention; the kernels want one width
        value = nn.functional.pad(value, (0, key.shape[-1] - width))
    compute = _in_parts if query.device.type == "cpu" else _at_once
    found = compute(query, key, value, attention_mask, scaling)[..., :width]
    return found.transpose(1, 2).contiguous(), None


def _in_parts(
    query: Tensor, key: Tensor, value: Tensor, past_mask: Tensor, scaling: float | None
) -> Tensor:
    """Two calls of torch's CPU kernel, which gives log-sum-exps beside its output."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    past = past_mask.shape[-1]
    among, among_norm = kernel(
        query, key[:, :, past:], value[:, :, past:], is_causal=True, scale=scaling
    )
    if not past:
        alone: Tensor = among
        return alone
    # Where no row is padded, nothing is hidden, and the kernel needs no mask.
    padded = past_mask.expand(-1, -1, query.shape[2], -1) if len(past_mask) > 1 else None
    before, before_norm = kernel(
        query, key[:, :, :past], value[:, :, :past], attn_mask=padded, scale=scaling
    )
    # Softmax over both parts weighs each by its sum of exponentials, exp(norm): of the past that is
    # exp(b) / (exp(a) + exp(b)) = sigmoid(b - a), which cannot overflow.
    share = torch.sigmoid(before_norm - among_norm)[..., None]  # of the past
    joined: Tensor = torch.lerp(among.float(), before.float(), share).to(query.dtype)
    return joined


def _at_once(
    query: Tensor, key: Tensor, value: Tensor, past_mask: Tensor, scaling: float | None
) -> Tensor:
    """One call with the whole mask, for devices whose kernels keep their log-sum-exps."""
    new = query.shape[2]
    # The dtype's lowest number and not -inf: a row that is masked whole would become NaN.
    lowest = torch.finfo(past_mask.dtype).min
    causal = past_mask.new_full((new, new), lowest).triu(1)  # (Q, Q)
    rows = len(past_mask)
    mask = torch.cat((past_mask.expand(rows, 1, new, -1), causal.expand(rows, 1, new, new)), dim=-1)
    return nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling
    )


AttentionInterface.register(_NAME, attend)
