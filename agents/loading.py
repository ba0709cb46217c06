"""Loading policies: checkpoint folders, here or in the checkout, GGUF files, models of the hub.

``igsearch evaluate`` imports this module where it finds it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.hub import cached_file

from agents.chat import protocol_for
from agents.tokenization import SegmentTokenizer
from agents.transformers_policy import TransformersPolicy
from igsearch_env.checkpoint_settings import FILE, CheckpointSettings
from igsearch_env.evaluation.settings import Precision
from igsearch_env.extras import import_extra
from igsearch_env.hub import without_waiting
from igsearch_env.protocol.names import ProtocolError
from igsearch_env.protocol.tags import TagProtocol

CHECKOUT = Path(__file__).resolve().parent.parent


POLICIES: dict[str, Callable[..., TransformersPolicy]] = {}
"""Policies of a user's own, by the names that settings give them in place of a path."""


def register_policy(
    name: str,
) -> Callable[[Callable[..., TransformersPolicy]], Callable[..., TransformersPolicy]]:
    """Decorator that makes a policy known by ``name``, as the ``path`` of the settings.

    The function is called as ``function(protocol, device=..., **options)``, with the options that
    :meth:`TransformersPolicy.from_pretrained` takes, and returns the policy.

    Raises:
        ValueError: If the name is taken.
    """

    def register(made: Callable[..., TransformersPolicy]) -> Callable[..., TransformersPolicy]:
        if name in POLICIES:
            raise ValueError(f"a policy named {name!r} exists already; choose another name")
        POLICIES[name] = made
        return made

    return register


def load_policy(
    path: str,
    protocol: TagProtocol | str | None = None,
    *,
    device: str = "cpu",
    precision: Precision = "float32",
    **options: Any,
) -> TransformersPolicy:
    """Load a policy, or make one that was registered by that name.

    A relative path is looked up in the checkout too.

    Args:
        path: A checkpoint folder, a GGUF file (llama.cpp's), or the name of a model on the Hugging
            Face hub.
        protocol: The grammar, or its name (:mod:`igsearch_env.protocol.names`); None for the
            checkpoint's own, or else ``"refine"``.
        device: Where it is to run.
        precision: What it multiplies in: ``"float32"`` for the type of its weights,
            ``"bfloat16-autocast"`` for bfloat16 with these weights, ``"bfloat16"`` to round the
            weights, too, or ``"auto"``; see :func:`resolve_precision`.
        **options: See :meth:`TransformersPolicy.from_pretrained`.

    Raises:
        ValueError: If there is no such checkpoint, it cannot be read, or this machine has no such
            device.
        ProtocolError: If it cannot be asked in this protocol.
        ImportError: If it is a GGUF file and the ``gguf`` extra is not installed.
    """
    check_device(device)
    if path in POLICIES:
        return POLICIES[path](protocol, device=device, **options)
    precision = resolve_precision(precision, device)
    if precision == "bfloat16":
        options["dtype"] = torch.bfloat16
    options["autocast"] = torch.bfloat16 if precision == "bfloat16-autocast" else None
    if path.endswith(".gguf"):
        return _load_gguf(path, protocol, device, **options)
    folder = checkpoint_folder(path)
    offline = False
    try:
        with without_waiting(str(folder or path), "train") as offline:
            return TransformersPolicy.from_pretrained(
                folder or path, protocol, device=device, **options
            )
    except ProtocolError:
        raise
    except Exception as error:  # transformers and what it is built on raise whatever they like
        reason = " ".join(str(error).split())
        if offline:
            reason = (
                "the hub cannot be reached, or HF_HUB_OFFLINE is set, and this computer has no "
                f"whole copy of it: {reason[:100]}"
            )
        raise ValueError(
            f"cannot load a policy from {path!r}: expected a checkpoint folder or the name "
            f"of a model on the Hugging Face hub ({reason})"
        ) from error


def _load_gguf(
    path: str, protocol: TagProtocol | str | None, device: str, **options: Any
) -> TransformersPolicy:
    """A policy from a GGUF file, which says nothing of its grammar: ``refine`` if none is given."""
    file = next((f for f in (Path(path), CHECKOUT / path) if f.is_file()), None)
    if file is None:
        raise ValueError(f"there is no file {path!r}; give the path of a .gguf file")
    dtype = options.pop("dtype", torch.float32)
    model, tokenizer = read_gguf(file)
    model = model.to(device, torch.float32 if dtype == "auto" else dtype)
    if options.get("max_new_tokens") is None:
        options.pop("max_new_tokens", None)
    return TransformersPolicy(model, tokenizer, protocol, **options)


def read_gguf(file: Path) -> tuple[Any, Any]:
    """The model of a GGUF file, dequantised to float32, and its tokenizer.

    Raises:
        ValueError: If transformers cannot read it.
        ImportError: If the ``gguf`` extra is not installed.
    """
    import_extra("gguf", "gguf")
    options: Any = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**options)
        read = AutoModelForCausalLM.from_pretrained(**options, dtype=torch.float32)
    except Exception as error:  # whatever transformers and gguf raise
        reason = " ".join(str(error).split())
        raise ValueError(f"transformers cannot read the GGUF file {file} ({reason})") from error
    # What was read counts as quantised, which transformers does not save: the same weights go into
    # a model of their own.
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    return model.eval(), tokenizer


def rendered_protocol(name: str, tokenizer: SegmentTokenizer) -> TagProtocol:
    """The grammar that a name means for a model (:func:`agents.chat.protocol_for`)."""
    return protocol_for(name, tokenizer.tokenizer)


def taught_protocol(path: str) -> TagProtocol | None:
    """The grammar that a checkpoint says it was taught; None if it says nothing."""
    folder = checkpoint_folder(path)
    if folder is None or not (folder / FILE).is_file():
        return None
    return CheckpointSettings.load(folder).protocol


def checkpoint_folder(path: str) -> Path | None:
    """The folder that a policy's path means, here or in the checkout; None if there is none."""
    return next((folder for folder in (Path(path), CHECKOUT / path) if folder.is_dir()), None)


def load_tokenizer(folder: Path | str) -> SegmentTokenizer:
    """The tokenizer of a checkpoint, or of a model of the hub.

    Raises:
        ValueError: If there is none, or it is not a fast one.
    """
    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder)  # runs no code of the checkpoint
    except Exception as error:  # transformers and what it is built on raise whatever they like
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot load a tokenizer from {str(folder)!r}: expected a checkpoint folder or the "
            f"name of a model on the Hugging Face hub ({reason})"
        ) from error
    return SegmentTokenizer(loaded)


def hub_folder(name: str) -> Path:
    """Where the files of a model of the hub lie, once it has been loaded."""
    found: Any = cached_file(name, "config.json", local_files_only=True)
    return Path(found).parent


def resolve_precision(precision: Precision, device: str) -> Precision:
    """What ``"auto"`` means on a device; other precisions stay as they are.

    Processors that do not multiply bfloat16 themselves can be asked to, and take several times as
    long as in float32.

    Args:
        precision: A precision.
        device: Where it is to be computed in.

    Returns:
        For ``"auto"``: ``"bfloat16-autocast"`` where the device multiplies bfloat16 itself (CPUs
        with AMX, AVX512-BF16 or the BF16 instructions of ARM, NVIDIA GPUs since Ampere), or else
        ``"float32"``. A GPU that is not here counts as one that does; other kinds of device, and
        CPUs in a torch that cannot say, as ones that do not.

    Raises:
        ValueError: If ``"auto"`` is asked of what is no device, or of a GPU that is missing beside
            others.
    """
    if precision != "auto":
        return precision
    kind = parse_device(device)
    multiplies = False
    if kind.type == "cuda" and torch.cuda.is_available():
        check_device(device)
        with torch.cuda.device(kind):
            multiplies = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind.type == "cuda":
        multiplies = True  # a run is planned for a GPU elsewhere, which will be a recent one
    elif kind.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        multiplies = any(found.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return "bfloat16-autocast" if multiplies else "float32"


def parse_device(device: str) -> torch.device:
    """A device by its name, whether or not it is here.

    Raises:
        ValueError: If torch knows no such name.
    """
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"cannot use the device {device!r} ({error})") from error


def check_device(device: str) -> None:
    """Refuse a device that this machine or this build of torch does not have.

    Raises:
        ValueError: If it cannot be used.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot use the device {device!r} ({reason})") from error
