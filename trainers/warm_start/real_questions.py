"""Supervised warm start on real questions: a pretrained model learns to write searches and answers.

The demonstrations are played against the index that the policy will search: a scripted agent that
knows the gold titles asks for them, well or badly, and answers once what it found holds the answer.
Nothing else is taught: documents are read, not learned.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from agents.inference import check_logits, computing_in
from agents.transformers_policy import TransformersPolicy
from igsearch_env.answers import contains_answer
from igsearch_env.baselines import extract_answer
from igsearch_env.completion import Completion
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Episode, Question
from igsearch_env.rollout import collect
from trainers.interrupt import interrupt_delayed
from trainers.local.token_batch import TokenBatch, episode_tokens, micro_batches, policy_log_probs
from trainers.optimizer import clip_gradients, make_optimizer
from trainers.warm_start.state import read_state, write_state

QUERIES = {
    "title": 0.4,
    "title and words": 0.25,
    "part of title": 0.1,
    "question": 0.1,
    "words": 0.15,
}
"""How often each kind of query is asked; the shares sum to 1."""


@dataclass(frozen=True)
class RealWarmStartSettings:
    """Settings of a warm start on real questions.

    Args:
        steps: Updates.
        batch_size: Demonstrations per update.
        learning_rate: Peak learning rate of AdamW: a warm-up of a tenth of the steps, then a cosine
            down to a tenth of it.
        micro_batch_tokens: Tokens per forward pass, padding included, at most; gradients are
            accumulated.
        early_answer: Chance, per turn after the first search, of answering before all gold
            documents were found.
        checkpoint_every: Updates between two states that are kept.
        seed: Of questions, queries and answers.
    """

    steps: int = 60
    batch_size: int = 8
    learning_rate: float = 1e-4
    micro_batch_tokens: int = 1024
    early_answer: float = 0.15
    checkpoint_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batch_tokens", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")


class GoldAgent:
    """Searches for the gold titles of a question in turn, well or badly, then answers.

    A query is a title, a title with words of the question, a part of the title, the question, or
    some of its words. It asks for a title again, in another way, until one of its documents is
    found. It gives a gold answer where some document holds it, and else the name that the documents
    repeat most, so that answers are read and not remembered.

    Args:
        policy: Its tokenizer and grammar are used, not its weights.
        max_searches: Searches per episode.
        rng: Source of its choices.
        early_answer: As in :class:`RealWarmStartSettings`.
    """

    def __init__(
        self,
        policy: TransformersPolicy,
        max_searches: int,
        rng: random.Random,
        early_answer: float = 0.15,
    ) -> None:
        self.tokenizer, self.protocol = policy.tokenizer, policy.protocol
        self.max_searches, self.rng, self.early_answer = max_searches, rng, early_answer

    def act(self, episodes: Sequence[Episode]) -> list[Completion]:
        """Write the next turn of each episode."""
        return [self._completion(self._turn(episode)) for episode in episodes]

    def _completion(self, text: str) -> Completion:
        ids = self.tokenizer.encode_answer("", text)[1]
        return Completion.from_tokens(ids, None, self.tokenizer.decode)

    def _turn(self, episode: Episode) -> str:
        found = {document.title for step in episode.searches for document in step.documents}
        missing = [t for t in dict.fromkeys(episode.question.gold_titles) if t not in found]
        done = len(episode.searches)
        early = done > 0 and self.rng.random() < self.early_answer
        if not missing or done >= self.max_searches or early:
            return self._refinement(episode) + self._answer(episode)
        query = self._query(episode.question, missing[0])
        return self._refinement(episode) + self.protocol.write_search(query)

    def _query(self, question: Question, title: str) -> str:
        kind = self.rng.choices(list(QUERIES), list(QUERIES.values()))[0]
        words = re.findall(r"\w[\w'’-]*", question.text)
        if kind == "title":
            return title
        if kind == "title and words":
            known = title.lower()
            others = [w for w in words if len(w) > 3 and w.lower() not in known] or words
            return f"{title} {' '.join(self.rng.sample(others, min(2, len(others))))}"
        if kind == "part of title":
            return self.rng.choice(title.split())
        if kind == "question":
            return question.text
        return " ".join(self.rng.sample(words, min(3, len(words))))

    def _answer(self, episode: Episode) -> str:
        texts = [f"{d.title} {d.text}" for step in episode.searches for d in step.documents]
        golden = episode.question.golden_answers
        read = next((a for a in golden if any(contains_answer(t, (a,)) for t in texts)), None)
        yes_or_no = golden[0] if golden[0].lower() in ("yes", "no") else None
        answer = read or yes_or_no or extract_answer(episode)
        return self.protocol.write_answer(answer)

    def _refinement(self, episode: Episode) -> str:
        """What a grammar with refinements wants after documents: the first sentence of each."""
        tag, last = self.protocol.refine, episode.steps[-1] if episode.steps else None
        if tag is None or self.protocol.answer_before == "" or last is None or not last.documents:
            return ""
        sentences = " ".join(re.split(r"(?<=[.!?])\s", d.text)[0] for d in last.documents)
        return f"<{tag}> {self.protocol.escape(sentences)} </{tag}>\n"


class RealWarmStart:
    """Plays demonstrations and trains a policy on their turns.

    Args:
        settings: Settings.
        policy: The policy; its ``autocast`` is the precision of the updates.
        engine: Rules, retriever and questions, all of them with gold titles.

    Raises:
        ValueError: If a question has no gold titles.
    """

    def __init__(
        self, settings: RealWarmStartSettings, policy: TransformersPolicy, engine: SearchQAEngine
    ) -> None:
        without = [q.id for q in engine.questions if not q.gold_titles]
        if without:
            raise ValueError(
                f"{len(without)} of {len(engine.questions)} questions have no gold_titles, which "
                f"demonstrations search for; leave them out ({', '.join(without[:3])}, ...)"
            )
        check_logits(policy.model)
        self.settings, self.policy, self.engine = settings, policy, engine
        self._optimizer = make_optimizer(policy.model, "adamw", settings.learning_rate, 0.0)

    def run(self, progress: Callable[[int, float], None], checkpoint: Path | None = None) -> None:
        """Train.

        Args:
            progress: Called after each update with its number, from 1, and the mean loss in nats
                per token that the policy is to write.
            checkpoint: File in which the state is kept every ``checkpoint_every`` updates and where
                Ctrl-C stops it; training goes on from it if it is there, and the end is the same.

        Raises:
            ValueError: If the file is damaged, or of a warm start with other settings.
            OSError: If it cannot be written.
        """
        done = 0 if checkpoint is None else self._restore(checkpoint)
        self.policy.model.eval()  # no dropout, as in the training that follows
        try:
            for number in range(done, self.settings.steps):
                episodes = self.play_update(number)
                with interrupt_delayed():
                    loss = self._update(episodes, number)
                    done = number + 1
                if checkpoint is not None and done % self.settings.checkpoint_every == 0:
                    self._save(checkpoint, done)
                progress(done, loss)
        except KeyboardInterrupt:
            if checkpoint is not None and done:
                self._save(checkpoint, done)
            raise

    def play_update(self, number: int) -> list[Episode]:
        """The demonstrations of an update, which follow from the seed and its number alone."""
        settings = self.settings
        rng = random.Random(f"warm start {settings.seed} {number}")
        agent = GoldAgent(self.policy, self.engine.rules.max_searches, rng, settings.early_answer)
        asked = [rng.choice(self.engine.questions) for _ in range(settings.batch_size)]
        return collect(self.engine, agent, asked)

    def _update(self, episodes: Sequence[Episode], number: int) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(number)
        self._optimizer.zero_grad(set_to_none=True)
        model, total, loss = self.policy.model, sum(e.policy_tokens for e in episodes), 0.0
        tokenizer = self.policy.tokenizer
        lengths = [len(episode_tokens(episode, tokenizer)[0]) for episode in episodes]
        for part in micro_batches(lengths, self.settings.micro_batch_tokens):
            batch = TokenBatch.from_episodes([episodes[i] for i in part], tokenizer, model.device)
            with computing_in(model, self.policy.autocast):
                log_probs, _ = policy_log_probs(model, batch)
            piece: Tensor = -log_probs.sum() / total
            piece.backward()
            loss += float(piece.detach())
        clip_gradients(model, 1.0)
        self._optimizer.step()
        return loss

    def _rate(self, number: int) -> float:
        steps = self.settings.steps
        warm = min(1.0, (number + 1) / max(1, steps // 10))
        decay = 0.55 + 0.45 * float(np.cos(np.pi * number / steps))
        return self.settings.learning_rate * warm * decay

    def _save(self, checkpoint: Path, done: int) -> None:
        state = {
            "done": done,
            "settings": asdict(self.settings),
            "precision": self._precision(),
            "model": self.policy.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        write_state(checkpoint, state)

    def _precision(self) -> str:
        kept, computed = self.policy.model.dtype, self.policy.autocast
        if computed is None:
            return str(kept).removeprefix("torch.")
        return f"{computed}-autocast".removeprefix("torch.")

    def _restore(self, checkpoint: Path) -> int:
        state = read_state(checkpoint, asdict(self.settings))
        if state is None:
            return 0
        precision = state.get("precision", self._precision())  # older ones do not say
        if precision != self._precision():
            raise ValueError(
                f"{checkpoint} is of a warm start in {precision}, and this one is in "
                f"{self._precision()}; go on in that --precision, or remove it"
            )
        self.policy.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        return int(state["done"])
