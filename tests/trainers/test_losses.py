"""The loss against plain Python, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.local.losses import policy_loss

NUMBERS = st.tuples(
    st.floats(-8, 0),  # log-prob now
    st.floats(-8, 0),  # when sampled
    st.floats(-8, 0),  # under the reference
    st.floats(-3, 3),  # advantage
)


def slow_loss(
    rows: list[tuple[float, float, float, float]], total: int, clip: float, kl: float
) -> tuple[float, int, float]:
    """Loss, clipped tokens and KL, a token at a time, in the words of the paper."""
    loss, clipped, divergence = 0.0, 0, 0.0
    for now, old, reference, advantage in rows:
        ratio = math.exp(now - old)
        plain = ratio * advantage
        bounded = min(max(ratio, 1 - clip), 1 + clip) * advantage
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
    clip=st.sampled_from([0.1, 0.2, 0.5]),
    kl=st.sampled_from([0.0, 0.01, 1.0]),
)
def test_it_is_what_plain_python_computes(
    rows: list[tuple[float, float, float, float]], extra: int, clip: float, kl: float
) -> None:
    now, old, reference, advantage = columns(rows)
    total = len(rows) + extra
    found = policy_loss(now, old, advantage, total, clip=clip, kl=kl, reference_log_probs=reference)
    loss, clipped, divergence = slow_loss(rows, total, clip, kl)
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
    found = policy_loss(now, old, torch.tensor([advantage], dtype=torch.float64), 1, clip=0.2)
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
