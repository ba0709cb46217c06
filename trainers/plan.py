"""How much memory a run will take, by component, before anything is loaded.

The model is built without weights (``torch``'s fake tensors know shapes and types, and hold no
numbers) and run forward once: what autograd keeps of that pass is counted, not estimated. The rest
follows from numbers of weights and tokens. What the allocator cannot reuse was measured on a CPU
(:data:`OVERHEAD`). On a GPU it is not in it. The code of the libraries, .4 GiB and more, and the
search index come on top.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from agents.inference import decoder, decoder_config
from agents.loading import checkpoint_folder, parse_device, resolve_precision
from agents.lora import add_adapters
from igsearch_env.checkpoint_settings import CheckpointSettings
from igsearch_env.hub import without_waiting
from igsearch_env.protocol.names import get_protocol, variant_of
from trainers.config import LoraSettings, PolicySettings, TrainSettings, make_credit_from
from trainers.setup import with_precision

GIB = 1 << 30
DOCUMENT_TOKENS = 200
"""Tokens of a document, where nothing is said of them."""
LONGEST_DOCUMENT = 1_000_000
CHARACTERS_PER_TOKEN = 4  # of English text
OVERHEAD = 5 * GIB // 8
"""Bytes that an update on a CPU takes beside all that is counted: workspaces, and what the
allocator cannot reuse. It was chosen so that the plan is near the peaks that
``scripts.benchmarks.precision`` measured on SmolLM2-135M (docs/results/real_model.md)."""


@dataclass(frozen=True)
class Plan:
    """The memory of a run.

    Args:
        phases: Bytes by component, of each part of a step: ``sampling`` (and scoring), ``update``
            and ``optimizer``.
        longest: Tokens of the longest transcript that was reckoned with.
    """

    phases: dict[str, dict[str, int]]
    longest: int

    @property
    def peak(self) -> int:
        """Bytes that are needed at the worst moment."""
        return max(sum(parts.values()) for parts in self.phases.values())


def plan(
    config: TrainSettings,
    document_tokens: int = DOCUMENT_TOKENS,
    longest: int | None = None,
    written: int | None = None,
) -> Plan:
    """Count the memory of a run.

    Args:
        config: Its settings.
        document_tokens: Tokens of a document.
        longest: Tokens of the longest transcript, where they are known; None to reckon them from
            the settings.
        written: The most tokens that the policy writes in one transcript, where that is known.

    Raises:
        ValueError: If the model's configuration cannot be read, or ``document_tokens`` is out of
            range.
    """
    if not 1 <= document_tokens <= LONGEST_DOCUMENT:
        raise ValueError(
            f"a document has from 1 to {LONGEST_DOCUMENT:,} tokens, got {document_tokens:,}"
        )
    config = with_precision(config)
    o, e = config.optimization, config.environment
    autocast = config.policy.precision == "bfloat16-autocast"
    longest = longest or longest_transcript(config, document_tokens)
    episodes = o.questions_per_step * o.group_size
    sequences = math.ceil(episodes / o.minibatches)  # of an update
    managed = e.keep_documents is not None or e.drop_thoughts  # an episode has several of them then
    most = o.micro_batch_size if managed else min(o.micro_batch_size, sequences)
    tokens = most * longest
    if o.micro_batch_tokens:
        # Many short sequences fill a micro-batch as far as a few long ones do.
        tokens = max(longest, min(tokens, o.micro_batch_tokens))
    rows = math.ceil(tokens / longest)
    width = math.ceil(tokens / rows)
    teacher = make_credit_from(config.credit).has_teacher()
    single_pass = not (managed or teacher) and tokens == sequences * longest
    with FakeTensorMode():
        model = _bare_model(config.policy)
        shape = decoder_config(model)
        saved = _saved_bytes(model, rows, width, autocast)
        weights = sum(one.nbytes for one in model.parameters())
        trained = [one for one in model.parameters() if one.requires_grad]
        gradients, largest = sum(one.nbytes for one in trained), max(one.nbytes for one in trained)
        states = sum(one.numel() for one in trained) * _state_bytes(o.optimizer, trained[0].dtype)
        width_of_weight = model.dtype.itemsize
    layers, hidden = int(shape.num_hidden_layers), int(shape.hidden_size)
    vocabulary, turns = int(shape.vocab_size), e.max_searches + 1
    written = min(tokens, most * (written or turns * longest_turn(config.policy)))
    at_once = max(vocabulary, min(o.logits_at_once, written * vocabulary))
    # Logits, log-probabilities, and two temporaries of the entropy; of both sides with a teacher.
    logits = 4 * (8 if teacher else 4) * at_once
    copies = weights // 2 if autocast else 0  # the weights in bfloat16, once per pass
    activations = kept = saved - copies
    if o.gradient_checkpointing:
        # The input of each layer; and, once the logits are gone, one layer at a time with the
        # gradients of what it keeps.
        kept = width_of_weight * rows * width * hidden * layers
        activations = kept + max(0, 2 * activations // layers - logits)
    # A single pass frees what it kept as it makes the gradients, the output embedding's first. With
    # several, the gradients of those before are there.
    added = max(largest, gradients - kept) if single_pass else gradients
    head_dim = getattr(shape, "head_dim", None) or hidden // shape.num_attention_heads
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    per_token = 2 * layers * int(heads) * int(head_dim) * (2 if autocast else width_of_weight)
    beside = min(config.policy.batch_size, episodes)
    # A batch whose rows end one by one leaves buffers of all its rows, of half of them, and so on.
    running = (2 * beside - 1) * longest
    left = episodes * running // beside
    held = min(left, config.policy.memory_tokens or left)
    overhead = OVERHEAD if config.policy.device == "cpu" else 0
    lasting = {
        "weights": weights,
        "gradients": gradients,
        "optimizer states": int(states),
        "reference": weights if o.kl > 0 and not config.policy.lora.rank else 0,
    }
    return Plan(
        {
            "sampling": {
                **lasting,
                "rounded weights": copies,
                # What the last turn left, what this one leaves, and the running batch.
                "keys and values": (held + min(left, held + running)) * per_token,
                "logits": 3 * 4 * beside * vocabulary,
                "overhead": overhead,
            },
            "update": {
                **lasting,
                "gradients": added,
                "rounded weights": copies,
                "activations": activations,
                "logits": logits,
                "temporaries": largest,
                "overhead": overhead,
            },
            "optimizer": {
                **lasting,
                "temporaries": largest if config.policy.device == "cpu" else gradients,
            },
        },
        longest,
    )


def longest_transcript(config: TrainSettings, document_tokens: int) -> int:
    """Tokens of a transcript with all its searches, each turn as long as it may be."""
    e = config.environment
    protocol = get_protocol(variant_of(e.protocol or "refine")[1])
    question = 30
    prompt = len(protocol.prompt) // CHARACTERS_PER_TOKEN + question
    turn = longest_turn(config.policy)
    shown = min(e.document_tokens or document_tokens, e.snippet_tokens or document_tokens)
    observation = e.top_k * min(document_tokens, shown)
    if e.observation_tokens is not None:
        observation = min(observation, e.observation_tokens)
    attempt = prompt + e.max_searches * (turn + observation) + turn
    longest = e.max_attempts * attempt
    # Only the tags of the last observation and the last turn may come on top of the budget.
    return longest if e.episode_tokens is None else min(longest, e.episode_tokens + 2 * turn)


def longest_turn(policy: PolicySettings) -> int:
    """Tokens of the longest turn: as the settings say, or else the checkpoint."""
    folder = checkpoint_folder(policy.path)
    saved = CheckpointSettings() if folder is None else CheckpointSettings.load(folder)
    return policy.max_new_tokens or saved.max_new_tokens


def memory_of(device: str) -> int:
    """Bytes of a device's memory; for a CPU, of the machine.

    Raises:
        ValueError: If the device cannot be asked, or is none.
    """
    kind = parse_device(device)
    if kind.type != "cpu":
        if kind.type != "cuda" or not torch.cuda.is_available():
            raise ValueError(
                f"the memory of {device!r} is not known here; say how many GiB it has: --memory 80"
            )
        return int(torch.cuda.get_device_properties(kind).total_memory)
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def cheapest_changes(
    config: TrainSettings, memory: int, document_tokens: int = DOCUMENT_TOKENS
) -> list[tuple[str, int]]:
    """Changes that make a run smaller, up to three, cheapest first, each on top of those before.

    Returns:
        Each as words for ``--set``, with the peak that it leads to, in bytes. They end with the
        first that makes the run fit; changes that help nothing are left out.
    """
    config = with_precision(config)
    found: list[tuple[str, int]] = []
    peak = plan(config, document_tokens).peak
    for words, changed in _changes(config, document_tokens):
        smaller = plan(changed(config), document_tokens).peak
        if smaller >= peak:
            continue
        config, peak = changed(config), smaller
        found.append((words, peak))
        if peak <= memory or len(found) == 3:
            break
    return found


def _changes(config: TrainSettings, document_tokens: int) -> Iterator[tuple[str, Any]]:
    """Changes that cost little first: nothing, then time, then what is learned."""
    longest, half = longest_transcript(config, document_tokens), config.policy.batch_size // 2

    def optimization(**fields: Any) -> Any:
        return lambda c: replace(c, optimization=replace(c.optimization, **fields))

    def policy(**fields: Any) -> Any:
        return lambda c: replace(c, policy=replace(c.policy, **fields))

    # Where the device does not multiply bfloat16 itself, it takes several times as long.
    faster = resolve_precision("auto", config.policy.device) == "bfloat16-autocast"
    if config.policy.precision == "float32" and faster and not config.policy.lora.rank:
        yield "policy.precision=bfloat16-autocast", policy(precision="bfloat16-autocast")
    yield (
        f"optimization.micro_batch_tokens={longest}",
        optimization(micro_batch_tokens=longest),
    )
    room = config.policy.batch_size * longest
    yield f"policy.memory_tokens={room}", policy(memory_tokens=room)
    yield f"policy.batch_size={max(1, half)}", policy(batch_size=max(1, half))
    yield "optimization.gradient_checkpointing=true", optimization(gradient_checkpointing=True)
    if config.optimization.optimizer == "adamw":
        yield "policy.precision=bfloat16", policy(precision="bfloat16")
        lora = replace(config.policy.lora, rank=config.policy.lora.rank or 16)
        yield "policy.lora.rank=16", policy(lora=lora)
    yield "optimization.kl=0.0", optimization(kl=0.0)


def _state_bytes(optimizer: str, dtype: torch.dtype) -> float:
    """Bytes of an optimizer's state per number that is trained."""
    if optimizer != "adamw":
        return 2 + 2 * 4 / 256  # two moments, with a scale for each block of 256
    # Two moments; for bfloat16, also what rounding lost.
    return 2 * 4 if dtype == torch.float32 else 3 * 2


def _bare_model(policy: PolicySettings) -> PreTrainedModel:
    """The model of a policy, made in a fake mode: its shapes without its numbers."""
    path, dtype = policy.path, torch.bfloat16 if policy.precision == "bfloat16" else torch.float32
    folder = checkpoint_folder(path)
    options: dict[str, Any] = {"pretrained_model_name_or_path": folder or path}
    if path.endswith(".gguf"):
        file = Path(path)
        options = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    try:
        with without_waiting(str(options["pretrained_model_name_or_path"]), "train"):
            config = AutoConfig.from_pretrained(**options)
    except Exception as error:  # transformers and what it is built on raise whatever they like
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot read the configuration of policy.path = {path!r} ({reason}); give a "
            "checkpoint folder, a .gguf file or the name of a model on the Hugging Face hub"
        ) from error
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    bare: PreTrainedModel = model.eval()
    if policy.lora.rank:
        _add_bare_adapters(bare, policy.lora)
    return bare


def _add_bare_adapters(model: PreTrainedModel, lora: LoraSettings) -> None:
    """Put adapters into a bare model. peft moves new ones, which fake tensors cannot, off meta."""
    with torch.device("meta"):
        add_adapters(model, lora.rank, lora.alpha, lora.targets)
    for module in model.modules():
        for name, one in module.named_parameters(recurse=False):
            if one.device.type == "meta":
                setattr(module, name, nn.Parameter(torch.empty(one.shape, dtype=one.dtype)))


def _saved_bytes(model: PreTrainedModel, rows: int, width: int, autocast: bool) -> int:
    """Bytes that autograd keeps of a forward pass, weights aside, their rounded copies included."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # by storage; held, so that no number is used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    ids = torch.zeros((rows, width), dtype=torch.long)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        decoder(model)(input_ids=ids, use_cache=False)
    return sum(
        tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights
    )
