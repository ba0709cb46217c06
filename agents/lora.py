"""Low-rank adapters (LoRA, arXiv 2106.09685) on a causal language model, by peft.

Adapters are put into the model itself, which keeps its class: sampler, scorer and update run it as
any other. The weights under them are frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from igsearch_env.extras import import_extra

ADAPTER_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of the names in that file


def add_adapters(
    model: PreTrainedModel,
    rank: int,
    alpha: float,
    targets: Sequence[str] = (),
    *,
    base: str = "",
    seed: int = 0,
) -> None:
    """Put new adapters into a model, in place: ``W x`` becomes ``W x + alpha / rank * B A x``.

    ``B`` starts at 0, so that the model computes what it did before. Adapters are float32, whatever
    the type of the weights, and nothing else of the model is trained after this.

    Args:
        model: The model.
        rank: Rows of ``A`` and columns of ``B``.
        alpha: Scale.
        targets: Last parts of the names of the linear layers that get one, such as ``"q_proj"``;
            empty for all but the output embedding.
        base: Folder or name of the model, which saved adapters refer to.
        seed: Seeds ``A``, which is drawn at random.

    Raises:
        ImportError: If peft is not installed.
        ValueError: If the model has no such layers.
    """
    peft = import_extra("peft", "lora")
    chosen = list(targets) if targets else "all-linear"
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=chosen, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(config)
    config.base_model_name_or_path = base
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether :func:`add_adapters` was called on a model."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """Run a model without its adapters: as it was before training."""
    layers = list(_layers(model).values())
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class with the adapters added to its weights, to be saved.

    What has no adapter is shared with the model, which stays as it is.
    """
    layers = _layers(model)
    state: dict[str, Tensor] = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }
    with torch.no_grad():
        for name, layer in layers.items():
            weight = layer.get_base_layer().weight
            # Added in float32; rounded once if the weights are bfloat16.
            state[f"{name}.weight"] = (weight + layer.get_delta_weight("default")).to(weight.dtype)
    kind: Any = type(model)
    with torch.device("meta"):
        plain: PreTrainedModel = kind(copy.deepcopy(model.config))
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def read_adapters(folder: Path) -> dict[str, Tensor]:
    """The adapters in a folder that ``save_pretrained`` wrote, by name."""
    read = load_file(folder / ADAPTER_FILE)
    return {name.removeprefix(_PREFIX): tensor for name, tensor in read.items()}


def set_adapters(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Give the adapters of a model the numbers that :func:`read_adapters` returned.

    Raises:
        ValueError: If they are not those of this model.
    """
    known = model.get_adapter_state_dict()
    if known.keys() != weights.keys():
        odd = sorted(known.keys() ^ weights.keys())
        raise ValueError(f"it has other adapters than the run ({', '.join(odd[:3])}, ...)")
    with torch.no_grad():
        for name, tensor in known.items():  # the parameters themselves
            tensor.copy_(weights[name])


def _layers(model: PreTrainedModel) -> dict[str, Any]:
    """The layers that have an adapter, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
