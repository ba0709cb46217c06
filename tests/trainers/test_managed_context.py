"""Training on managed contexts: what was sampled, scored and learned from is what was seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from agents.scoring.one_by_one import OneByOneScorer
from agents.transformers_policy import TransformersPolicy
from igsearch_env.data.world import World
from igsearch_env.episode import Episode
from igsearch_env.gain.information_gain import InformationGain
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.rollout import collect
from igsearch_env.settings import make_engine
from tests.trainers.test_update import difference, gradients, noise, updater
from trainers.local.token_batch import TokenBatch, episode_tokens, policy_log_probs, training_tokens
from trainers.rollout_settings import RolloutSettings
from trainers.trl.rollouts import completion
from trainers.warm_start.tiny_policy import PROTOCOL

MakePolicy = Callable[..., TransformersPolicy]


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(seed=3, people=40)


@pytest.fixture
def managed(make_policy: MakePolicy, world: World) -> list[Episode]:
    """Episodes in which documents leave the context after one turn."""
    engine = make_engine(
        world.train_questions,
        BM25Retriever.build(world.documents),
        None,
        protocol=PROTOCOL,
        max_searches=4,
        max_turns=4,
        max_attempts=2,
        top_k=1,
        num_counterfactuals=2,
        keep_documents=1,
    )
    asked = [question for question in world.train_questions[:300:100] for _ in range(2)]
    episodes = collect(engine, make_policy(seed=5), asked)
    assert any(len(episode.training_sequences) > 1 for episode in episodes)
    return episodes


def test_log_probs_are_those_that_were_sampled(
    make_policy: MakePolicy, managed: list[Episode]
) -> None:
    """So the policy saw the managed context when it wrote, and no other."""
    policy = make_policy()
    for episode in managed:
        rows = training_tokens(episode, policy.tokenizer)
        batch = TokenBatch.from_rows(rows)
        with torch.no_grad():
            found, _ = policy_log_probs(policy.model, batch)
        sampled = [value for step in episode.steps for value in step.log_probs or ()]
        assert found.tolist() == pytest.approx(sampled, abs=1e-4)


def test_gradients_against_a_slow_reference(
    make_policy: MakePolicy, managed: list[Episode]
) -> None:
    """Each turn alone after what the policy saw before it, token by token."""
    policy, advantages = make_policy(), noise(managed)
    total = sum(len(row) for row in advantages)
    policy.model.zero_grad()
    loss_sum = 0.0
    for episode, row in zip(managed, advantages, strict=True):
        for index, step in enumerate(episode.steps):
            before = policy.tokenizer.encode_context(episode.context_before(index))
            ids = [*before, *(step.turn.token_ids or ())]
            logits = policy.model(input_ids=torch.tensor([ids])).logits[0]
            now = torch.log_softmax(logits, -1)
            loss = torch.zeros(())
            values = row[step.policy_tokens]
            for place, old, a in zip(
                range(len(before), len(ids)), step.log_probs or (), values, strict=True
            ):
                ratio = (now[place - 1, ids[place]] - old).exp()
                loss = loss - torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
            (loss / total).backward()
            loss_sum += float(loss.detach()) / total
    expected = gradients(policy)
    other = make_policy()
    result = updater(other, clip=0.2, clip_high=0.2).step(
        managed, advantages, np.random.default_rng(0)
    )
    assert result["loss"] == pytest.approx(loss_sum, abs=1e-5)
    assert difference(expected, gradients(other)) < 1e-4
    assert result["sampling_gap"] < 1e-4


def test_gains_are_scored_in_the_context_that_was_seen(
    make_policy: MakePolicy, managed: list[Episode]
) -> None:
    policy = make_policy()
    gain = InformationGain(PROTOCOL)
    fast = gain.settle(managed, policy.scorer())
    slow = gain.settle(managed, OneByOneScorer(policy.model, policy.tokenizer))
    for one, other in zip(fast, slow, strict=True):
        for a, b in zip(one.information_gains, other.information_gains, strict=True):
            assert a == (None if b is None else pytest.approx(b, abs=1e-4))
    assert any(gain is not None for episode in fast for gain in episode.information_gains)


def test_one_sequence_is_not_enough(make_policy: MakePolicy, managed: list[Episode]) -> None:
    policy = make_policy()
    several = next(episode for episode in managed if len(episode.training_sequences) > 1)
    with pytest.raises(ValueError, match="only the local trainer knows of several"):
        episode_tokens(several, policy.tokenizer)
    with pytest.raises(ValueError, match="only the local trainer knows of several"):
        completion(several, policy.tokenizer)


@pytest.mark.parametrize("managed", [{"keep_documents": 1}, {"drop_thoughts": True}])
def test_openrlhf_refuses_it(make_policy: MakePolicy, managed: dict[str, Any]) -> None:
    settings = RolloutSettings(questions="world-train", retriever="world", **managed)
    with pytest.raises(ValueError, match="takes one sequence per episode"):
        settings.engine(make_policy().tokenizer.tokenizer)


def test_a_run_trains_on_it(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer("environment.keep_documents=1", "optimization.steps=1")
    report = trainer.run()
    assert report
