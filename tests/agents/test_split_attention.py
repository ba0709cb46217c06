from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agents.scoring import split_attention
from agents.scoring.one_by_one import OneByOneScorer
from agents.scoring.split_attention import attend
from agents.scoring.trie_scorer import TrieScorer
from igsearch_env.episode import Context

MakeModel = Callable[..., PreTrainedModel]
PATHS = ["_in_parts", "_at_once"]


@pytest.fixture(params=PATHS)
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CPU does, and what other devices do."""
    monkeypatch.setattr(split_attention, "_in_parts", getattr(split_attention, request.param))


def plain(query: Tensor, key: Tensor, value: Tensor, padding: list[int]) -> Tensor:
    """Attention by loops over rows, heads and tokens, shape (B, Q, heads, D)."""
    rows, heads, new, size = query.shape
    past, groups = key.shape[2] - new, heads // key.shape[1]
    result = torch.empty(rows, new, heads, size)
    for row in range(rows):
        for head in range(heads):
            for token in range(new):
                seen = slice(padding[row], past + token + 1)
                keys, values = (part[row, head // groups, seen] for part in (key, value))
                weights = torch.softmax(keys @ query[row, head, token] / size**0.5, dim=0)
                result[row, token, head] = weights @ values
    return result


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize(
    ("past", "padding"), [(0, [0, 0, 0]), (7, [0, 0, 0]), (7, [3, 0, 6]), (1, [0, 0, 0])]
)
@pytest.mark.parametrize("new", [1, 5])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_it_equals_loops(past: int, padding: list[int], new: int, kv_heads: int) -> None:
    torch.manual_seed(0)
    query = 3 * torch.randn(3, 4, new, 8)
    key, value = torch.randn(2, 3, kv_heads, past + new, 8)
    mask = torch.zeros(3 if any(padding) else 1, 1, 1, past)
    for row, count in enumerate(padding[: len(mask)]):
        mask[row, ..., :count] = torch.finfo(mask.dtype).min
    result, weights = attend(nn.Identity(), query, key, value, mask)
    assert weights is None
    torch.testing.assert_close(result, plain(query, key, value, padding))
    half = [tensor.bfloat16() for tensor in (query, key, value, mask)]
    rounded, _ = attend(nn.Identity(), *half, scaling=8**-0.5)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), result, rtol=0.05, atol=0.05)


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("family", ["qwen2", "mistral"])
def test_scores_are_exact_on_either_path(
    make_model: MakeModel,
    bpe: PreTrainedTokenizerFast,
    scoring_load: tuple[list[Context], list[str]],
    family: str,
) -> None:
    model = make_model(family, len(bpe))
    expected = torch.cat([*map(torch.tensor, OneByOneScorer(model, bpe).log_probs(*scoring_load))])
    found = torch.cat([*map(torch.tensor, TrieScorer(model, bpe).log_probs(*scoring_load))])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_model_keeps_its_own_attention(
    make_model: MakeModel,
    bpe: PreTrainedTokenizerFast,
    scoring_load: tuple[list[Context], list[str]],
) -> None:
    model = make_model("llama", len(bpe))
    scorer = TrieScorer(model, bpe)
    expected = scorer.log_probs(*scoring_load)
    model.config._attn_implementation = "flash_attention_2"  # this machine could not run it
    found = TrieScorer(model, bpe).log_probs(*scoring_load)
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))
    assert model.config._attn_implementation == "flash_attention_2"
    with pytest.raises(RuntimeError, match="oops"), split_attention.split_attention(model):
        raise RuntimeError("oops")
    assert model.config._attn_implementation == "flash_attention_2"


@pytest.mark.parametrize("option", ["softcap", "s_aux", "position_bias"])
def test_additions_to_attention_are_refused(option: str) -> None:
    tensors = torch.zeros(3, 1, 1, 1, 8)
    options = {option: 30.0}
    with pytest.raises(ValueError, match=f"Identity adds {option}"):
        attend(nn.Identity(), *tensors, torch.zeros(1, 1, 1, 0), **options)
    attend(nn.Identity(), *tensors, torch.zeros(1, 1, 1, 0), **{option: None})
