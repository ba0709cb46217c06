"""From settings to the objects of a run: questions, retriever, environment, agent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from agents.grpo_agent import GRPOAgent
from agents.loading import load_policy
from agents.transformers_policy import TransformersPolicy
from igsearch_env.checkpoint_settings import TrainedIn
from igsearch_env.data.corpus import load_corpus
from igsearch_env.data.questions import load_questions
from igsearch_env.data.silver import with_silver
from igsearch_env.data.world import World
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Question
from igsearch_env.gain.information_gain import InformationGain
from igsearch_env.gain.pool import EvidencePool
from igsearch_env.protocol.tags import get_protocol
from igsearch_env.retrieval.base import IndexedRetriever, Retriever
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.settings import make_engine, resolve_retriever
from trainers.config import (
    EnvironmentSettings,
    PolicySettings,
    Precision,
    TrainSettings,
    WorldSettings,
    make_credit_from,
)

AUTOCAST: dict[Precision, torch.dtype | None] = {
    "float32": None,
    "bfloat16-autocast": torch.bfloat16,
}
"""What matrices are multiplied in at each precision; None for the type of the weights."""


@lru_cache(maxsize=2)
def make_world(config: WorldSettings) -> World:
    """The world of a run."""
    return World.generate(
        config.seed,
        people=config.people,
        informative_bridges=config.informative_bridges,
        test_share=config.test_share,
    )


def make_questions(name: str, world: WorldSettings) -> list[Question]:
    """Questions by name or file; those of the embedded world are of the world of the run."""
    sets = {"world-train": "train_questions", "world-test": "test_questions"}
    if name not in sets:
        return load_questions(name)
    found = [q for q in getattr(make_world(world), sets[name]) if q.hops in world.hops]
    if not found:
        raise ValueError(f"the world has no questions of {world.hops} hops; it has 1, 2 and 3")
    return found


def make_retriever(environment: EnvironmentSettings, world: WorldSettings) -> Retriever:
    """The saved index or the server of a run, or BM25 over its corpus, built in memory."""
    if environment.index:
        return resolve_retriever(environment.index)
    if environment.corpus == "world":
        if not environment.questions.startswith("world-"):
            raise ValueError(
                f"the questions are {environment.questions!r}, but the corpus is the embedded "
                "world; set environment.corpus or environment.index"
            )
        _, colon, size = environment.questions.partition(":")
        if colon:  # "world-test:320" is about another world than the run's settings
            return BM25Retriever.build(load_corpus(f"world:{size}"))
        return BM25Retriever.build(make_world(world).documents)
    return BM25Retriever.build(load_corpus(environment.corpus))


def make_training_engine(config: TrainSettings, seed: int) -> SearchQAEngine:
    """The environment's engine for training; gains are left to the agent."""
    e = config.environment
    gain = InformationGain(
        get_protocol(e.protocol),
        e.counterfactual,
        floor=None if e.floor == "none" else e.floor,
        aliases=e.aliases,
    )
    credit = make_credit_from(config.credit)
    questions = make_questions(e.questions, config.world)
    retriever = make_retriever(e, config.world)
    if credit.uses_silver:
        questions = _with_silver(questions, retriever)
    return make_engine(
        questions,
        retriever,
        None,
        protocol=e.protocol,
        max_searches=e.max_searches,
        max_attempts=e.max_attempts,
        top_k=e.top_k,
        num_counterfactuals=e.num_counterfactuals if credit.uses_information_gain else 0,
        information_gain=gain,
        outcome=_nothing if e.outcome == "zero" else e.outcome,
        pool=EvidencePool(seed=seed),
        shared_counterfactuals=e.shared_counterfactuals,
    )


def _with_silver(questions: list[Question], retriever: Retriever) -> list[Question]:
    """The questions with silver evidence; what a file of questions says of it already is kept."""
    if all(question.silver_ids is not None for question in questions):
        return questions
    if not isinstance(retriever, IndexedRetriever):
        raise ValueError(
            f"silver evidence is looked for in the corpus, and {type(retriever).__name__} does not "
            "hold one; give an index or a corpus, or questions with silver_ids"
        )
    return with_silver(questions, retriever.documents, retriever)


def make_policy(config: PolicySettings, protocol: str, **options: Any) -> TransformersPolicy:
    """The policy of a run; see :func:`agents.loading.load_policy`."""
    return load_policy(
        config.path,
        protocol,
        device=config.device,
        dtype=torch.float32,
        autocast=AUTOCAST[config.precision],
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        **options,
    )


def make_agent(config: TrainSettings, engine: SearchQAEngine) -> GRPOAgent:
    """The agent of a run.

    Raises:
        ValueError: If credit needs information gain and searches have no counterfactuals.
    """
    credit = make_credit_from(config.credit)
    if credit.uses_information_gain and not engine.num_counterfactuals:
        raise ValueError(
            f"the credit method {config.credit['method']!r} needs information gain; set "
            "environment.num_counterfactuals to at least 1"
        )
    e = config.environment
    policy = make_policy(
        config.policy,
        e.protocol,
        temperature=config.policy.temperature,
        seed=config.run.seed,
        trained_in=TrainedIn(e.top_k, e.max_searches, e.counterfactual, e.max_attempts),
    )
    return GRPOAgent(policy, engine.information_gain, credit)


def group_ids(questions: Sequence[Question], step: int, size: int) -> list[str]:
    """A group for each question of a step, repeated for its rollouts.

    The place in the batch is part of it: a question that is drawn twice makes two groups.
    """
    return [f"{step}-{i}-{q.id}" for i, q in enumerate(questions) for _ in range(size)]


def _nothing(answer: str | None, question: Question) -> float:
    return 0.0
