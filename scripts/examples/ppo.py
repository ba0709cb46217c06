"""PPO with a value head and generalised advantage estimation over tokens, in one file.

python -m scripts.examples.ppo

The environment is text in, text out. Of information gain this file knows one argument,
``information_gain_weight``: every search is paid for what it found, beside the outcome.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.scoring.trie_scorer import TrieScorer
from igsearch_env import BM25Retriever, Question, World

POLICY = Path(__file__).resolve().parents[2] / "agents" / "world-tiny"
STOP = ["</search>", "</answer>"]


@dataclass
class Rollout:
    """One episode as tokens; ``turns`` numbers the turn that wrote a token, -1 for text read."""

    ids: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)  # one per turn

    def extend(self, ids: Sequence[int], turn: int = -1) -> None:
        """Add the tokens of an observation, or of a turn."""
        self.ids += ids
        self.turns += [turn] * len(ids)


@torch.no_grad()
def sample(model: Any, tokenizer: Any, contexts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Sample one turn for each context: up to the end of an action, or 16 tokens."""
    width = max(map(len, contexts))
    padding = [width - len(ids) for ids in contexts]
    rows = [[0] * n + list(ids) for n, ids in zip(padding, contexts, strict=True)]
    inputs = torch.tensor(rows)  # (B, width)
    mask = torch.tensor([[0] * n + [1] * (width - n) for n in padding])
    turns: list[list[int]] = [[] for _ in contexts]
    running, cache = set(range(len(contexts))), None
    for _ in range(16):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
        output = model(inputs, mask, position_ids=positions, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        inputs = torch.multinomial(output.logits[:, -1].softmax(-1), 1)  # (B, 1)
        mask = torch.cat((mask, torch.ones_like(inputs)), dim=1)
        for row in sorted(running):
            turns[row].append(int(inputs[row]))
            text = tokenizer.decode(turns[row])
            if turns[row][-1] == tokenizer.eos_token_id or any(stop in text for stop in STOP):
                running.remove(row)
        if not running:
            break
    return turns


def play(envs: Any, model: Any, tokenizer: Any, **reset: Any) -> list[Rollout]:
    """Play one episode in every row of a vector environment."""
    observations, _ = envs.reset(**reset)
    rollouts = [Rollout() for _ in observations]
    running = list(range(envs.num_envs))
    while running:
        for row in running:
            rollouts[row].extend(tokenizer(observations[row]).input_ids)
        turns = sample(model, tokenizer, [rollouts[row].ids for row in running])
        actions = [""] * envs.num_envs
        for row, ids in zip(running, turns, strict=True):
            rollouts[row].extend(ids, turn=len(rollouts[row].rewards))
            actions[row] = tokenizer.decode(ids)
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        for row in running:
            rollouts[row].rewards.append(float(rewards[row]))
        running = [row for row in running if not (terminated[row] or truncated[row])]
    return rollouts


@dataclass(frozen=True)
class Batch:
    """Episodes as tensors (B, T - 1), right-padded; ``written`` marks what the policy wrote."""

    ids: Tensor  # (B, T)
    written: Tensor
    log_probs: Tensor  # under the weights that sampled, nats
    advantages: Tensor
    returns: Tensor

    def __getitem__(self, rows: Tensor) -> Batch:
        return Batch(*(getattr(self, f.name)[rows] for f in fields(self)))


def evaluate_tokens(model: Any, value_head: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each token but the first, and the value before it: (B, T - 1) each."""
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]  # padding is never seen
    log_probs = torch.log_softmax(model.lm_head(hidden), dim=-1)
    return log_probs.gather(2, ids[:, 1:, None])[..., 0], value_head(hidden)[..., 0]


@torch.no_grad()
def make_batch(model: Any, value_head: Any, rollouts: Sequence[Rollout], decay: float) -> Batch:
    """Advantages by GAE (arXiv 1506.02438) over the tokens that the policy wrote, undiscounted."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r.ids) for r in rollouts], True)
    turns = torch.nn.utils.rnn.pad_sequence([torch.tensor(r.turns) for r in rollouts], True, -1)
    turns = turns[:, 1:]
    log_probs, values = evaluate_tokens(model, value_head, ids)
    advantages = torch.zeros_like(values)
    for row, rollout in enumerate(rollouts):
        following, advantage = 0.0, 0.0
        places = torch.nonzero(turns[row] >= 0)[:, 0].tolist()
        for place, after in reversed(list(pairwise([*places, None]))):
            turn = int(turns[row, place])
            ends = after is None or int(turns[row, after]) != turn
            reward = rollout.rewards[turn] if ends else 0.0
            value = float(values[row, place])
            advantage = reward + following - value + decay * advantage
            advantages[row, place] = advantage
            following = value
    written = turns >= 0
    returns = advantages + values
    chosen = advantages[written]
    advantages = (advantages - chosen.mean()) / (chosen.std() + 1e-6)
    return Batch(ids, written, log_probs, advantages, returns)


def ppo_loss(model: Any, value_head: Any, batch: Batch, clip: float) -> Tensor:
    """Clipped surrogate (arXiv 1707.06347) and half the squared error of the values."""
    log_probs, values = evaluate_tokens(model, value_head, batch.ids)
    ratio = (log_probs - batch.log_probs).exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    surrogate = torch.minimum(ratio * batch.advantages, bounded * batch.advantages)
    loss = -surrogate + 0.5 * (values - batch.returns) ** 2
    return loss[batch.written].mean()


def make_envs(rows: int, questions: Sequence[Question], world: World, **options: Any) -> Any:
    """The demo's environment: 2-hop questions, one passage per search, up to 4 searches."""
    return gymnasium.make_vec(
        "igsearch_env:igsearch/SearchQA-v0",
        num_envs=rows,
        vectorization_mode="vector_entry_point",
        questions=questions,
        retriever=BM25Retriever.build(world.documents),
        protocol="refine-bare",
        max_searches=4,
        top_k=1,
        **options,
    )


def main() -> None:
    """Train, and tell the exact match of sampled answers to held-out questions before and after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=80, help="episodes per step")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--gae-decay", type=float, default=0.98, help="lambda, per token")
    parser.add_argument("--information-gain-weight", type=float, default=0.3)
    parser.add_argument("--eval-questions", type=int, default=600)
    parser.add_argument("--people", type=int, default=320, help="size of the world")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    model: Any = AutoModelForCausalLM.from_pretrained(POLICY).eval()  # there is no dropout
    tokenizer: Any = AutoTokenizer.from_pretrained(POLICY)
    value_head = torch.nn.Linear(model.config.hidden_size, 1)
    torch.nn.init.zeros_(value_head.weight)
    parameters = [*model.parameters(), *value_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, arguments.learning_rate, weight_decay=0.0)
    world = World.generate(seed=0, people=arguments.people)
    train, held_out = (
        [question for question in questions if question.hops == 2]
        for questions in (world.train_questions, world.test_questions)
    )
    held_out = held_out[: arguments.eval_questions]
    envs = make_envs(
        arguments.batch,
        train,
        world,
        scorer=TrieScorer(model, tokenizer),
        counterfactual="documents",
        information_gain_weight=arguments.information_gain_weight,
    )
    evaluation = make_envs(len(held_out), held_out, world, scorer=None, num_counterfactuals=0)

    def exact_match() -> float:
        played = play(evaluation, model, tokenizer, options={"questions": held_out})
        return float(np.mean([sum(rollout.rewards) for rollout in played]))

    started, before = time.perf_counter(), exact_match()
    for step in range(1, arguments.steps + 1):
        rollouts = play(envs, model, tokenizer, seed=arguments.seed if step == 1 else None)
        batch = make_batch(model, value_head, rollouts, arguments.gae_decay)
        for _ in range(arguments.epochs):
            for rows in torch.randperm(len(rollouts)).chunk(arguments.minibatches):
                optimizer.zero_grad()
                ppo_loss(model, value_head, batch[rows], clip=0.2).backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
        if step % 10 == 0:
            mean_return = np.mean([sum(rollout.rewards) for rollout in rollouts])
            print(f"step {step}: return {mean_return:.3f}, {time.perf_counter() - started:.0f} s")
    print(f"sampled EM on {len(held_out)} held-out questions: {before:.3f} -> {exact_match():.3f}")


if __name__ == "__main__":
    main()
