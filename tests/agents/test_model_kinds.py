"""Models that are more than attention over keys and values, or change their logits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from agents import transformers_policy
from agents.inference import check_logits, output_embeddings
from agents.scoring.one_by_one import OneByOneScorer
from agents.scoring.trie_scorer import TrieScorer
from agents.transformers_policy import TransformersPolicy
from igsearch_env.episode import Context, Episode, Question, Segment
from trainers.local.token_batch import TokenBatch, policy_log_probs

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.3,
}
LINEAR = {
    "num_hidden_layers": 4,
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    **EXPERTS,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "first_k_dense_replace": 1,
}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen3_next": (
        Qwen3NextConfig,
        Qwen3NextForCausalLM,
        {**LINEAR, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16},
    ),
    "qwen3_5": (Qwen3_5TextConfig, Qwen3_5ForCausalLM, LINEAR),
    "lfm2": (Lfm2Config, Lfm2ForCausalLM, {"num_hidden_layers": 4, "full_attn_idxs": [1, 3]}),
    "deepseek_v2": (DeepseekV2Config, DeepseekV2ForCausalLM, LATENT),
    "deepseek_v3": (DeepseekV3Config, DeepseekV3ForCausalLM, LATENT),
    "cohere": (CohereConfig, CohereForCausalLM, {"num_hidden_layers": 3, "logit_scale": 0.25}),
    "granite": (
        GraniteConfig,
        GraniteForCausalLM,
        {"num_hidden_layers": 3, "logits_scaling": 4.0, "embedding_multiplier": 3.0},
    ),
    "gemma2": (
        Gemma2Config,
        Gemma2ForCausalLM,
        {"num_hidden_layers": 2, "head_dim": 8, "final_logit_softcapping": 5.0},
    ),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {"num_hidden_layers": 2, "head_dim": 8, "final_logit_softcapping": 5.0},
    ),
}
HYBRIDS = ("qwen3_next", "qwen3_5", "lfm2")
LATENTS = ("deepseek_v2", "deepseek_v3")
SCALED = ("cohere", "granite", "gemma2", "gemma3")
MakeKind = Callable[..., PreTrainedModel]


@pytest.fixture(scope="module")
def make_kind(bpe: PreTrainedTokenizerFast) -> MakeKind:
    def make(kind: str, padding: int = 0) -> PreTrainedModel:
        config, model, options = KINDS[kind]
        torch.manual_seed(0)
        settings = {**SHAPE, **options, "vocab_size": len(bpe) + padding}
        made: PreTrainedModel = model(config(**settings)).eval()
        return made

    return make


def episodes(texts: list[str]) -> list[Episode]:
    question = Question("q", "?", ("a",))
    return [Episode(question, Segment(text, "system")) for text in texts]


TEXTS = ["who wrote the book of sand?", "Lima", "the capital of Peru is a city by the sea"]


def greedy_by_hand(model: PreTrainedModel, ids: list[int], count: int) -> tuple[list[int], Any]:
    """Each token from a forward pass of its own over everything before it."""
    untyped: Any = model
    drawn: list[int] = []
    log_probs: list[float] = []
    for _ in range(count):
        with torch.no_grad():
            logits = untyped(torch.tensor([[*ids, *drawn]]), use_cache=False).logits[0, -1]
        found = torch.log_softmax(logits.float(), dim=-1)
        drawn.append(int(found.argmax()))
        log_probs.append(float(found.max()))
    return drawn, log_probs


@pytest.mark.parametrize("kind", [*HYBRIDS, *LATENTS])
def test_turns_are_those_of_the_model_by_itself(
    make_kind: MakeKind, bpe: PreTrainedTokenizerFast, kind: str
) -> None:
    model = make_kind(kind)
    policy = TransformersPolicy(model, bpe, "refine-bare", greedy=True, max_new_tokens=6)
    begun = episodes(TEXTS)
    for turn, text in zip(policy.act(begun), TEXTS, strict=True):
        ids, log_probs = greedy_by_hand(model, bpe(text)["input_ids"], len(turn.token_ids or ()))
        assert turn.token_ids == tuple(ids)
        np.testing.assert_allclose(turn.log_probs, log_probs, atol=1e-3)  # sharp, and recurrent
    assert bool(len(policy.memory)) == (kind in LATENTS)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_end_at_different_times(
    make_kind: MakeKind, bpe: PreTrainedTokenizerFast, kind: str
) -> None:
    """Most rows end early, so that the batch is cut while one goes on."""
    model = make_kind(kind)
    policy = TransformersPolicy(model, bpe, "refine-bare", greedy=True, max_new_tokens=8)
    long = "a cat " * 2
    ids, _ = greedy_by_hand(model, bpe(long)["input_ids"], 8)
    limits = iter([1, 8, 1])
    policy._limit = lambda context: next(limits)  # type: ignore[method-assign]
    turns = policy.act(episodes([TEXTS[0], long, TEXTS[1]]))
    lengths = [len(turn.token_ids or ()) for turn in turns]
    assert lengths[0] == lengths[2] == 1 < lengths[1]
    assert turns[1].token_ids == tuple(ids[: lengths[1]])


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_model_by_itself(
    make_kind: MakeKind,
    bpe: PreTrainedTokenizerFast,
    scoring_load: tuple[list[Context], list[str]],
    kind: str,
) -> None:
    model = make_kind(kind)
    contexts, answers = (part[:16] for part in scoring_load)
    expected = np.concatenate(OneByOneScorer(model, bpe).log_probs(contexts, answers))
    scorer = TransformersPolicy(model, bpe, "refine-bare").scorer()
    assert type(scorer) is (OneByOneScorer if kind in (*HYBRIDS, "gemma2") else TrieScorer)
    found = np.concatenate(scorer.log_probs(contexts, answers))
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_sees_the_models_own_logits(
    make_kind: MakeKind, bpe: PreTrainedTokenizerFast, kind: str
) -> None:
    untyped: Any = make_kind(kind)
    check_logits(untyped)
    ids = torch.tensor(bpe(TEXTS[2])["input_ids"])
    mask = torch.arange(len(ids)) >= 4
    batch = TokenBatch(ids[None], mask[None])
    found, _ = policy_log_probs(untyped, batch)
    with torch.no_grad():
        logits = untyped(ids[None], use_cache=False).logits[0, :-1].float()
    expected = torch.log_softmax(logits, dim=-1).gather(1, ids[1:, None])[:, 0][mask[1:]]
    torch.testing.assert_close(found.detach(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", SCALED)
def test_no_row_of_the_embedding_hides_what_happens_to_logits(
    make_kind: MakeKind, bpe: PreTrainedTokenizerFast, kind: str
) -> None:
    """Rows of zeros give logits of zero, which look the same scaled or not."""
    model: Any = make_kind(kind)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        model.get_input_embeddings().weight.zero_()
    check_logits(model)
    model.register_forward_hook(
        lambda module, given, output: setattr(output, "logits", output.logits * 1.5)
    )
    with pytest.raises(ValueError, match="in a way that is not known here"):
        check_logits(model)


def test_one_by_one_is_said_once(
    make_kind: MakeKind, bpe: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    policy = TransformersPolicy(make_kind("lfm2"), bpe, "refine-bare")
    transformers_policy._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "agents"):
        policy.scorer()
        policy.scorer()
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert "one by one" in said[0]
    assert "conv" in said[0]


def test_a_model_with_a_memory_of_its_own_is_refused(bpe: PreTrainedTokenizerFast) -> None:
    config = Mamba2Config(
        vocab_size=len(bpe), hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16
    )
    config.n_groups = 1
    model: Any = Mamba2ForCausalLM(config)
    with pytest.raises(ValueError, match="Mamba2ForCausalLM keeps what it remembers"):
        TransformersPolicy(model, bpe, "refine-bare")


@pytest.mark.parametrize("greedy", [True, False])
def test_ids_that_the_tokenizer_does_not_know_are_never_sampled(
    make_kind: MakeKind, bpe: PreTrainedTokenizerFast, greedy: bool
) -> None:
    model = make_kind("cohere", padding=40)
    with torch.no_grad():
        bias = torch.zeros(len(bpe) + 40)
        bias[len(bpe) :] = 1e4
    output_embeddings(model).register_forward_hook(lambda module, given, output: output + bias)
    policy = TransformersPolicy(model, bpe, "refine-bare", greedy=greedy, max_new_tokens=8)
    for turn in policy.act(episodes(TEXTS)):
        assert max(turn.token_ids or ()) < len(bpe)
