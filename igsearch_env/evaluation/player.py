"""Who plays an evaluation: a scripted agent, a checkpoint or an endpoint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from agents.checkpoint_settings import CheckpointSettings, TrainedIn
from agents.loading import checkpoint_folder, load_policy
from agents.tokenization import SegmentTokenizer
from igsearch_env.agent import Agent
from igsearch_env.baselines import SCRIPTED, make_scripted
from igsearch_env.endpoint.agent import OpenAIAgent
from igsearch_env.endpoint.client import Endpoint
from igsearch_env.episode import Document
from igsearch_env.evaluation.play import Chunk
from igsearch_env.evaluation.settings import EvaluationSettings
from igsearch_env.gain.scorer import AnswerScorer, UnigramScorer
from igsearch_env.protocol.tags import PROTOCOLS, TagProtocol, get_protocol

ENDPOINT_TOKENS = 512
MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True)
class Player:
    """What an evaluation needs to know of its agent.

    Args:
        agent_of: Makes the agent of a chunk.
        protocol: The tag grammar that it writes.
        model: What it is, for the manifest, as JSON-ready data.
        chunk_size: Questions that are played side by side, and repeated if they are cut short: all
            of a batch, whose members change each other's last bits; one at an endpoint.
        trained_in: The environment that it was trained in.
        scorer: Scores answers for information gain.
        workers: Chunks that are played at once.
        stop: Ends what is under way.
    """

    agent_of: Callable[[Chunk], Agent]
    protocol: TagProtocol
    model: dict[str, Any]
    chunk_size: int
    trained_in: TrainedIn = field(default_factory=TrainedIn)
    scorer: AnswerScorer = field(default_factory=UnigramScorer)
    workers: int = 1
    stop: Callable[[], None] = lambda: None


def scripted_player(config: EvaluationSettings, documents: Iterable[Document]) -> Player:
    """A scripted agent; its choices depend on seed, question and sample, not on the chunk."""
    protocol = _protocol(config) or PROTOCOLS["refine"]
    known = tuple(documents) if config.agent == "oracle" else ()

    @lru_cache(maxsize=1)
    def agent(sample: int) -> Agent:
        return make_scripted(config.agent, protocol, known, _seed(config, sample))

    return Player(
        lambda chunk: agent(chunk.sample),
        protocol,
        {"scripted": config.agent},
        config.batch_size,
    )


def model_player(config: EvaluationSettings) -> Player:
    """The policy of a checkpoint, or of an endpoint.

    Raises:
        ValueError: If there is none, or it cannot be loaded.
        EndpointError: If the endpoint does not answer.
    """
    return _endpoint(config) if config.at_endpoint else _checkpoint(config)


def _checkpoint(config: EvaluationSettings) -> Player:
    folder = checkpoint_folder(config.agent)
    if folder is None:
        raise ValueError(
            f"unknown agent {config.agent!r}: expected {', '.join(SCRIPTED)}, an address, or the "
            "folder of a checkpoint, and no folder was found at that path"
        )
    try:
        torch.empty(1, device=config.device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot use the device {config.device!r} ({reason})") from error
    policy = load_policy(
        str(folder),
        config.protocol,
        device=config.device,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        temperature=config.temperature,
    )
    return Player(
        lambda chunk: policy.fresh(chunk.seed, greedy=config.greedy),
        policy.protocol,
        {"checkpoint_sha256": _files_sha256(folder), "max_new_tokens": policy.max_new_tokens},
        config.batch_size,
        policy.trained_in,
        policy.scorer(),
    )


def _endpoint(config: EvaluationSettings) -> Player:
    endpoint = Endpoint(
        config.agent,
        api_key=os.environ.get(config.api_key_variable),
        retries=config.retries,
        timeout=config.timeout,
    )
    name = config.model
    if name is None:
        served = endpoint.models()
        if len(served) != 1:
            raise ValueError(
                f"{config.agent} serves {', '.join(served) or 'no model'}; name one with --model"
            )
        name = served[0]
    folder = checkpoint_folder(name)  # a server names a local checkpoint by its folder
    if folder is not None and not (folder / "config.json").is_file():
        folder = None  # a folder that happens to have the name
    settings, tokenizer = CheckpointSettings(max_new_tokens=ENDPOINT_TOKENS), None
    if folder is not None:
        settings = CheckpointSettings.load(folder)
        loaded: Any = AutoTokenizer.from_pretrained(folder)  # checked by the wrapper
        tokenizer = SegmentTokenizer(loaded)
    agent = partial(
        OpenAIAgent,
        endpoint,
        name,
        _protocol(config) or settings.protocol,
        api=config.api,
        temperature=0.0 if config.greedy else config.temperature,
        max_new_tokens=config.max_new_tokens or settings.max_new_tokens,
        tokenizer=tokenizer,
    )
    shown = agent()
    model = {"name": name, "api": shown.api, "max_new_tokens": shown.max_new_tokens}
    model |= {"token_ids": tokenizer is not None and shown.api == "completions"}
    return Player(
        lambda chunk: agent(seed=_seed(config, chunk.sample)),
        shown.protocol,
        model,
        1,
        settings.trained_in,
        workers=config.concurrency,
        stop=endpoint.close,
    )


def _seed(config: EvaluationSettings, sample: int) -> int:
    return config.seed + 1_000_003 * sample


def _protocol(config: EvaluationSettings) -> TagProtocol | None:
    return None if config.protocol is None else get_protocol(config.protocol)


def _files_sha256(folder: Path) -> str:
    """A hash of everything that a checkpoint is made of: settings, weights and tokenizer."""
    digest = hashlib.sha256()
    for file in sorted(file for pattern in MODEL_FILES for file in folder.glob(pattern)):
        with file.open("rb") as opened:
            hashed = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.name} {hashed}\n".encode())
    return digest.hexdigest()
