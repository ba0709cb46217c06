"""Signal where there is none: if every outcome is 0, only queries with a gain are taught."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agents.tokenization import SegmentTokenizer
from igsearch_env.episode import Episode, Step
from trainers.local.grpo import GRPOTrainer
from trainers.local.token_batch import TokenBatch, policy_log_probs

NOTHING = ("environment.outcome=zero", "optimization.kl=0.0", "optimization.weight_decay=0.0")
MakeTrainer = Callable[..., GRPOTrainer]


def weights(trainer: GRPOTrainer) -> dict[str, torch.Tensor]:
    return copy.deepcopy(trainer.policy.model.state_dict())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_outcomes_alone_leave_every_bit_as_it_was(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(*NOTHING, "credit.method=outcome", "optimization.minibatches=2")
    before = weights(trainer)
    rows = [trainer.train_step() for _ in range(2)]
    assert same(before, weights(trainer))
    assert all(row["outcome"] == row["grad_norm"] == row["tokens_run"] == 0 for row in rows)
    assert all(row["all_fail"] == 1 and row["searches"] > 0 for row in rows)


def test_information_gain_moves_them(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(*NOTHING, "credit.alpha=1.0", "credit.dead_zone=0.0")
    before = weights(trainer)
    row = trainer.train_step()
    assert not same(before, weights(trainer))
    assert row["outcome"] == 0
    assert row["grad_norm"] > 0


class Recorder:
    """Runs a real step, with the log-probs cut off from the model so that they are leaves."""

    def __init__(self, trainer: GRPOTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.leaves: list[torch.Tensor] = []
        self.batches: list[list[list[int]]] = []
        self.rows: list[tuple[Episode, list[int], int]] = []
        self.settled: list[Episode] = []
        self.advantages: list[NDArray[np.float64]] = []
        real_log_probs, real_batch = policy_log_probs, TokenBatch.from_rows
        real_advantages, real_rows = trainer.agent.advantages, trainer.updater._rows

        def log_probs(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
            values, entropy = real_log_probs(*args)
            self.leaves.append(values.detach().requires_grad_())
            return self.leaves[-1], entropy

        def batched(rows: Sequence[tuple[list[int], list[bool]]], *args: Any) -> TokenBatch:
            self.batches.append([ids for ids, _ in rows])
            return real_batch(rows, *args)

        def rows(episode: Episode, advantages: NDArray[np.float64], hindsight: str) -> Any:
            (made,) = real_rows(episode, advantages, hindsight)
            self.rows.append((episode, made.ids, sum(made.written)))
            return [made]

        def advantages(episodes: Sequence[Episode], progress: float) -> list[NDArray[np.float64]]:
            self.settled = list(episodes)
            self.advantages = real_advantages(episodes, progress)
            return self.advantages

        monkeypatch.setattr("trainers.local.update.policy_log_probs", log_probs)
        monkeypatch.setattr(TokenBatch, "from_rows", batched)
        monkeypatch.setattr(trainer.updater, "_rows", rows)
        monkeypatch.setattr(trainer.agent, "advantages", advantages)

    def gradients(self) -> list[tuple[Episode, list[float]]]:
        """The gradient of the loss with respect to the log-probs of each episode's tokens.

        Tokens that were not run have none, which is a gradient of 0.
        """
        run = {id(ids): count for _, ids, count in self.rows}
        known: dict[int, list[float]] = {}
        for leaf, batch in zip(self.leaves, self.batches, strict=True):
            assert leaf.grad is not None
            parts = leaf.grad.split([run[id(ids)] for ids in batch])
            known |= {id(ids): part.tolist() for ids, part in zip(batch, parts, strict=True)}
        found = []
        for episode, ids, count in self.rows:
            assert (id(ids) in known) == (count > 0)
            part = known.get(id(ids), [])
            found.append((episode, part + [0.0] * (episode.policy_tokens - len(part))))
        return found


def query_mask(step: Step, tokenizer: SegmentTokenizer) -> list[bool]:
    """Which tokens of a turn lie wholly between the tags of its search, found by their text."""
    inside = re.search(r"(?<=<search>)((?!<search>).)*?(?=</search>)", step.turn.text, re.DOTALL)
    assert inside is not None
    mask, start = [], 0
    for token in step.turn.token_ids or ():
        end = start + len(tokenizer.decode([token]))
        mask.append(inside.start() <= start and end <= inside.end())
        start = end
    assert start == len(step.turn.text)
    return mask


@pytest.mark.parametrize("micro_batch_size", [4, 100])
def test_the_gradient_is_where_a_shaped_gain_is(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, micro_batch_size: int
) -> None:
    """Dead zones make some gains 0: their queries must get nothing, like all other tokens."""
    trainer = make_trainer(
        *NOTHING,
        "environment.top_k=2",
        "optimization.group_size=4",
        f"optimization.micro_batch_size={micro_batch_size}",
        "credit.method=ig_search",
        "credit.alpha=0.7",
        "credit.dead_zone=0.02",
    )
    recorder = Recorder(trainer, monkeypatch)
    trainer.train_step()
    gradients = recorder.gradients()
    assert len(gradients) == 12
    total = sum(episode.policy_tokens for episode, _ in gradients)
    taught = []
    for episode, gradient in gradients:
        expected: list[bool] = []
        for step in episode.steps:
            mask = [False] * len(step.turn.token_ids or ())
            if step.action == "search":
                assert (step.information_gain is None) == (not step.documents)
                paid = abs(step.information_gain or 0.0) >= 0.02
                taught.append(paid)
                mask = [paid and inside for inside in query_mask(step, trainer.policy.tokenizer)]
            expected += mask
        assert [value != 0 for value in gradient] == expected
        row = next(i for i, settled in enumerate(recorder.settled) if settled is episode)
        advantage = recorder.advantages[row]
        assert [value != 0 for value in advantage.tolist()] == expected
        # On the policy that sampled the ratio is 1, so the slope is that of -A log p / tokens.
        assert gradient == pytest.approx((-advantage / total).tolist(), rel=1e-3)
    assert 0 < sum(taught) < len(taught)


def test_without_gains_the_gradient_is_zero_everywhere(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(*NOTHING, "credit.method=outcome")
    recorder = Recorder(trainer, monkeypatch)
    trainer.train_step()
    gradients = recorder.gradients()
    assert len(gradients) == 9
    assert all(value == 0 for _, gradient in gradients for value in gradient)
