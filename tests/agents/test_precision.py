"""Bfloat16 arithmetic, over float32 weights and others: sampling, scoring, and keys kept."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from agents import loading
from agents.inference import compute_dtype, computing_in, evaluating
from agents.loading import load_policy, resolve_precision
from agents.scoring.one_by_one import OneByOneScorer
from agents.scoring.trie_scorer import TrieScorer
from agents.transformers_policy import TransformersPolicy
from igsearch_env.episode import Context, Episode, Question
from igsearch_env.evaluation.settings import Precision
from igsearch_env.protocol.tags import PROTOCOLS
from igsearch_env.turn import TurnRules
from tests.agents.conftest import FAMILIES, MakeModel

BF16 = torch.bfloat16


def begun(count: int) -> list[Episode]:
    rules = TurnRules(PROTOCOLS["refine-bare"], 2)
    questions = [
        Question(f"q{i}", "who wrote the book" + " of sand" * i, ("x",)) for i in range(count)
    ]
    return [rules.begin(question, question.id) for question in questions]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_differ_by_rounding_only(
    family: str,
    make_model: MakeModel,
    bpe: PreTrainedTokenizerFast,
    scoring_load: tuple[list[Context], list[str]],
) -> None:
    model = make_model(family, len(bpe), initializer_range=0.1)
    exact = OneByOneScorer(model, bpe).log_probs(*scoring_load)
    for scorer in (
        OneByOneScorer(model, bpe, autocast=BF16),
        TrieScorer(model, bpe, autocast=BF16),
    ):
        found = scorer.log_probs(*scoring_load)
        gap = np.abs(np.concatenate(found) - np.concatenate(exact))
        assert 0 < gap.mean() < 0.02
        assert gap.max() < 0.2
    assert model.dtype == torch.float32


def test_sampled_log_probs_are_those_of_the_precision_and_keys_are_kept_in_it(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast
) -> None:
    model = make_model("llama", len(bpe), initializer_range=0.1)
    policy = TransformersPolicy(model, bpe, "refine-bare", max_new_tokens=12, autocast=BF16)
    episodes = begun(3)
    turns = policy.act(episodes)
    for episode, turn in zip(episodes, turns, strict=True):
        assert turn.token_ids
        ids = [*policy.tokenizer.encode_context(episode.transcript), *turn.token_ids]
        with evaluating(model, BF16):
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
        count = len(turn.token_ids)
        again = logits.log_softmax(-1)[-count - 1 : -1].gather(
            1, torch.tensor(ids[-count:])[:, None]
        )
        assert np.abs(np.array(turn.log_probs) - again[:, 0].numpy()).max() < 0.1
    for _, prefix in policy.memory.held():
        assert {tensor.dtype for layer in prefix.layers for tensor in layer} == {BF16}
    held = policy.scorer()
    assert held.autocast == policy.fresh(1).autocast == BF16


def test_the_type_of_arithmetic_ends_with_its_context(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast
) -> None:
    model = make_model("llama", len(bpe))
    with computing_in(model, BF16):
        assert compute_dtype(model) == BF16
    with computing_in(model, None):
        assert compute_dtype(model) == torch.float32
    assert compute_dtype(model) == torch.float32


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False}, "float32"),
        ({"architecture": "x86_64", "avx512_bf16": True}, "bfloat16-autocast"),
        ({"architecture": "x86_64", "amx_bf16": True}, "bfloat16-autocast"),
        ({"architecture": "aarch64", "bf16": True}, "bfloat16-autocast"),
        ({"architecture": "aarch64", "bf16": False}, "float32"),
        (None, "float32"),  # an older torch does not say
    ],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_it(
    found: dict[str, Any] | None,
    meant: str,
    taught_policy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stand-ins of processors that are not here."""
    if found is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert resolve_precision("auto", "cpu") == meant
    policy = load_policy(str(taught_policy), precision="auto")
    assert policy.autocast == (BF16 if meant == "bfloat16-autocast" else None)
    assert policy.model.dtype == torch.float32
    for named in ("float32", "bfloat16-autocast", "bfloat16"):
        assert resolve_precision(cast(Precision, named), "cpu") == named


@pytest.mark.parametrize("multiplies", [True, False])
def test_auto_on_a_gpu(multiplies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins of GPUs: of one that is not here, and of one that is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_precision("auto", "cuda:1") == "bfloat16-autocast"  # it is planned for

    def is_supported(including_emulation: bool = True) -> bool:
        return multiplies or including_emulation

    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="cannot use the device 'cuda:99'"):
        resolve_precision("auto", "cuda:99")
    monkeypatch.setattr(loading, "check_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    monkeypatch.setattr(torch.cuda, "device", lambda one: asked.append(str(one)) or nullcontext())
    found = resolve_precision("auto", "cuda:1")
    assert found == ("bfloat16-autocast" if multiplies else "float32")
    assert asked == ["cuda:1"]


def test_auto_elsewhere() -> None:
    assert resolve_precision("auto", "mps") == "float32"
    with pytest.raises(ValueError, match="cannot use the device 'gpu'"):
        resolve_precision("auto", "gpu")


def test_weights_are_rounded_if_asked_for(taught_policy: Path) -> None:
    named = [p for p in get_args(Precision) if p != "auto"]
    policies = [load_policy(str(taught_policy), precision=p) for p in named]
    assert [policy.model.dtype for policy in policies] == [torch.float32, torch.float32, BF16]
    contexts, answers = [episode.transcript for episode in begun(3)], ["Alba", "Borgo", "Dunwich"]
    exact, *rounded = [policy.scorer().log_probs(contexts, answers) for policy in policies]
    for found in rounded:
        gap = np.abs(np.concatenate(found) - np.concatenate(exact))
        assert 0 < gap.mean() < 0.1
