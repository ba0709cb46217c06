from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, PreTrainedModel

from agents.scoring.flops import (
    QWEN25_3B,
    ModelShape,
    RolloutShape,
    Work,
    one_by_one,
    padded,
    transcript,
    trie,
    update_flops,
)

MakeModel = Callable[..., PreTrainedModel]
ROLLOUT = RolloutShape(2, 2, prompt=5, query=2, documents=4, refinement=3, opening=2, answer=3)
ROLLOUTS = [
    ROLLOUT,
    replace(ROLLOUT, searches=1),
    replace(ROLLOUT, searches=4, counterfactuals=5),
    replace(ROLLOUT, refinement=0, answer=1),
]
SHAPE = ModelShape(3, 32, 4, 2, 8, 48, 50)


@pytest.fixture
def model(make_model: MakeModel) -> PreTrainedModel:
    """Of the shape ``SHAPE``; eager, so that torch's counter sees every matrix product."""
    return make_model("llama", 50, attn_implementation="eager")


def counted(work: Callable[[], Any]) -> int:
    """What torch counts, the angles of rotary embeddings aside."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    angles = [
        sum(operations.values())
        for module, operations in counter.get_flop_counts().items()
        if module.endswith("rotary_emb")
    ]
    return int(counter.get_total_flops()) - sum(angles)


def make_contexts(rollout: RolloutShape) -> list[list[int]]:
    """Ids of all contexts with their answers; no id occurs twice but in shared prefixes."""
    fresh = count(1)

    def new(tokens: int) -> list[int]:
        return [next(fresh) for _ in range(tokens)]

    history, found = new(rollout.prompt), []
    for _ in range(rollout.searches):
        history = history + new(rollout.query)
        branches = [history + new(rollout.evidence) for _ in range(1 + rollout.counterfactuals)]
        found += [branch + new(rollout.scored) for branch in branches]
        history = branches[0]
    return found


def test_a_padded_pass_takes_what_torch_counts(model: PreTrainedModel) -> None:
    width = max(map(len, make_contexts(ROLLOUT)))
    ids = torch.ones(ROLLOUT.contexts, width, dtype=torch.long)
    full = counted(lambda: model(input_ids=ids, use_cache=False))
    assert padded(ROLLOUT).flops(SHAPE) == full
    kept = ROLLOUT.answer + 1
    part = counted(lambda: model(input_ids=ids, use_cache=False, logits_to_keep=kept))
    assert padded(ROLLOUT, full_logits=False).flops(SHAPE) == part < full


def test_a_causal_pass_takes_what_torch_counts(model: PreTrainedModel) -> None:
    """Token by token, nothing is computed that causality would hide."""
    length = ROLLOUT.length(ROLLOUT.searches - 1)

    def run() -> None:
        cache = DynamicCache()
        for _ in range(length):
            model(input_ids=torch.tensor([[1]]), past_key_values=cache)

    work = transcript(ROLLOUT)
    assert replace(work, logits=length).flops(SHAPE) == counted(run)


@pytest.mark.parametrize("rollout", ROLLOUTS)
def test_tokens_and_pairs_are_those_of_the_contexts(rollout: RolloutShape) -> None:
    contexts = make_contexts(rollout)
    lengths = [len(ids) for ids in contexts]
    answers = len(contexts) * rollout.answer
    prefixes = {tuple(ids[:end]) for ids in contexts for end in range(1, len(ids))}
    assert trie(rollout) == Work(len(prefixes), sum(map(len, prefixes)), answers)
    alone = one_by_one(rollout)
    assert alone.tokens == sum(lengths)
    assert alone.pairs == sum(end for length in lengths for end in range(1, length + 1))
    assert alone.logits == padded(rollout, full_logits=False).logits == answers + len(contexts)
    wide = padded(rollout)
    assert wide.tokens == wide.logits == len(contexts) * max(lengths)
    assert wide.pairs == len(contexts) * max(lengths) ** 2


def test_the_published_model_and_the_prototypes_tokens() -> None:
    weights = QWEN25_3B.token_flops / 2 + QWEN25_3B.vocabulary * QWEN25_3B.hidden
    assert 3.0e9 < weights < 3.1e9  # 3.09 billion with norms and biases
    rollout = RolloutShape(searches=5)
    assert padded(rollout).tokens == 70_160
    assert one_by_one(rollout).tokens == 43_760
    assert trie(rollout).tokens == 12_640
    cost = trie(rollout).flops(QWEN25_3B)
    assert update_flops(rollout, QWEN25_3B) == 5 * transcript(rollout).flops(QWEN25_3B) > cost
