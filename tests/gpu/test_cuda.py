"""What a GPU must do as a CPU does; `python -m pytest tests/gpu` on a machine that has one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agents.loading import CHECKOUT
from agents.scoring.one_by_one import OneByOneScorer
from agents.scoring.trie_scorer import TrieScorer
from agents.transformers_policy import TransformersPolicy
from igsearch_env.episode import Context, Episode
from igsearch_env.rollout import collect
from trainers.config import load_config
from trainers.local.grpo import GRPOTrainer
from trainers.local.token_batch import TokenBatch, policy_log_probs
from trainers.setup import group_ids

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
MakeTrainer = Callable[..., GRPOTrainer]
Load = tuple[list[Context], list[str]]


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """Build the demo's trainer on the GPU, small, in ``tmp_path / name``."""

    def make(*overrides: str, name: str = "run", resume: bool = False) -> GRPOTrainer:
        small = ("policy.device=cuda", "optimization.questions_per_step=4", "run.eval_limit=8")
        config = load_config(CHECKOUT / "trainers/configs/demo.toml", (*small, *overrides))
        return GRPOTrainer(config, tmp_path / name, resume=resume)

    return make


def play(trainer: GRPOTrainer, questions: int = 8) -> list[Episode]:
    """Sampled rollouts that are not settled yet."""
    asked = trainer.engine.questions[:questions]
    groups = group_ids(asked, 0, 3)
    return collect(trainer.engine, trainer.agent, [q for q in asked for _ in range(3)], groups)


def scoring_load(trainer: GRPOTrainer, episodes: Sequence[Episode]) -> Load:
    """The contexts, real and swapped, of every search, and the gold answer in each."""
    gain = trainer.engine.information_gain
    contexts: list[Context] = []
    answers: list[str] = []
    for episode in episodes:
        for index in range(len(episode.steps)):
            if gain.due(episode, index):
                found = gain.contexts(episode, index)
                contexts += found
                lead = gain.protocol.answer_lead
                answers += [lead + episode.question.golden_answers[0]] * len(found)
    return contexts, answers


def largest_difference(
    left: Sequence[NDArray[np.float64]], right: Sequence[NDArray[np.float64]]
) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))


def test_scores_are_those_of_one_by_one_and_of_a_cpu(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    load = scoring_load(trainer, play(trainer))
    policy = trainer.policy
    without = TrieScorer(policy.model, policy.tokenizer)
    with_memory = policy.scorer()
    found, recalled = without.log_probs(*load), with_memory.log_probs(*load)
    assert with_memory.tokens_processed < without.tokens_processed  # keys of sampling were used
    expected = OneByOneScorer(policy.model, policy.tokenizer).log_probs(*load)
    on_cpu = TransformersPolicy.from_pretrained(CHECKOUT / "agents/world-tiny").scorer()
    assert len(expected) > 50
    assert largest_difference(found, expected) < 1e-3
    assert largest_difference(recalled, expected) < 1e-3
    assert largest_difference(found, on_cpu.log_probs(*load)) < 1e-3


@pytest.mark.parametrize("budget", [200, 32_768])
def test_bfloat16_scores_stay_near(make_trainer: MakeTrainer, budget: int) -> None:
    trainer = make_trainer()
    load = scoring_load(trainer, play(trainer))
    policy = trainer.policy
    expected = OneByOneScorer(policy.model, policy.tokenizer).log_probs(*load)
    half: Any = policy.model
    half.to(torch.bfloat16)
    found = TrieScorer(half, policy.tokenizer, max_batch_tokens=budget).log_probs(*load)
    errors = [np.abs(a - b).mean() for a, b in zip(found, expected, strict=True)]
    assert 0 < np.mean(errors) < 0.1  # nats


def test_sampled_log_probs_are_those_of_a_forward_pass(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    episodes = play(trainer)
    batch = TokenBatch.from_episodes(
        episodes, trainer.policy.tokenizer, trainer.policy.model.device
    )
    with torch.no_grad():
        recomputed = policy_log_probs(trainer.policy.model, batch)[0].cpu().numpy()
    sampled = np.concatenate(
        [step.log_probs for e in episodes for step in e.steps if step.log_probs is not None]
    )
    assert recomputed.shape == sampled.shape
    assert np.abs(recomputed - sampled).max() < 1e-3


def test_a_resumed_run_goes_on_alike(make_trainer: MakeTrainer) -> None:
    settings = ("optimization.steps=4", "run.checkpoint_every=2", "optimization.kl=0.01")
    whole = make_trainer(*settings, name="whole")
    last = whole.run()
    parted = make_trainer(*settings, name="parted")

    def stop(row: dict[str, object]) -> None:
        if row["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parted.run(stop)
    resumed = make_trainer(*settings, name="parted", resume=True)
    assert resumed.step == 2
    again = resumed.run()
    assert next(resumed.policy.model.parameters()).device.type == "cuda"
    assert again["step"] == last["step"] == 4
    assert again["information_gain"] == pytest.approx(last["information_gain"], abs=0.1)
