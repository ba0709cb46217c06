"""The optimizer of a run: AdamW, and forms of it that take less memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from igsearch_env.extras import import_extra
from trainers.config import OptimizerName
from trainers.local.health import TrainingStoppedError

STOPPED = (
    "the weights were left as they are; a lower learning rate, a smaller clip_high, or precision "
    "float32 may help"
)


class NotFiniteError(TrainingStoppedError):
    """A loss or a gradient is not a finite number; no weight has been changed yet."""


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Scale the gradients of a model down to a norm.

    Returns:
        The norm as it was.

    Raises:
        NotFiniteError: If it is not finite: a step would spoil every weight for good.
    """
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), max_norm))
    if not math.isfinite(norm):
        raise NotFiniteError(f"the norm of the gradient is {norm}; {STOPPED}")
    return norm


def make_optimizer(
    model: nn.Module, name: OptimizerName, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimizer of the weights of a model that are trained.

    A bfloat16 weight has 8 significant bits: an update of less than 1/512 of it would be rounded
    away. AdamW on such weights therefore carries what rounding loses from one update to the next
    (Kahan's summation, by torch-optimi). Its moments are bfloat16 too, and the second one decays by
    0.99 instead of 0.999: smaller changes would be lost in it.

    Args:
        model: The model; what needs no gradient is left alone.
        name: ``"adamw"``, ``"adamw8bit"`` (moments in 8 bits, by bitsandbytes), or
            ``"paged-adamw8bit"``, whose moments may move to the main memory where a GPU has no
            room for them. These two are for float32 weights or adapters.
        learning_rate: The learning rate.
        weight_decay: Decoupled weight decay.

    Raises:
        ImportError: If a library is missing; the message says how to install it.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rounded = any(parameter.dtype == torch.bfloat16 for parameter in parameters)
    options: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    if name == "adamw":
        if not rounded:
            fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
            return torch.optim.AdamW(parameters, fused=fused, **options)
        kahan: torch.optim.Optimizer = import_extra("optimi", "optimizers").AdamW(
            parameters, betas=(0.9, 0.99), eps=1e-8, kahan_sum=True, **options
        )
        return kahan
    kinds = {"adamw8bit": "AdamW8bit", "paged-adamw8bit": "PagedAdamW8bit"}
    kind = getattr(import_extra("bitsandbytes.optim", "optimizers"), kinds[name])
    small: torch.optim.Optimizer = kind(parameters, **options)
    return small
