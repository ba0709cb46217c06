"""Runs that take less memory: adapters, bfloat16 weights and small optimizers, each resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.lora import adapters_off
from agents.transformers_policy import TransformersPolicy
from trainers.config import load_config
from trainers.local.grpo import GRPOTrainer
from trainers.local.run_log import read_log

MakeTrainer = Callable[..., GRPOTrainer]
LORA = ("policy.lora.rank=4", "policy.precision=bfloat16", "optimization.learning_rate=1e-2")


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def logged(trainer: GRPOTrainer) -> list[dict[str, Any]]:
    return [{**row, "seconds": None} for row in read_log(trainer.out / "metrics.jsonl")]


@pytest.mark.parametrize(
    ("needs", "settings"),
    [
        ("peft", (*LORA, "optimization.kl=0.01")),
        ("optimi", ("policy.precision=bfloat16",)),
        ("bitsandbytes", ("optimization.optimizer=adamw8bit",)),
    ],
)
def test_a_run_that_is_resumed_ends_as_one_that_was_not(
    needs: str, settings: tuple[str, ...], make_trainer: MakeTrainer
) -> None:
    pytest.importorskip(needs)
    whole = make_trainer(*settings, name="whole")
    before = weights(whole.policy.model)
    whole.run()
    assert not equal(before, weights(whole.policy.model))
    make_trainer(*settings, "optimization.steps=1", name="parts").run()
    resumed = make_trainer(*settings, name="parts", resume=True)
    resumed.run()
    assert equal(weights(whole.policy.model), weights(resumed.policy.model))
    assert logged(whole) == logged(resumed)


def test_a_run_with_adapters_leaves_the_weights_and_ends_with_a_whole_policy(
    make_trainer: MakeTrainer, taught_policy: Path
) -> None:
    pytest.importorskip("peft")
    trainer = make_trainer(*LORA, "optimization.kl=0.01", "optimization.steps=2")
    assert trainer.updater.reference is trainer.policy.model  # no second model
    trainer.run()
    rows = logged(trainer)
    assert rows[0]["kl"] == 0  # B starts at 0
    assert rows[1]["kl"] > 0
    start = TransformersPolicy.from_pretrained(taught_policy, dtype=torch.bfloat16)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        trained = trainer.policy.model(input_ids=ids).logits
        with adapters_off(trainer.policy.model):
            assert torch.equal(
                trainer.policy.model(input_ids=ids).logits, start.model(input_ids=ids).logits
            )
        loaded = TransformersPolicy.from_pretrained(trainer.out / "policy")
        merged = loaded.model(input_ids=ids).logits
    assert loaded.max_new_tokens == 12
    assert float((merged - trained).abs().max()) < 0.05 * float(trained.abs().max())
    newest = trainer.out / "checkpoints" / "step-000002"
    for folder in (newest, trainer.out / "adapter"):
        assert (folder / "adapter_config.json").is_file()
        assert not (folder / "model.safetensors").exists()
    by_transformers = TransformersPolicy.from_pretrained(newest)  # finds the model below it
    with torch.no_grad():
        again = by_transformers.model.to(torch.bfloat16)(input_ids=ids).logits
    assert float((again - trained).abs().max()) < 0.05 * float(trained.abs().max())


@pytest.mark.parametrize("precision", ["auto", "bfloat16-autocast"])
def test_adapters_want_weights_without_a_float32_copy(precision: str) -> None:
    with pytest.raises(ValueError, match=r"set policy.precision to 'bfloat16'"):
        load_config(None, ["policy.lora.rank=8", f"policy.precision={precision}"])


def test_moments_in_8_bits_are_refused_where_rounding_would_lose_the_update() -> None:
    words = ["policy.precision=bfloat16", "optimization.optimizer=adamw8bit"]
    with pytest.raises(ValueError, match="'adamw8bit' would round nearly every update"):
        load_config(None, words)
    assert load_config(None, [*words, "policy.lora.rank=8"]).policy.lora.rank == 8
