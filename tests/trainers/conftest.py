"""Real trainers on a tiny world, real episodes of a real policy, and episodes made by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.tokenization import SegmentTokenizer
from agents.transformers_policy import TransformersPolicy
from igsearch_env.completion import Completion
from igsearch_env.data.world import World
from igsearch_env.episode import Document, Episode, Question
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.rollout import collect
from igsearch_env.settings import make_engine
from igsearch_env.turn import SearchResult, TurnRules
from trainers.config import load_config
from trainers.local.grpo import GRPOTrainer
from trainers.warm_start.tiny_policy import PROTOCOL, build_tokenizer

MakeTrainer = Callable[..., GRPOTrainer]
MakePolicy = Callable[..., TransformersPolicy]
Written = Callable[..., Episode]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_full_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the full collection at the start of a run: a third of a run as small as these."""
    monkeypatch.setattr("trainers.local.grpo.lasting_objects", nullcontext)


@pytest.fixture(scope="session")
def tokenizer() -> SegmentTokenizer:
    return SegmentTokenizer(build_tokenizer())


@pytest.fixture(scope="session")
def world() -> World:
    return World.generate(seed=3, people=40)


@pytest.fixture
def make_trainer(tmp_path: Path, tiny_settings: Callable[..., list[str]]) -> MakeTrainer:
    """Build a trainer in ``tmp_path / name`` from settings that override the tiny run's."""

    def make(*overrides: str, name: str = "run", resume: bool = False) -> GRPOTrainer:
        config = load_config(None, tiny_settings(*overrides))
        return GRPOTrainer(config, tmp_path / name, resume=resume)

    return make


@pytest.fixture
def make_policy(taught_policy: Path) -> MakePolicy:
    """Load the taught policy."""

    def make(**options: Any) -> TransformersPolicy:
        settings = {"max_new_tokens": 12, **options}
        return TransformersPolicy.from_pretrained(taught_policy, PROTOCOL, **settings)

    return make


@pytest.fixture(scope="session")
def sampled(taught_policy: Path, world: World) -> list[Episode]:
    """Ragged finished episodes that the taught policy sampled: 4 questions, 3 rollouts of each."""
    engine = make_engine(
        world.train_questions,
        BM25Retriever.build(world.documents),
        None,
        protocol=PROTOCOL,
        max_searches=3,
        top_k=2,
    )
    policy = TransformersPolicy.from_pretrained(taught_policy, PROTOCOL, max_new_tokens=12, seed=5)
    asked = [question for question in world.train_questions[:400:100] for _ in range(3)]
    episodes = collect(engine, policy, asked)
    assert len({len(episode.steps) for episode in episodes}) > 1
    assert sum(len(episode.searches) for episode in episodes) > 5
    return episodes


@pytest.fixture
def written(tokenizer: SegmentTokenizer) -> Written:
    """Write an episode by hand, turn by turn; a turn that searches finds the documents given."""

    def write(
        question: Question,
        turns: Sequence[str],
        *,
        documents: Sequence[Document] = (),
        failed: bool = False,
        tokens: bool = True,
        **ending: Any,
    ) -> Episode:
        rules = TurnRules(PROTOCOL, max_searches=3)
        episode = rules.begin(question)
        for text in turns:
            ids = tokenizer.encode_answer("", text)[1]
            completion = Completion.from_tokens(ids, [-0.5] * len(ids), tokenizer.decode)
            turn = rules.read(episode, completion if tokens else text)
            found = SearchResult(tuple(documents), failed=failed)
            episode = turn.extend(episode, rules, found)
        return replace(episode, **ending)

    return write
