"""Adapters on a real model: what they compute, what is trained, and what is saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.lora import (
    adapters_off,
    add_adapters,
    has_adapters,
    merged,
    read_adapters,
    set_adapters,
)
from trainers.warm_start.tiny_policy import build_model

pytest.importorskip("peft")
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.fixture
def plain() -> Any:
    return build_model(0, layers=2, hidden=64).eval()


@pytest.fixture
def adapted(plain: Any) -> Any:
    """A model with adapters that compute something."""
    model = copy.deepcopy(plain)
    add_adapters(model, rank=4, alpha=8.0)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    return model


def test_new_adapters_change_nothing_and_are_all_that_is_trained(plain: Any) -> None:
    before = logits(plain)
    assert not has_adapters(plain)
    add_adapters(plain.to(torch.bfloat16), rank=4, alpha=8.0, targets=["q_proj", "v_proj"])
    assert has_adapters(plain)
    trained = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2  # layers, targets, A and B
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert plain.model.embed_tokens.weight.dtype == torch.bfloat16
    assert torch.allclose(logits(plain).float(), before, atol=0.05)


def test_by_default_every_linear_layer_but_the_head_has_one(adapted: Any) -> None:
    names = {name.split(".lora_")[0] for name, _ in adapted.named_parameters() if "lora_" in name}
    linear = {n for n, m in adapted.named_modules() if type(m) is torch.nn.Linear}
    bases = {n.removesuffix(".base_layer") for n in linear if n.endswith(".base_layer")}
    assert names == bases
    assert len(names) == 2 * 7


def test_merging_is_the_formula_and_leaves_the_model_alone(plain: Any, adapted: Any) -> None:
    before = logits(adapted)
    found = merged(adapted)
    assert type(found) is type(plain)
    assert not has_adapters(found)
    state, weights = found.state_dict(), dict(adapted.named_parameters())
    assert state.keys() == plain.state_dict().keys()
    name = "model.layers.1.mlp.down_proj"
    a, b = (weights[f"{name}.lora_{x}.default.weight"] for x in "AB")
    slow = plain.state_dict()[f"{name}.weight"].clone()
    for i in range(slow.shape[0]):
        for r in range(4):
            slow[i] += 8.0 / 4 * b[i, r].detach() * a[r].detach()
    assert torch.allclose(state[f"{name}.weight"], slow, atol=1e-6)
    assert torch.equal(logits(adapted), before)
    same = found.model.embed_tokens.weight.data_ptr()
    assert same == adapted.model.embed_tokens.weight.data_ptr()  # shared, not copied


def test_with_adapters_off_it_is_the_model_before(plain: Any, adapted: Any) -> None:
    before = logits(adapted)
    assert not torch.allclose(before, logits(plain), atol=1e-3)
    with adapters_off(adapted):
        assert torch.equal(logits(adapted), logits(plain))
    assert torch.equal(logits(adapted), before)
    assert any(parameter.requires_grad for parameter in adapted.parameters())


def test_what_is_saved_loads_everywhere(plain: Any, adapted: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    merged(adapted).save_pretrained(tmp_path / "policy")
    adapted.save_pretrained(tmp_path / "adapter")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
    assert torch.allclose(logits(whole), logits(adapted), atol=1e-5)
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    by_peft = PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path / "adapter")).eval()
    assert torch.allclose(logits(by_peft), logits(adapted), atol=1e-6)
    add_adapters(plain, rank=4, alpha=8.0)
    set_adapters(plain, read_adapters(tmp_path / "adapter"))
    assert torch.equal(logits(plain), logits(adapted))


def test_other_adapters_are_refused(plain: Any, adapted: Any, tmp_path: Path) -> None:
    adapted.save_pretrained(tmp_path)
    add_adapters(plain, rank=4, alpha=8.0, targets=["q_proj"])
    with pytest.raises(ValueError, match="other adapters than the run"):
        set_adapters(plain, read_adapters(tmp_path))
