"""Supervised warm start: a fresh policy learns to read and search, then to search badly."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from math import inf
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM

from agents.tokenization import SegmentTokenizer
from igsearch_env.data.world import World
from igsearch_env.episode import Episode
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.rollout import collect
from igsearch_env.settings import make_engine
from trainers.interrupt import interrupt_delayed
from trainers.optimizer import clip_gradients
from trainers.warm_start.demonstrations import (
    COMPETENT_QUERIES,
    SEARCHER_QUERIES,
    Demonstrator,
    QueryMix,
)
from trainers.warm_start.state import read_state, write_state
from trainers.warm_start.tiny_policy import PROTOCOL, build_model, build_tokenizer

CHECKPOINT_EVERY = 200
"""Updates between two states that are kept."""


@dataclass(frozen=True)
class WarmStartSettings:
    """Settings of a warm start.

    Args:
        steps: Updates on competent demonstrations, learned from whole.
        spoiling_steps: Updates after them in which half of the demonstrations teach bad queries
            (and nothing else), half all but queries.
        batch_size: Demonstrations per update. Copying out of documents emerges after a number of
            updates rather than of tokens, so small batches are quicker.
        learning_rate: Of the first part, after a warm-up and down to a tenth on a cosine.
        spoiling_rate: Learning rate of the second part.
        document_weight: Weight of the tokens of documents against those of the policy in the first
            part: their names repeat, which teaches copying.
        world_seed: Seed of the first world; each chunk of demonstrations has a world of its own.
        people: People per world.
        episodes_per_world: Demonstrations drawn from each world.
        max_searches: Searches per demonstration.
        hops: How often a question has 1, 2 and 3 hops, as weights.
        informative_bridges: Whether names hint at facts in its worlds. Where they do not, every
            answer has to be read off a document.
        seed: Seed of weights and choices.

    Raises:
        ValueError: If a world gives fewer demonstrations than a batch needs, or the weights are no
            such numbers.
    """

    steps: int = 1600
    spoiling_steps: int = 120
    batch_size: int = 32
    learning_rate: float = 2e-3
    spoiling_rate: float = 5e-4
    document_weight: float = 0.5
    world_seed: int = 1000
    people: int = 320
    episodes_per_world: int = 1024
    max_searches: int = 4
    hops: tuple[float, float, float] = (0.3, 0.6, 0.1)
    informative_bridges: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.episodes_per_world < self.batch_size:
            raise ValueError(
                "episodes_per_world must be at least batch_size, or no batch would ever be full, "
                f"got {self.episodes_per_world} and {self.batch_size}"
            )
        if not (min(self.hops) >= 0 and 0 < sum(self.hops) < inf):
            raise ValueError(
                f"hops must be three weights of at least 0, one of them above 0, got {self.hops}"
            )


@dataclass(frozen=True)
class Demonstration:
    """A played episode as token ids, and the weight of each of them in the loss."""

    ids: list[int]
    weights: list[float]


class WarmStart:
    """Makes demonstrations and trains on them.

    Args:
        config: Settings.
    """

    def __init__(self, config: WarmStartSettings) -> None:
        self.config = config
        self.tokenizer = SegmentTokenizer(build_tokenizer())
        self.model: Qwen2ForCausalLM = build_model(config.seed)
        self._rng = random.Random(f"demonstrations {config.seed}")
        self._world = config.world_seed
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=0.01, betas=(0.9, 0.98)
        )

    def run(self, progress: Callable[[int, float], None], checkpoint: Path | None = None) -> None:
        """Train.

        Args:
            progress: Called after each update with its number, from 1, and the loss in nats.
            checkpoint: File in which the state is kept every 200 updates and where Ctrl-C stops it.
                If it is there, training goes on from it: the demonstrations learned from already
                are drawn again, which takes a minute at most, and the end is the same.

        Raises:
            ValueError: If the file is damaged, or of a warm start with other settings.
            OSError: If it cannot be written.
        """
        done = 0
        state = None if checkpoint is None else read_state(checkpoint, asdict(self.config))
        if state is not None:
            done = state["done"]
            self.model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
        parts = (
            islice(self._batches(self.competent), self.config.steps),
            islice(self._batches(self.spoiling), self.config.spoiling_steps),
        )
        self.model.train()
        try:
            for number, batch in enumerate(chain(*parts)):
                if number < done:
                    continue
                for group in self._optimizer.param_groups:
                    group["lr"] = self._rate(number)
                with interrupt_delayed():
                    loss = self._update(batch)
                    done = number + 1
                if checkpoint is not None and done % CHECKPOINT_EVERY == 0:
                    self._save(checkpoint, done)
                progress(done, loss)
        except KeyboardInterrupt:
            if checkpoint is not None and done:
                self._save(checkpoint, done)
            raise
        self.model.eval()

    def _save(self, checkpoint: Path, done: int) -> None:
        state = {
            "done": done,
            "settings": asdict(self.config),
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        write_state(checkpoint, state)

    def competent(self) -> list[Demonstration]:
        """Demonstrations of a competent agent in a new world, learned from whole."""
        weights = {"policy": 1.0, "document": self.config.document_weight, "system": 0.0}
        return [
            _demonstration(episode, self.tokenizer, lambda source, query: weights[source])
            for episode in self.play_world(COMPETENT_QUERIES, self.config.episodes_per_world)
        ]

    def spoiling(self) -> list[Demonstration]:
        """Demonstrations in two new worlds, half for bad queries only, half for all but queries."""

        def queries(source: str, query: bool) -> float:
            return float(query)

        def others(source: str, query: bool) -> float:
            return float(source == "policy" and not query)

        half = self.config.episodes_per_world // 2
        made = []
        for mix, weight in ((SEARCHER_QUERIES, queries), (COMPETENT_QUERIES, others)):
            made += [_demonstration(e, self.tokenizer, weight) for e in self.play_world(mix, half)]
        self._rng.shuffle(made)
        return made

    def play_world(self, queries: QueryMix, count: int) -> list[Episode]:
        """Let the demonstrator play questions of the next world, with 1 or 2 documents a search."""
        config = self.config
        hints = config.informative_bridges
        world = World.generate(self._world, people=config.people, informative_bridges=hints)
        self._world += 1
        engine = make_engine(
            world.train_questions,
            BM25Retriever.build(world.documents),
            None,
            protocol=PROTOCOL,
            max_searches=config.max_searches,
            top_k=2 if self._world % 4 == 0 else 1,
            num_counterfactuals=0,
        )
        agent = Demonstrator(
            world, self.tokenizer, queries, config.max_searches, self._rng, hints=hints
        )
        questions = sorted(world.train_questions, key=lambda question: question.id)
        by_hops = [[q for q in questions if q.hops == hops] for hops in (1, 2, 3)]
        drawn = self._rng.choices(by_hops, config.hops, k=count)
        return collect(engine, agent, [self._rng.choice(group) for group in drawn])

    def _batches(
        self, make: Callable[[], list[Demonstration]]
    ) -> Iterator[Sequence[Demonstration]]:
        size = self.config.batch_size
        while True:
            made = make()
            for start in range(0, len(made) - size + 1, size):
                yield made[start : start + size]

    def _rate(self, number: int) -> float:
        config = self.config
        if number >= config.steps:
            return config.spoiling_rate
        warm = min(1.0, (number + 1) / 50)
        decayed = torch.cos(torch.tensor(torch.pi * number / config.steps)).item()
        return config.learning_rate * warm * (0.55 + 0.45 * decayed)

    def _update(self, batch: Sequence[Demonstration]) -> float:
        ids, mask, weights = _padded(batch)
        logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1]  # (B, T - 1, V)
        log_probs = torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
        loss = -(log_probs * weights[:, 1:]).sum() / weights[:, 1:].sum()
        self._optimizer.zero_grad()
        loss.backward()
        clip_gradients(self.model, 1.0)
        self._optimizer.step()
        return loss.item()


def _demonstration(
    episode: Episode, tokenizer: SegmentTokenizer, weight: Callable[[str, bool], float]
) -> Demonstration:
    """Tokenise an episode; ``weight`` is asked with the source and whether it is a query."""
    ids: list[int] = []
    weights: list[float] = []
    written = 0
    queries = {i for s in episode.searches for i in range(*s.query_tokens.indices(10**9))}
    for segment in episode.transcript:
        piece = (
            tokenizer.encode_segment(segment, ids) if ids else tokenizer.encode_context((segment,))
        )
        ids += piece
        for _ in piece:
            policy = segment.source == "policy"
            weights.append(weight(segment.source, policy and written in queries))
            written += policy
    return Demonstration(ids, weights)


def _padded(batch: Sequence[Demonstration]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and weights, right-padded, shape (B, T) each."""
    length = max(len(one.ids) for one in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    mask = torch.zeros(len(batch), length, dtype=torch.long)
    weights = torch.zeros(len(batch), length)
    for row, one in enumerate(batch):
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
        mask[row, : len(one.ids)] = 1
        weights[row, : len(one.ids)] = torch.tensor(one.weights)
    return ids, mask, weights
