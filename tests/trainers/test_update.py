"""Updates against a slow reference, and what must not matter to them."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import PreTrainedModel

from agents.inference import check_weights, logits_after
from agents.transformers_policy import TransformersPolicy
from igsearch_env.credit import SDSearch
from igsearch_env.episode import Episode
from trainers.config import OptimizationSettings, TrainSettings
from trainers.local.checkpoint import save_checkpoint, save_policy
from trainers.local.health import TrainingStoppedError
from trainers.local.token_batch import TokenBatch, episode_tokens
from trainers.local.update import Updater, policy_loss, sign_flips

MakePolicy = Callable[..., TransformersPolicy]
Advantages = list[NDArray[np.float64]]


def noise(episodes: Sequence[Episode], seed: int = 0) -> Advantages:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=episode.policy_tokens) for episode in episodes]


def shifted(episodes: Sequence[Episode], by: float = 0.4) -> list[Episode]:
    """Episodes whose sampled log-probs are off, so that ratios differ and some are clipped."""
    rng = np.random.default_rng(9)
    return [
        replace(
            episode,
            steps=tuple(
                replace(step, log_probs=tuple(v + rng.normal(0, by) for v in step.log_probs or ()))
                for step in episode.steps
            ),
        )
        for episode in episodes
    ]


def failed(episode: Episode) -> Episode:
    step = replace(episode.steps[0], retrieval_failed=True)
    return replace(episode, steps=(step, *episode.steps[1:]))


def updater(policy: TransformersPolicy, reference: Any = None, **options: Any) -> Updater:
    settings = {"max_grad_norm": math.inf, "learning_rate": 1e-3, **options}
    return Updater(
        policy.model,
        policy.tokenizer,
        OptimizationSettings(**settings),
        policy.temperature,
        reference,
    )


def gradients(policy: TransformersPolicy) -> dict[str, torch.Tensor]:
    found = {n: p.grad for n, p in policy.model.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return {name: g.clone() for name, g in found.items() if g is not None}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference relative to the largest number."""
    scale = max(float(value.abs().max()) for value in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / scale


def slow_gradients(
    policy: TransformersPolicy,
    episodes: Sequence[Episode],
    advantages: Advantages,
    *,
    clips: tuple[float, float],
    kl: float = 0.0,
    reference: Any = None,
    per_sequence: bool = False,
) -> dict[str, torch.Tensor]:
    """One unpadded episode at a time, token by token; a negative control averages by sequence."""
    policy.model.zero_grad()
    total = sum(len(advantage) for advantage in advantages)
    for episode, advantage in zip(episodes, advantages, strict=True):
        ids = policy.tokenizer.encode_context((episode.prompt,))
        rows: list[tuple[int, float]] = []  # place, sampled log-prob
        for step in episode.steps:
            for token, old in zip(step.turn.token_ids or (), step.log_probs or (), strict=True):
                rows.append((len(ids), old))
                ids.append(token)
            if step.observation is not None:
                ids += policy.tokenizer.encode_context((step.observation,))
        tensor = torch.tensor([ids])
        now = torch.log_softmax(policy.model(input_ids=tensor).logits[0] / policy.temperature, -1)
        loss = torch.zeros(())
        for number, (place, sampled) in enumerate(rows):
            value = now[place - 1, ids[place]]
            ratio = (value - sampled).exp()
            a = float(advantage[number])
            loss = loss - torch.minimum(ratio * a, ratio.clamp(1 - clips[0], 1 + clips[1]) * a)
            if kl:
                with torch.no_grad():
                    logits = reference(input_ids=tensor).logits[0, place - 1]
                    base = torch.log_softmax(logits / policy.temperature, -1)[ids[place]]
                loss = loss + kl * ((base - value).exp() - (base - value) - 1)
        weight = len(episodes) * len(rows) if per_sequence else total
        (loss / weight).backward()
    found = gradients(policy)
    policy.model.zero_grad()
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_the_gradient_is_that_of_the_slow_reference(
    make_policy: MakePolicy, sampled: list[Episode], temperature: float
) -> None:
    policy = make_policy(temperature=temperature)
    reference = copy.deepcopy(policy.model)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    episodes = shifted(sampled[:6])
    advantages = noise(episodes)
    options: dict[str, Any] = {"clips": (0.2, 0.28), "kl": 0.3, "reference": reference}
    expected = slow_gradients(policy, episodes, advantages, **options)
    by_sequence = slow_gradients(policy, episodes, advantages, **options, per_sequence=True)
    metrics = updater(policy, reference, clip=0.2, clip_high=0.28, kl=0.3, micro_batch_size=4).step(
        episodes, advantages, np.random.default_rng(0)
    )
    found = gradients(policy)
    assert difference(expected, found) < 1e-4
    assert difference(by_sequence, found) > 1e-2
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in expected.values()))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert 0 < metrics["clipped"] < 1
    assert metrics["kl"] > 0


def test_micro_batches_add_up_to_one_batch(make_policy: MakePolicy, sampled: list[Episode]) -> None:
    episodes, found, metrics = shifted(sampled), [], []
    for size in (1, 5, 100):
        policy = make_policy()
        metrics.append(
            updater(policy, micro_batch_size=size).step(
                episodes, noise(episodes), np.random.default_rng(0)
            )
        )
        found.append(gradients(policy))
    assert difference(found[2], found[0]) < 1e-5
    assert difference(found[2], found[1]) < 1e-5
    assert metrics[0] == pytest.approx(metrics[2], rel=1e-4)
    assert metrics[1] == pytest.approx(metrics[2], rel=1e-4)


def test_gradients_of_updates_do_not_pile_up(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    policy = make_policy()
    one = updater(policy, learning_rate=1e-12)
    found = []
    for _ in range(2):
        one.step(sampled, noise(sampled), np.random.default_rng(0))
        found.append(gradients(policy))
    assert difference(found[0], found[1]) < 1e-3


def unscored(episode: Episode) -> Episode:
    return replace(episode, outcome=None, attempt_outcomes=(None,), unscored=True)


@pytest.mark.parametrize("spoil", [failed, unscored])
def test_a_failed_search_takes_its_episode_out_of_the_loss(
    make_policy: MakePolicy, sampled: list[Episode], spoil: Callable[[Episode], Episode]
) -> None:
    advantages = noise(sampled)
    broken = [spoil(e) if row in (1, 4) else e for row, e in enumerate(sampled)]
    kept = [row for row in range(len(sampled)) if row not in (1, 4)]
    found = []
    for episodes, used in ((broken, range(len(sampled))), (sampled, kept), (sampled, None)):
        policy = make_policy()
        rows = list(range(len(episodes))) if used is None else list(used)
        updater(policy).step(
            [episodes[i] for i in rows], [advantages[i] for i in rows], np.random.default_rng(0)
        )
        found.append(gradients(policy))
    assert difference(found[1], found[0]) < 1e-5
    assert difference(found[2], found[0]) > 1e-2


def test_a_batch_of_failures_changes_nothing(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    policy = make_policy()
    before = copy.deepcopy(policy.model.state_dict())
    episodes = [failed(episode) for episode in sampled]
    one = updater(policy, weight_decay=0.1)
    metrics = one.step(episodes, noise(episodes), np.random.default_rng(0))
    assert not any(metrics.values())
    assert "loss" not in metrics
    assert all(torch.equal(before[n], v) for n, v in policy.model.state_dict().items())
    later = one.step(sampled, noise(sampled), np.random.default_rng(0))
    assert {"loss", "entropy", "clipped", "kl"} <= later.keys()


def test_every_minibatch_is_an_update_and_every_episode_in_one(
    make_policy: MakePolicy, sampled: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy()
    one = updater(policy, minibatches=3, epochs=2, micro_batch_size=3, steps=5)
    events: list[Any] = []
    real = TokenBatch.from_rows
    known = [episode_tokens(episode, policy.tokenizer)[0] for episode in sampled]

    def batched(rows: Sequence[tuple[list[int], list[bool]]], *args: Any) -> TokenBatch:
        events.extend(known.index(ids) for ids, _ in rows)
        return real(rows, *args)

    monkeypatch.setattr(TokenBatch, "from_rows", batched)
    one.optimizer.register_step_post_hook(lambda *_: events.append("update"))
    one.step(sampled, noise(sampled), np.random.default_rng(0))
    parts = " ".join(map(str, events)).split("update")
    assert parts.pop() == ""
    rows = [[int(word) for word in part.split()] for part in parts]
    assert [len(row) for row in rows] == [4] * 6
    for passed in (rows[:3], rows[3:]):
        assert {row for part in passed for row in part} == set(range(len(sampled)))
    assert rows[:3] != rows[3:]  # each pass is shuffled anew


def test_ratios_start_at_one_even_with_dropout(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    """Dropout would make the first ratios random numbers, and runs unrepeatable."""
    found = []
    for seed, mode in ((1, True), (2, False)):
        policy = make_policy()
        for module in policy.model.modules():
            if hasattr(module, "attention_dropout"):
                setattr(module, "attention_dropout", 0.5)  # noqa: B010
        policy.model.train(mode)
        torch.manual_seed(seed)
        metrics = updater(policy, clip=1e-3).step(sampled, noise(sampled), np.random.default_rng(0))
        assert metrics["clipped"] == 0
        found.append(gradients(policy))
    assert difference(found[0], found[1]) == 0


def test_a_turn_without_log_probs_is_refused(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    first = sampled[0]
    steps = (replace(first.steps[0], log_probs=None), *first.steps[1:])
    with pytest.raises(ValueError, match="has no log_probs"):
        updater(make_policy()).step(
            [replace(first, steps=steps)], noise([first]), np.random.default_rng(0)
        )


def test_one_array_per_episode_is_needed(make_policy: MakePolicy, sampled: list[Episode]) -> None:
    with pytest.raises(ValueError, match=r"zip\(\)"):
        updater(make_policy()).step(sampled, noise(sampled[1:]), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1.0] * 6),
        ("constant", 3, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]),
        ("cosine", 0, [0.5 * (1 + math.cos(math.pi * n / 6)) for n in range(6)]),
        ("cosine", 2, [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * n / 4)) for n in range(4))]),
    ],
)
def test_the_schedule_runs_over_all_updates(
    make_policy: MakePolicy,
    sampled: list[Episode],
    schedule: str,
    warmup: int,
    expected: list[float],
) -> None:
    settings = {"steps": 3, "minibatches": 2, "schedule": schedule, "warmup_steps": warmup}
    one = updater(make_policy(), learning_rate=1e-3, **settings)
    used: list[float] = []
    one.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"])
    )
    logged = [
        one.step(sampled[:3], noise(sampled[:3]), np.random.default_rng(0))["learning_rate"]
        for _ in range(3)
    ]
    assert used == pytest.approx([1e-3 * factor for factor in expected])
    assert logged == used[1::2]  # what the last update of each step really used


def test_the_norm_is_clipped_and_logged_as_it_was(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    policy = make_policy()
    metrics = updater(policy, max_grad_norm=1e-3).step(
        sampled, noise(sampled), np.random.default_rng(0)
    )
    clipped = math.sqrt(sum(float(g.square().sum()) for g in gradients(policy).values()))
    assert metrics["grad_norm"] > 0.01
    assert clipped == pytest.approx(1e-3, rel=1e-3)


def test_sign_flips() -> None:
    outcome = [np.array([1.0, 1.0]), np.array([-1.0, 0.0])]
    assert sign_flips([np.array([1.0, -0.1]), np.array([0.5, -1.0])], outcome) == 0.5
    assert sign_flips(outcome, outcome) == 0.0
    assert sign_flips([np.array([])], [np.array([])]) == 0.0


NUMBERS = st.tuples(
    st.floats(-8, 0),  # log-prob now
    st.floats(-8, 0),  # when sampled
    st.floats(-8, 0),  # under the reference
    st.floats(-3, 3),  # advantage
)


def slow_loss(
    rows: list[tuple[float, float, float, float]], total: int, clips: tuple[float, float], kl: float
) -> tuple[float, int, float]:
    """Loss, clipped tokens and KL, a token at a time, in the words of the paper."""
    loss, clipped, divergence = 0.0, 0, 0.0
    for now, old, reference, advantage in rows:
        ratio = math.exp(now - old)
        plain = ratio * advantage
        bounded = min(max(ratio, 1 - clips[0]), 1 + clips[1]) * advantage
        clipped += bounded < plain
        k3 = math.exp(reference - now) - (reference - now) - 1
        divergence += k3
        loss += -min(plain, bounded) + kl * k3
    return loss / total, clipped, divergence


def columns(rows: list[tuple[float, float, float, float]]) -> list[torch.Tensor]:
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]


@given(
    rows=st.lists(NUMBERS, min_size=1, max_size=12),
    extra=st.integers(0, 5),
    clips=st.sampled_from([(0.1, 0.1), (0.2, 0.28), (0.5, 0.2)]),
    kl=st.sampled_from([0.0, 0.01, 1.0]),
)
def test_it_is_what_plain_python_computes(
    rows: list[tuple[float, float, float, float]], extra: int, clips: tuple[float, float], kl: float
) -> None:
    now, old, reference, advantage = columns(rows)
    total = len(rows) + extra
    low, high = clips
    found = policy_loss(
        now,
        old,
        advantage,
        total,
        clip=low,
        clip_high=high,
        kl=kl,
        reference_log_probs=reference,
    )
    loss, clipped, divergence = slow_loss(rows, total, clips, kl)
    assert float(found.loss) == pytest.approx(loss, rel=1e-9, abs=1e-9)
    assert found.clipped == clipped
    assert found.kl == pytest.approx(divergence if kl else 0.0, rel=1e-9, abs=1e-9)
    assert found.kl >= 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0),
        (1.1, 2.0, -2.2, -2.2, 0),
        (1.5, 2.0, -2.4, 0.0, 1),  # far enough up: no more push
        (0.5, 2.0, -1.0, -1.0, 0),  # fell although it was good: full push back
        (0.5, -2.0, 1.6, 0.0, 1),  # far enough down: no more push
        (1.5, -2.0, 3.0, 3.0, 0),  # rose although it was bad: full push back
        (0.9, -2.0, 1.8, 1.8, 0),
        (1.5, 0.0, 0.0, 0.0, 0),
    ],
)
def test_both_sides_of_the_clip(
    ratio: float, advantage: float, loss: float, slope: float, clipped: int
) -> None:
    now = torch.tensor([math.log(ratio) - 1.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.0], dtype=torch.float64)
    found = policy_loss(now, old, torch.tensor([advantage], dtype=torch.float64), 1)
    found.loss.backward()
    assert float(found.loss.detach()) == pytest.approx(loss)
    assert now.grad is not None
    assert float(now.grad) == pytest.approx(slope, abs=1e-12)
    assert found.clipped == clipped
    assert found.kl == 0.0


def test_the_kl_penalty_pulls_towards_the_reference() -> None:
    now = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    reference = torch.tensor([-2.0, -2.0, -1.0])
    zeros = torch.zeros(3)
    found = policy_loss(now, now.detach(), zeros, 3, kl=0.5, reference_log_probs=reference)
    found.loss.backward()
    k3 = [math.exp(-1) + 1 - 1, 0.0, math.exp(2) - 2 - 1]
    assert found.kl == pytest.approx(sum(k3))
    assert float(found.loss.detach()) == pytest.approx(0.5 * sum(k3) / 3)
    # d k3 / d log p = 1 - p_ref / p: down where the policy is above the reference.
    expected = [0.5 / 3 * (1 - math.exp(gap)) for gap in (-1.0, 0.0, 2.0)]
    assert now.grad is not None
    assert now.grad.tolist() == pytest.approx(expected)


def test_a_kl_penalty_needs_a_reference() -> None:
    numbers = torch.zeros(2)
    with pytest.raises(ValueError, match="needs reference_log_probs"):
        policy_loss(numbers, numbers, numbers, 2, kl=0.1)
    assert policy_loss(numbers, numbers, numbers, 2, reference_log_probs=numbers).kl == 0.0


@given(rows=st.lists(NUMBERS, min_size=2, max_size=12), cut=st.integers(1, 11))
def test_parts_add_up_to_the_whole(rows: list[tuple[float, float, float, float]], cut: int) -> None:
    total = len(rows)

    def loss(part: list[tuple[float, float, float, float]]) -> float:
        if not part:
            return 0.0
        now, old, reference, advantage = columns(part)
        found = policy_loss(now, old, advantage, total, kl=0.1, reference_log_probs=reference)
        return float(found.loss)

    assert loss(rows[:cut]) + loss(rows[cut:]) == pytest.approx(loss(rows), rel=1e-9, abs=1e-9)


def test_cutting_by_tokens_or_recomputing_activations_or_logits_in_parts_changes_no_gradient(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    def trained(**options: Any) -> dict[str, torch.Tensor]:
        policy = make_policy()
        updater(policy, **options).step(sampled, noise(sampled), np.random.default_rng(0))
        return gradients(policy)

    expected = trained()
    for options in (
        {"micro_batch_tokens": 150},
        {"micro_batch_tokens": 1, "micro_batch_size": 2},
        {"gradient_checkpointing": True},
        {"logits_at_once": 3 * make_policy().model.config.vocab_size},
        {"logits_at_once": 1},  # a position at a time all the same
    ):
        assert difference(expected, trained(**options)) < 1e-4, options


@pytest.mark.parametrize("teacher", [False, True])
def test_no_more_logits_are_computed_at_a_time_than_the_settings_say(
    make_policy: MakePolicy,
    sampled: list[Episode],
    monkeypatch: pytest.MonkeyPatch,
    teacher: bool,
) -> None:
    policy = make_policy()
    rows: list[int] = []

    def counted(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        rows.append(len(states))
        return logits_after(model, states)

    monkeypatch.setattr("trainers.local.token_batch.logits_after", counted)
    monkeypatch.setattr("trainers.local.distillation.logits_after", counted)
    limit = 3 * policy.model.config.vocab_size
    advantages = [np.zeros(one.policy_tokens) for one in sampled] if teacher else noise(sampled)
    told = SDSearch(0.1).hindsight(sampled) if teacher else None
    rng = np.random.default_rng(0)
    updater(policy, logits_at_once=limit).step(sampled, advantages, rng, hindsight=told)
    assert len(rows) > 2
    assert max(rows) == 3


def test_gradient_checkpointing_keeps_the_inputs_of_layers_only(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    def kept(**options: Any) -> int:
        count = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += 1
            return tensor

        one = updater(make_policy(), **options)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            one.step(sampled, noise(sampled), np.random.default_rng(0))
        return count

    assert kept(gradient_checkpointing=True) < kept() / 2


def test_bfloat16_arithmetic_trains_float32_weights(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    found = []
    for autocast in (None, torch.bfloat16):
        policy = make_policy()
        settings = OptimizationSettings(max_grad_norm=1e9)
        one = Updater(policy.model, policy.tokenizer, settings, autocast=autocast)
        one.step(sampled, noise(sampled), np.random.default_rng(0))
        assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
        found.append(gradients(policy))
    assert 0 < difference(*found) < 0.1


def test_the_gap_between_sampling_and_update_is_measured(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    def step(episodes: Sequence[Episode], **options: Any) -> dict[str, float]:
        return updater(make_policy(), **options).step(
            episodes, noise(sampled), np.random.default_rng(0)
        )

    exact = step(sampled, max_sampling_gap=0.01)
    assert exact["sampling_gap"] < 1e-4
    assert exact["recomputed"] == 0
    assert step(shifted(sampled), epochs=2)["sampling_gap"] == pytest.approx(0.4 * 0.8, rel=0.3)
    assert step(shifted(sampled))["recomputed"] == 0


def test_above_a_bound_the_log_probs_of_the_update_are_taken(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    found = []
    for episodes in (sampled, shifted(sampled)):
        policy = make_policy()
        told = updater(policy, max_sampling_gap=0.05, epochs=2).step(
            episodes, noise(sampled), np.random.default_rng(0)
        )
        found.append((gradients(policy), told["recomputed"], told["loss"]))
    assert [found[0][1], found[1][1]] == [0, 1]
    assert difference(found[0][0], found[1][0]) < 1e-3
    assert found[0][2] == pytest.approx(found[1][2], abs=1e-4)
    with pytest.raises(ValueError, match="set minibatches to 1"):
        TrainSettings(optimization=OptimizationSettings(max_sampling_gap=0.1, minibatches=2))


def with_zeros(episodes: Sequence[Episode]) -> Advantages:
    """Advantages with zeros after a token of each episode, and nothing else in every third."""
    advantages = noise(episodes)
    for row, advantage in enumerate(advantages):
        advantage[0 if row % 3 == 0 else len(advantage) // 2 :] = 0.0
    return advantages


def test_tokens_without_a_later_advantage_are_not_run_and_change_no_gradient(
    make_policy: MakePolicy, sampled: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes, advantages = shifted(sampled[:6]), with_zeros(sampled[:6])
    widths: list[int] = []
    real = TokenBatch.from_rows

    def batched(rows: Sequence[tuple[list[int], list[bool]]], *args: Any) -> TokenBatch:
        widths.extend(len(ids) for ids, _ in rows)
        return real(rows, *args)

    monkeypatch.setattr(TokenBatch, "from_rows", batched)
    policy = make_policy()
    expected = slow_gradients(policy, episodes, advantages, clips=(0.2, 0.2))
    metrics = updater(policy).step(episodes, advantages, np.random.default_rng(0))
    assert difference(expected, gradients(policy)) < 1e-4
    whole = sorted(len(episode_tokens(e, policy.tokenizer)[0]) for e in episodes)
    assert len(widths) == 4  # two of six have no advantage at all
    assert sum(widths) < 0.75 * sum(whole)
    assert 0 < metrics["tokens_run"] < 0.6
    assert 0 < metrics["clipped"] < metrics["tokens_run"]
    widths.clear()
    updater(make_policy(), copy.deepcopy(policy.model), kl=0.1).step(
        episodes, advantages, np.random.default_rng(0)
    )
    assert sorted(widths) == whole  # the penalty is on every token


def test_a_batch_without_advantages_moves_no_weight(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    policy = make_policy()
    one = updater(policy)
    one.step(sampled, noise(sampled), np.random.default_rng(0))  # there is momentum now
    before = copy.deepcopy(policy.model.state_dict())
    zeros = [np.zeros(episode.policy_tokens) for episode in sampled]
    metrics = one.step(sampled, zeros, np.random.default_rng(0))
    assert metrics["episodes_used"] == len(sampled)
    assert metrics["groups_without_advantage"] == 1
    assert metrics["tokens_run"] == metrics["grad_norm"] == 0
    assert "loss" not in metrics
    assert all(torch.equal(before[n], v) for n, v in policy.model.state_dict().items())


def test_dynamic_sampling_takes_groups_without_advantage_out_of_the_mean(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    episodes = [replace(e, group_id=str(row // 3)) for row, e in enumerate(sampled)]
    advantages = noise(episodes)
    for row in (3, 4, 5):
        advantages[row] = np.zeros_like(advantages[row])
    advantages[0] = np.zeros_like(advantages[0])  # its siblings have some
    kept = [row for row in range(len(episodes)) if row not in (3, 4, 5)]

    def found(rows: Sequence[int], **options: Any) -> tuple[dict[str, torch.Tensor], float]:
        policy = make_policy()
        metrics = updater(policy, **options).step(
            [episodes[i] for i in rows], [advantages[i] for i in rows], np.random.default_rng(0)
        )
        return gradients(policy), metrics["groups_without_advantage"]

    everything = range(len(episodes))
    plain, share = found(everything)
    dynamic, same_share = found(everything, dynamic_sampling=True)
    assert share == same_share == 1 / len({e.group_id for e in episodes})
    assert difference(found(kept)[0], dynamic) < 1e-5
    ratio = sum(e.policy_tokens for e in episodes) / sum(episodes[i].policy_tokens for i in kept)
    scaled = {name: ratio * gradient for name, gradient in plain.items()}
    assert difference(scaled, dynamic) < 1e-5
    assert ratio > 1.1


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_bad_minibatch_is_skipped_and_counted(
    make_policy: MakePolicy,
    sampled: list[Episode],
    number: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = make_policy()
    before = copy.deepcopy(policy.model.state_dict())
    advantages = noise(sampled)
    advantages[2][1] = number
    one = updater(policy)
    metrics = one.step(sampled, advantages, np.random.default_rng(0))
    assert re.search(r"skipped: the loss of a micro-batch .* is (nan|-?inf)", caplog.text)
    assert metrics["updates_skipped"] == 1
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(torch.equal(before[n], v) for n, v in policy.model.state_dict().items())
    hook = next(policy.model.parameters()).register_hook(lambda gradient: gradient * number)
    metrics = one.step(sampled, noise(sampled), np.random.default_rng(0))
    hook.remove()
    assert re.search(r"skipped: the norm of the gradient is (nan|inf)", caplog.text)
    assert metrics["updates_skipped"] == 1
    assert all(torch.equal(before[n], v) for n, v in policy.model.state_dict().items())
    # It goes on as if the bad ones had not been.
    fresh = make_policy()
    metrics = one.step(sampled, noise(sampled), np.random.default_rng(0))
    assert metrics == updater(fresh).step(sampled, noise(sampled), np.random.default_rng(0))
    after = fresh.model.state_dict()
    assert all(torch.equal(after[n], v) for n, v in policy.model.state_dict().items())
    assert not all(torch.equal(before[n], v) for n, v in after.items())


def test_only_the_bad_minibatch_of_a_step_is_skipped(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    advantages = noise(sampled)
    advantages[2][1] = math.nan
    policy = make_policy()
    one = updater(policy, minibatches=2)
    before = copy.deepcopy(policy.model.state_dict())
    metrics = one.step(sampled, advantages, np.random.default_rng(0))
    assert metrics["updates_skipped"] == 1
    assert all(math.isfinite(value) for value in metrics.values())
    assert any(not torch.equal(before[n], v) for n, v in policy.model.state_dict().items())
    check_weights(policy.model)


def test_an_update_that_goes_too_far_ends_the_run_and_is_never_saved(
    make_policy: MakePolicy, sampled: list[Episode], tmp_path: Path
) -> None:
    policy = make_policy()
    far = updater(policy, learning_rate=1e38, weight_decay=1e3)  # 1e38 * 1e3 is infinite
    with pytest.raises(TrainingStoppedError, match=r"went too far: .* lower learning rate"):
        far.step(sampled, noise(sampled), np.random.default_rng(0))
    with pytest.raises(ValueError, match="not finite"):
        save_checkpoint(tmp_path, policy, {"step": 1}, 1, keep=2)
    with pytest.raises(ValueError, match="not finite"):
        save_policy(tmp_path / "policy", policy)
    moments = {"optimizer": {"state": {0: {"exp_avg": torch.tensor([1.0, math.inf])}}}}
    with pytest.raises(ValueError, match=r"state.optimizer.state.0.exp_avg"):
        save_checkpoint(tmp_path, make_policy(), moments, 1, keep=2)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="logits that are not finite"):
        policy.act([sampled[0]])


def test_one_advantage_per_policy_token_is_needed(
    make_policy: MakePolicy, sampled: list[Episode]
) -> None:
    with pytest.raises(ValueError, match=r"expected \d+ advantages, one per policy token, got 1"):
        updater(make_policy()).step(sampled[:1], [np.ones(1)], np.random.default_rng(0))
