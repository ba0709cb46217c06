"""From the settings of an evaluation to its objects: questions, retriever, environment, agent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.checkpoint_settings import TrainedIn, protocol_record
from igsearch_env.baselines import SCRIPTED
from igsearch_env.data.benchmarks import BENCHMARKS, QuestionSet, load_question_set
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Question
from igsearch_env.evaluation.play import Chunk, make_chunks
from igsearch_env.evaluation.player import Player, model_player, scripted_player
from igsearch_env.evaluation.settings import EvaluationSettings
from igsearch_env.record import to_record
from igsearch_env.retrieval.base import IndexedRetriever
from igsearch_env.retrieval.index_cache import open_retriever
from igsearch_env.retrieval.index_directory import MANIFEST
from igsearch_env.settings import make_engine

COUNTERFACTUALS = 3
ALL = "benchmarks"
"""Name that stands for all seven benchmarks."""


@dataclass(frozen=True)
class Evaluation:
    """The objects of an evaluation.

    Args:
        engine: Rules, retriever and, for information gain, the scorer.
        player: Who plays.
        chunks: What is asked, in the order of the results.
        inputs: What the results depend on besides the settings, as JSON-ready data.
    """

    engine: SearchQAEngine
    player: Player
    chunks: Sequence[Chunk]
    inputs: dict[str, Any]


def make_evaluation(
    config: EvaluationSettings,
    say: Callable[[str], None] = lambda line: None,
    show_progress: bool = False,
) -> Evaluation:
    """Load everything that an evaluation needs, and check it.

    Args:
        config: The settings.
        say: Told, in a line, about each question set, and about each part that takes long.
        show_progress: Whether to show bars while an index is built.

    Raises:
        ValueError: If an input is missing, damaged or does not fit the others.
    """
    _check_worlds(config)
    names = [
        name for asked in config.questions for name in (BENCHMARKS if asked == ALL else (asked,))
    ]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{', '.join(sorted(repeated))} is asked for more than once")
    sets = [load_question_set(name, config.limit, config.benchmarks) for name in names]
    for one in sets:
        say(str(one))
    _check_ids(sets)
    player = None if config.agent in SCRIPTED else model_player(config)  # it may fail: the index
    retriever = open_retriever(config.corpus, config.index, say, show_progress)  # takes longer
    player = player or scripted_player(config, retriever.documents)
    questions = [question for one in sets for question in one.questions]
    rules = TrainedIn(
        config.top_k or player.trained_in.top_k,
        config.max_searches or player.trained_in.max_searches,
        config.counterfactual or player.trained_in.counterfactual,
        config.max_attempts or player.trained_in.max_attempts,
    )
    engine = make_engine(
        questions,
        retriever,
        player.scorer if config.information_gain else None,
        protocol=player.protocol,
        max_searches=rules.max_searches,
        max_attempts=rules.max_attempts,
        top_k=rules.top_k,
        num_counterfactuals=COUNTERFACTUALS if config.information_gain else 0,
        counterfactual=rules.counterfactual,
    )
    inputs = {
        "questions_sha256": _sha256(questions),
        "questions": [_set_record(one) for one in sets],
        "model": player.model,
        "protocol": protocol_record(player.protocol),
        "prompt_sha256": hashlib.sha256(player.protocol.prompt.encode()).hexdigest(),
        **to_record(rules),
        "scorer": type(player.scorer).__name__ if config.information_gain else None,
        **_index_record(config, retriever),
    }
    size, samples = player.chunk_size, config.samples
    chunks = make_chunks(questions, seed=config.seed, size=size, samples=samples)
    return Evaluation(engine, player, chunks, inputs)


def _check_worlds(config: EvaluationSettings) -> None:
    """Refuse questions about one world and the passages of another."""
    corpus = config.corpus or ""
    for name in config.questions:
        kind, _, world = name.partition(":")
        other = kind in ("world-train", "world-test") and corpus.partition(":")[0] == "world"
        if other and corpus.partition(":")[2] != world:
            fitting = ":".join(("world", world)) if world else "world"
            raise ValueError(
                f"{name} asks about another world than the corpus {corpus} tells of; "
                f"give --corpus {fitting}"
            )


def _check_ids(sets: Sequence[QuestionSet]) -> None:
    """Refuse sets that share an id, before the index takes its time."""
    holders: dict[str, str] = {}
    for one in sets:
        for question in one.questions:
            if question.id in holders:
                raise ValueError(
                    f"{holders[question.id]} and {one.name} both have a question {question.id!r}; "
                    "ids must be unique among all sets that are asked for: rename them, or "
                    "evaluate the sets apart"
                )
            holders[question.id] = one.name


def _set_record(one: QuestionSet) -> dict[str, Any]:
    return {
        "name": one.name,
        "source": one.source,
        "split": one.split,
        "size": len(one.questions),
        "size_as_published": one.whole,
        "sha256": _sha256(one.questions),
    }


def _index_record(config: EvaluationSettings, retriever: IndexedRetriever) -> dict[str, Any]:
    """Hashes of the passages and of the saved index, whose manifest holds those of its files."""
    described = Path(config.index) / MANIFEST if config.index else None
    return {
        "corpus_sha256": retriever.corpus_sha256,
        "index_sha256": described and hashlib.sha256(described.read_bytes()).hexdigest(),
        "retriever": retriever.parameters,
    }


def _sha256(questions: Sequence[Question]) -> str:
    lines = (json.dumps(to_record(question)) + "\n" for question in questions)
    return hashlib.sha256("".join(lines).encode("ascii")).hexdigest()
