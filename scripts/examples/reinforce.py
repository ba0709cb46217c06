"""REINFORCE with a batch baseline, in one file.

python -m scripts.examples.reinforce

The environment is text in, text out. Of information gain this file knows one argument,
``information_gain_weight``: every search is paid for what it found, beside the outcome.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from igsearch_env.cli.program import parse_early, run
from scripts.examples import example_parser


def _parser() -> argparse.ArgumentParser:
    return example_parser(__doc__)


if __name__ == "__main__":
    parse_early(_parser)

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
            # Questions and documents stand in it, so that no special token may be made of it.
            read = tokenizer(observations[row], split_special_tokens=True)
            rollouts[row].extend(read.input_ids)
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


def token_log_probs(model: Any, rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens that the policy wrote, and their turns: (B, T - 1) each."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r.ids) for r in rollouts], True)
    turns = torch.nn.utils.rnn.pad_sequence([torch.tensor(r.turns) for r in rollouts], True, -1)
    logits = model(input_ids=ids).logits[:, :-1]  # padding is on the right: nothing sees it
    log_probs = torch.log_softmax(logits, dim=-1).gather(2, ids[:, 1:, None])[..., 0]
    return log_probs, turns[:, 1:]


def advantages(rollouts: Sequence[Rollout]) -> list[Tensor]:
    """Reward to come from each turn on, less the batch's mean at that turn, in units of its SD."""
    to_come = [np.cumsum(rollout.rewards[::-1])[::-1] for rollout in rollouts]
    longest = max(map(len, to_come))
    baseline = [np.mean([r[t] for r in to_come if len(r) > t]) for t in range(longest)]
    centred = [r - baseline[: len(r)] for r in to_come]
    scale = np.concatenate(centred).std() + 1e-6
    return [torch.tensor(r / scale, dtype=torch.float32) for r in centred]


def make_envs(rows: int, questions: Sequence[Question], world: World, **options: Any) -> Any:
    """The demo's environment: 2-hop questions, one document per search, up to 4 searches."""
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


def train(
    arguments: argparse.Namespace, model: Any, update: Callable[[list[Rollout]], None]
) -> None:
    """Play and update; print the exact match of sampled answers to held-out questions around it."""
    tokenizer: Any = AutoTokenizer.from_pretrained(POLICY)
    world = World.generate(seed=0, people=arguments.people)
    asked, held_out = (
        [question for question in questions if question.hops == 2]
        for questions in (world.train_questions, world.test_questions)
    )
    held_out = held_out[: arguments.eval_questions]
    envs = make_envs(
        arguments.batch,
        asked,
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
        update(rollouts)
        if step % 10 == 0:
            mean_return = np.mean([sum(rollout.rewards) for rollout in rollouts])
            print(f"step {step}: return {mean_return:.3f}, {time.perf_counter() - started:.0f} s")
    print(f"sampled EM on {len(held_out)} held-out questions: {before:.3f} -> {exact_match():.3f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Train with REINFORCE.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    torch.manual_seed(arguments.seed)
    model: Any = AutoModelForCausalLM.from_pretrained(POLICY).eval()  # there is no dropout
    optimizer = torch.optim.AdamW(model.parameters(), arguments.learning_rate, weight_decay=0.0)

    def update(rollouts: list[Rollout]) -> None:
        log_probs, turns = token_log_probs(model, rollouts)
        weights = torch.cat(
            [a[t[t >= 0]] for a, t in zip(advantages(rollouts), turns, strict=True)]
        )
        loss = -(weights * log_probs[turns >= 0]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    train(arguments, model, update)


if __name__ == "__main__":
    run(main)
