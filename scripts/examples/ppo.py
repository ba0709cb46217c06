"""PPO with a value head and generalised advantage estimation over tokens.

python -m scripts.examples.ppo

Episodes are played as in ``reinforce.py``. Of information gain neither file knows more than one
argument, ``information_gain_weight``: every search is paid for what it found, beside the outcome.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from igsearch_env.cli.program import parse_early, run
from scripts.examples import example_parser


def _parser() -> argparse.ArgumentParser:
    return example_parser(__doc__, epochs=2, minibatches=2, gae_decay=0.98)


if __name__ == "__main__":
    parse_early(_parser)

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from scripts.examples.reinforce import POLICY, Rollout, train


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


def main(argv: Sequence[str] | None = None) -> None:
    """Train with PPO.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    torch.manual_seed(arguments.seed)
    model: Any = AutoModelForCausalLM.from_pretrained(POLICY).eval()  # there is no dropout
    value_head = torch.nn.Linear(model.config.hidden_size, 1)
    torch.nn.init.zeros_(value_head.weight)
    parameters = [*model.parameters(), *value_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, arguments.learning_rate, weight_decay=0.0)

    def update(rollouts: list[Rollout]) -> None:
        batch = make_batch(model, value_head, rollouts, arguments.gae_decay)
        for _ in range(arguments.epochs):
            for rows in torch.randperm(len(rollouts)).chunk(arguments.minibatches):
                optimizer.zero_grad()
                ppo_loss(model, value_head, batch[rows], clip=0.2).backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()

    train(arguments, model, update)


if __name__ == "__main__":
    run(main)
