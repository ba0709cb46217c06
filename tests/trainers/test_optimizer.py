"""AdamW in less memory against slow references."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from trainers.optimizer import OptimizerName, make_optimizer

RATE, DECAY = 1e-4, 0.1


class Weights(nn.Module):
    """Some weights of one type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(64, 128, generator=generator).to(torch.bfloat16)
        self.weight = nn.Parameter(values.to(dtype))


def gradients(count: int) -> list[torch.Tensor]:
    """A gradient that keeps its direction, and some noise: what small rates add up over."""
    generator = torch.Generator().manual_seed(1)
    shape = (64, 128)
    steady = torch.randn(shape, generator=generator)
    return [steady + 0.3 * torch.randn(shape, generator=generator) for _ in range(count)]


def slow_adamw(start: torch.Tensor, steps: list[torch.Tensor], beta2: float) -> torch.Tensor:
    """AdamW in float64, in the words of the paper (arXiv 1711.05101, algorithm 2)."""
    weight, m, v = start.double(), torch.zeros(()).double(), torch.zeros(()).double()
    for t, gradient in enumerate(steps, start=1):
        g = gradient.double()
        m = 0.9 * m + 0.1 * g
        v = beta2 * v + (1 - beta2) * g * g
        update = (m / (1 - 0.9**t)) / ((v / (1 - beta2**t)).sqrt() + 1e-8)
        weight = weight - RATE * (update + DECAY * weight)
    return weight


def moved(name: OptimizerName, dtype: torch.dtype, steps: list[torch.Tensor]) -> torch.Tensor:
    model = Weights(dtype)
    before = model.weight.detach().double()
    optimizer = make_optimizer(model, name, RATE, DECAY)
    for gradient in steps:
        model.weight.grad = gradient.to(dtype)
        optimizer.step()
    return model.weight.detach().double() - before


def test_bfloat16_weights_move_as_float64_ones_do() -> None:
    pytest.importorskip("optimi")
    steps = gradients(60)
    start = Weights(torch.bfloat16).weight.detach()
    expected = slow_adamw(start, steps, beta2=0.99) - start.double()
    found = moved("adamw", torch.bfloat16, steps)
    model = Weights(torch.bfloat16)
    plain = torch.optim.AdamW([model.weight], lr=RATE, weight_decay=DECAY)
    for gradient in steps:
        model.weight.grad = gradient.to(torch.bfloat16)
        plain.step()
    lost = model.weight.detach().double() - start.double()
    # Each weight is off by half a bfloat16 step at most, so that the sum over many is right.
    assert float((found * expected).sum() / expected.square().sum()) == pytest.approx(1, abs=0.05)
    assert float((lost * expected).sum() / expected.square().sum()) < 0.6  # what Kahan's sum is for


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "paged-adamw8bit"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_float32_weights_move_as_float64_ones_do(name: OptimizerName) -> None:
    if name != "adamw":
        pytest.importorskip("bitsandbytes")
    steps = gradients(30)
    start = Weights(torch.float32).weight.detach()
    expected = slow_adamw(start, steps, beta2=0.999) - start.double()
    found = moved(name, torch.float32, steps)
    error = float((found - expected).norm() / expected.norm())
    assert error < (1e-3 if name == "adamw" else 0.1)


@pytest.mark.parametrize(
    ("name", "dtype", "module"),
    [
        ("adamw", torch.bfloat16, "optimi"),
        ("paged-adamw8bit", torch.float32, "bitsandbytes.optim"),
    ],
)
def test_a_missing_library_is_named_with_what_installs_it(
    name: OptimizerName, dtype: torch.dtype, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module} is needed here .*igsearch-env\[optimizers\]"):
        make_optimizer(Weights(dtype), name, RATE, DECAY)


def test_frozen_weights_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = make_optimizer(model, "adamw", RATE, DECAY).param_groups
    assert sum(len(group["params"]) for group in groups) == 2
