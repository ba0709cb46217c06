"""A teacher with hindsight: its loss against a slow reference, and what it must not touch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div

from agents.transformers_policy import TransformersPolicy
from igsearch_env.credit import Hindsight, SDSearch
from igsearch_env.episode import Episode, Segment
from tests.trainers.test_update import difference, gradients, noise, slow_gradients, updater
from trainers.local.distillation import Lesson, divergence, lessons
from trainers.local.grpo import GRPOTrainer
from trainers.local.update import Updater
from trainers.openrlhf.flags import read_flags

MakePolicy = Callable[..., TransformersPolicy]
WEIGHT = 0.7


def update(
    policy: TransformersPolicy, episodes: Sequence[Episode], told: Hindsight | None, one: Updater
) -> dict[str, float]:
    silence = [np.zeros(episode.policy_tokens) for episode in episodes]
    return one.step(episodes, silence, np.random.default_rng(0), hindsight=told)


def slow_divergence(
    policy: TransformersPolicy, episodes: Sequence[Episode], told: Hindsight
) -> torch.Tensor:
    """One query token at a time, by torch's own divergence, without batches."""
    values = []
    for episode, text in zip(episodes, told.texts, strict=True):
        before = policy.tokenizer.encode_context((Segment(text, "document"),)) if text else []
        ids = policy.tokenizer.encode_context((episode.prompt,))
        places: list[int] = []
        for step in episode.steps:
            tokens = list(step.turn.token_ids or ())
            if step.action == "search" and text:
                first = step.query_tokens.start - step.policy_tokens.start
                size = step.query_tokens.stop - step.query_tokens.start
                places += range(len(ids) + first, len(ids) + first + size)
            ids += tokens
            if step.observation is not None:
                ids += policy.tokenizer.encode_context((step.observation,))
        for place in places:
            own = policy.model(input_ids=torch.tensor([ids[:place]])).logits[0, -1]
            with torch.no_grad():
                other = policy.model(input_ids=torch.tensor([before + ids[:place]])).logits[0, -1]
            p, q = (torch.softmax(one / policy.temperature, -1) for one in (own, other))
            middle = ((p + q) / 2).log()
            values.append(
                (kl_div(middle, p, reduction="sum") + kl_div(middle, q, reduction="sum")) / 2
            )
    return torch.stack(values)


@pytest.mark.parametrize("limit", [0, 60])
def test_loss_and_gradient_are_those_of_the_slow_reference(
    make_policy: MakePolicy, sampled: list[Episode], limit: int
) -> None:
    policy = make_policy(temperature=0.8)
    told = SDSearch(WEIGHT).hindsight(sampled)
    slow = slow_divergence(policy, sampled, told)
    policy.model.zero_grad()
    (WEIGHT * slow.mean()).backward()
    expected = gradients(policy)
    policy.model.zero_grad()
    found = update(
        policy, sampled, told, updater(policy, learning_rate=0.0, micro_batch_tokens=limit)
    )
    assert found["divergence"] == pytest.approx(float(slow.mean().detach()), rel=1e-4)
    assert difference(expected, gradients(policy)) < 1e-4


def test_it_adds_to_the_loss_of_the_advantages(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    policy = make_policy()
    told, advantages = SDSearch(WEIGHT).hindsight(sampled), noise(sampled)
    updater(policy, learning_rate=0.0).step(
        sampled, advantages, np.random.default_rng(0), hindsight=told
    )
    both = gradients(policy)
    alone = slow_gradients(policy, sampled, advantages, clips=(0.2, 0.2))
    update(policy, sampled, told, updater(policy, learning_rate=0.0))
    taught = gradients(policy)
    assert difference({n: alone[n] + taught[n] for n in taught}, both) < 1e-4


def test_a_teacher_that_reads_nothing_more_teaches_nothing(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    policy = make_policy()
    own = [one for e in sampled for one in lessons(e, "x", policy.tokenizer)]
    same = [Lesson(one.ids, one.queries, [], 0) for one in own]
    assert float(divergence(policy.model, same)) == pytest.approx(0.0, abs=1e-5)
    assert float(divergence(policy.model, own)) > 1e-3


def test_without_text_or_weight_no_token_is_run(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    policy = make_policy()
    texts = SDSearch().hindsight(sampled).texts
    for told in (None, Hindsight(WEIGHT, [""] * len(sampled)), Hindsight(0.0, texts)):
        found = update(policy, sampled, told, updater(policy))
        assert "divergence" not in found
        assert found["grad_norm"] == 0.0


def test_queries_come_closer_to_the_teachers(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    policy = make_policy()
    told, one = SDSearch(1.0).hindsight(sampled), updater(policy, learning_rate=1e-4, steps=9)
    found = [update(policy, sampled, told, one)["divergence"] for _ in range(3)]
    assert found[2] < found[1] < found[0]


def test_the_trainer_logs_it(make_trainer: Callable[..., GRPOTrainer]) -> None:
    trainer = make_trainer("credit.method=sd_search", "credit.distillation=0.2")
    assert trainer.train_step()["divergence"] > 0


def test_openrlhf_refuses_a_teacher(tmp_path: Path) -> None:
    words = ["--ig.questions", "world-train", "--ig.retriever", "world", "--ig.credit", "sd_search"]
    with pytest.raises(ValueError, match="'sd_search' has a teacher, whose loss OpenRLHF"):
        read_flags(["--out", str(tmp_path), *words])
