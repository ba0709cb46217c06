"""From settings to the objects of a run: questions, retriever, environment, agent."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from agents.grpo_agent import GRPOAgent
from agents.loading import checkpoint_folder, load_policy, resolve_precision, taught_protocol
from agents.lora import add_adapters
from agents.transformers_policy import TransformersPolicy
from igsearch_env.budgets import TokenCounter
from igsearch_env.data.questions import load_questions
from igsearch_env.data.silver import with_answer_distances, with_silver
from igsearch_env.data.world import World
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Document, Question
from igsearch_env.gain.pool import EvidencePool
from igsearch_env.protocol.names import get_protocol, variant_of
from igsearch_env.protocol.tags import TagProtocol
from igsearch_env.retrieval.base import IndexedRetriever, Retriever
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.open import open_retriever
from igsearch_env.settings import make_engine
from trainers.config import (
    PolicySettings,
    TrainSettings,
    WorldSettings,
    make_credit_from,
)

log = logging.getLogger(__name__)


@lru_cache(maxsize=2)
def make_world(config: WorldSettings) -> World:
    """The world of a run."""
    return World.generate(
        config.seed,
        people=config.people,
        informative_bridges=config.informative_bridges,
        test_share=config.test_share,
    )


WORLD_QUESTIONS = {"world-train": "train_questions", "world-test": "test_questions"}
"""Names of the questions of a run's own world, and where the world has them."""


def make_questions(name: str, world: WorldSettings) -> list[Question]:
    """Questions by name or file; those of the embedded world are of the world of the run."""
    if name not in WORLD_QUESTIONS:
        return load_questions(name)
    of_world = getattr(make_world(world), WORLD_QUESTIONS[name])
    found = [q for q in of_world if q.hops in world.hops]
    if not found:
        raise ValueError(f"the world has no questions of {world.hops} hops; it has 1, 2 and 3")
    return found


def make_training_engine(config: TrainSettings, seed: int) -> SearchQAEngine:
    """The environment's engine for training; gains are left to the agent.

    It can be had before the policy, which takes longer to load: its grammar is that of the
    settings, without a model's chat template. :func:`with_protocol` gives it that of the policy.
    """
    e = config.environment
    credit = make_credit_from(config.credit)
    # A bare name of the embedded world means the world of the run; all others say it themselves.
    own_questions = e.questions in WORLD_QUESTIONS
    own_documents = e.retriever == "world" or (e.retriever == "bm25" and own_questions)
    questions = make_questions(e.questions, config.world)
    documents = make_world(config.world).documents if own_documents else None
    retriever = BM25Retriever.build(documents) if documents else open_retriever(e.searched)
    if credit.uses_silver and any(question.silver_ids is None for question in questions):
        questions = with_silver(questions, _corpus(retriever), retriever)
    if credit.uses_answer_distances and any(q.answer_distances is None for q in questions):
        questions = with_answer_distances(questions, _corpus(retriever), retriever)
    return make_engine(
        questions,
        retriever,
        None,
        settings=e,
        protocol=get_protocol(variant_of(e.protocol or "refine")[1]),
        num_counterfactuals=e.num_counterfactuals if credit.uses_information_gain else 0,
        pool=EvidencePool(seed=seed),
    )


def _corpus(retriever: Retriever) -> Iterable[Document]:
    """The documents that silver evidence is looked for in."""
    if not isinstance(retriever, IndexedRetriever):
        raise ValueError(
            f"silver evidence is looked for in the corpus, and {type(retriever).__name__} does not "
            "hold one; give an index or a corpus, or questions that come with it"
        )
    return retriever.documents


def with_precision(config: TrainSettings) -> TrainSettings:
    """The settings with what ``"auto"`` means on their device in its place."""
    policy = config.policy
    precision = resolve_precision(policy.precision, policy.device)
    return replace(config, policy=replace(policy, precision=precision))


def make_policy(
    config: PolicySettings, protocol: TagProtocol | str | None, **options: Any
) -> TransformersPolicy:
    """The policy of a run; see :func:`agents.loading.load_policy`."""
    policy = load_policy(
        config.path,
        protocol,
        device=config.device,
        dtype=torch.float32,
        precision=config.precision,
        max_new_tokens=config.max_new_tokens or None,
        batch_size=config.batch_size,
        **options,
    )
    policy.memory.max_tokens = config.memory_tokens or None
    if (lora := config.lora).rank:
        folder = checkpoint_folder(config.path)
        base = str(folder.resolve()) if folder else config.path
        seed = options.get("seed", 0)
        add_adapters(policy.model, lora.rank, lora.alpha, lora.targets, base=base, seed=seed)
    return policy


def with_protocol(
    engine: SearchQAEngine, protocol: TagProtocol, tokenizer: TokenCounter | None = None
) -> SearchQAEngine:
    """The engine with another grammar, and with a tokenizer that counts for its budgets."""
    counter = engine.rules.counter if tokenizer is None else tokenizer
    return replace(
        engine,
        rules=replace(engine.rules, protocol=protocol, counter=counter),
        information_gain=replace(engine.information_gain, protocol=protocol),
    )


def make_agent(
    config: TrainSettings, engine: SearchQAEngine, protocol: TagProtocol | None = None
) -> GRPOAgent:
    """The agent of a run, whose policy says which grammar the engine needs.

    Args:
        config: The settings.
        engine: The engine that it plays with.
        protocol: The grammar that the run began with, if it is resumed.

    Raises:
        ValueError: If credit needs information gain and searches have no counterfactuals, or the
            checkpoint was taught another grammar than the one that is asked for.
    """
    credit = make_credit_from(config.credit)
    if credit.uses_information_gain and not engine.num_counterfactuals:
        raise ValueError(
            f"the credit method {config.credit['method']!r} needs information gain; set "
            "environment.num_counterfactuals to at least 1"
        )
    if config.credit["method"] == "mr_search" and config.environment.max_attempts == 1:
        log.warning(
            "credit.method = 'mr_search' with one attempt is GRPO without a division ('rloo'): set "
            "environment.max_attempts to 2 or more, so that there are attempts to compare"
        )
    asked = config.environment.protocol
    policy = make_policy(
        config.policy,
        asked if protocol is None else protocol,
        temperature=config.policy.temperature,
        seed=config.run.seed,
        trained_in=config.environment.rules,
    )
    taught = taught_protocol(config.policy.path) if asked and protocol is None else None
    if taught is not None:
        if replace(taught, prompt="{question}") != replace(policy.protocol, prompt="{question}"):
            raise ValueError(
                f"the policy {config.policy.path!r} was taught the grammar {taught.name!r}, and "
                f"environment.protocol asks for {asked!r}; leave it out to go on with its own, or "
                "remove igsearch.json from its folder to teach it another one"
            )
        policy.protocol = taught  # whose prompt a chat template may write otherwise today
    gain = replace(engine.information_gain, protocol=policy.protocol)
    return GRPOAgent(policy, gain, credit)


def group_ids(questions: Sequence[Question], step: int, size: int) -> list[str]:
    """A group for each question of a step, repeated for its rollouts.

    The place in the batch is part of it: a question that is drawn twice makes two groups.
    """
    return [f"{step}-{i}-{q.id}" for i, q in enumerate(questions) for _ in range(size)]
