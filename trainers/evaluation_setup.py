"""From the settings of an evaluation to its objects: questions, retriever, environment, agent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from agents.checkpoint_settings import protocol_record
from agents.scripted import SCRIPTED, make_scripted
from agents.transformers_policy import TransformersPolicy
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Question
from igsearch_env.protocol import PROTOCOLS, TagProtocol, get_protocol
from igsearch_env.questions import load_questions
from igsearch_env.record import to_record
from igsearch_env.retrieval.base import IndexedRetriever
from igsearch_env.scoring import AnswerScorer, UnigramScorer
from igsearch_env.settings import make_engine
from trainers.evaluation import AgentOf, fresh_policy
from trainers.index_cache import open_retriever
from trainers.setup import checkpoint_folder, load_policy

COUNTERFACTUALS = 3


@dataclass(frozen=True)
class EvaluationConfig:
    """Everything that an evaluation is made of.

    Args:
        questions: Name or file of the question set.
        agent: Name of a scripted agent, or the folder of a checkpoint.
        corpus: Name or file of the corpus; it may be left out where ``index`` has one.
        index: Folder of a saved index; it is built from the corpus if there is none yet.
        limit: Ask only so many questions, the first ones.
        protocol: Name of the tag grammar; None for the checkpoint's own, or else ``"refine"``.
        max_new_tokens: Longest turn of a checkpoint, in tokens; None for what it says itself.
        top_k: Documents per search.
        max_searches: Searches per episode.
        greedy: Take the most likely tokens instead of sampling.
        information_gain: Settle the gain of every search, with the checkpoint's own scorer or, for
            a scripted agent, with a unigram model.
        seed: Seed of sampling, of random queries and of counterfactuals.
        batch_size: Questions that are played side by side.
        device: Where a checkpoint runs.
        threads: Torch threads; 0 for as many as there are free cores.

    Raises:
        ValueError: If a number is out of range, or questions, agent or corpus are missing.
    """

    questions: str = ""
    agent: str = ""
    corpus: str | None = None
    index: str | None = None
    limit: int | None = None
    protocol: str | None = None
    max_new_tokens: int | None = None
    top_k: int = 3
    max_searches: int = 5
    greedy: bool = False
    information_gain: bool = False
    seed: int = 0
    batch_size: int = 128
    device: str = "cpu"
    threads: int = 0

    def __post_init__(self) -> None:
        for name in ("questions", "agent"):
            if not getattr(self, name):
                raise ValueError(f"an evaluation needs {name}; give --{name}")
        if not self.corpus and not self.index:
            raise ValueError("there is nothing to search; give --corpus, or --index of a saved one")
        for name in ("limit", "max_new_tokens", "top_k", "max_searches", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.threads < 0:
            raise ValueError(f"threads must be at least 0, got {self.threads}")


@dataclass(frozen=True)
class Evaluation:
    """The objects of an evaluation.

    Args:
        questions: What is asked.
        engine: Rules, retriever and, for information gain, the scorer.
        agent_of: Makes the agent of a chunk from its seed.
        inputs: What the results depend on besides the settings, as JSON-ready data.
    """

    questions: Sequence[Question]
    engine: SearchQAEngine
    agent_of: AgentOf
    inputs: dict[str, Any]


def make_evaluation(
    config: EvaluationConfig,
    say: Callable[[str], None] = lambda line: None,
    show_progress: bool = False,
) -> Evaluation:
    """Load everything that an evaluation needs, and check it.

    Args:
        config: The settings.
        say: Told, in a line, about each part that takes long.
        show_progress: Whether to show bars while an index is built.

    Raises:
        ValueError: If an input is missing, damaged or does not fit the others.
    """
    protocol = PROTOCOLS["refine"] if config.protocol is None else get_protocol(config.protocol)
    questions = load_questions(config.questions, config.limit)
    inputs: dict[str, Any] = {"questions_sha256": _questions_sha256(questions)}
    policy: TransformersPolicy | None = None
    if config.agent not in SCRIPTED:
        policy, inputs["checkpoint_sha256"] = _load_checkpoint(config)
        protocol = policy.protocol
        inputs["max_new_tokens"] = policy.max_new_tokens
    retriever = open_retriever(config.corpus, config.index, say, show_progress)
    inputs |= {
        "protocol": protocol_record(protocol),
        "corpus_sha256": retriever.corpus_sha256,
        "retriever": retriever.parameters,
    }
    engine = make_engine(
        questions,
        retriever,
        _scorer(policy) if config.information_gain else None,
        protocol=protocol,
        max_searches=config.max_searches,
        top_k=config.top_k,
        num_counterfactuals=COUNTERFACTUALS if config.information_gain else 0,
    )
    return Evaluation(questions, engine, _agent_of(config, policy, protocol, retriever), inputs)


def _load_checkpoint(config: EvaluationConfig) -> tuple[TransformersPolicy, str]:
    """The policy, and the hash of its files."""
    folder = checkpoint_folder(config.agent)
    if folder is None:
        raise ValueError(
            f"unknown agent {config.agent!r}: expected {', '.join(SCRIPTED)}, or the folder of a "
            "checkpoint, and no folder was found at that path"
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
    )
    digest = hashlib.sha256()
    for file in sorted((*folder.glob("*.json"), *folder.glob("*.safetensors"))):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return policy, digest.hexdigest()


def _questions_sha256(questions: Sequence[Question]) -> str:
    lines = (json.dumps(to_record(question)) + "\n" for question in questions)
    return hashlib.sha256("".join(lines).encode("ascii")).hexdigest()


def _scorer(policy: TransformersPolicy | None) -> AnswerScorer:
    return UnigramScorer() if policy is None else policy.scorer()


def _agent_of(
    config: EvaluationConfig,
    policy: TransformersPolicy | None,
    protocol: TagProtocol,
    retriever: IndexedRetriever,
) -> AgentOf:
    if policy is not None:
        return partial(fresh_policy, policy, greedy=config.greedy)
    documents = tuple(retriever.documents) if config.agent == "oracle" else ()
    scripted = make_scripted(config.agent, protocol, documents, config.seed)
    return lambda seed: scripted  # its choices do not depend on the chunk
