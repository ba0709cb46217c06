"""Episodes as tensors: what is aligned with what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from agents.inference import decoder
from agents.tokenization import SegmentTokenizer
from agents.transformers_policy import TransformersPolicy
from igsearch_env.completion import Completion
from igsearch_env.episode import Episode, Question, Segment
from trainers.local.token_batch import TokenBatch, episode_tokens, policy_log_probs

QUESTION = Question("q", "what is the home of Allia Ashby ?", ("Delmora",))


def ids_and_log_probs(episode: Episode) -> tuple[list[int], list[float]]:
    """What the policy wrote, as the steps tell it."""
    ids = [i for step in episode.steps for i in step.turn.token_ids or ()]
    return ids, [value for step in episode.steps for value in step.log_probs or ()]


def one_by_one(
    policy: TransformersPolicy, episode: Episode, temperature: float
) -> tuple[list[float], list[float]]:
    """Log-probs and entropies of policy tokens: an unpadded pass, then a loop over positions."""
    ids: list[int] = []
    places: list[int] = []
    for segment in episode.transcript:
        piece = policy.tokenizer.encode_context((segment,))
        if segment.source == "policy":
            places += range(len(ids), len(ids) + len(piece))
        ids += piece
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    log_probs, entropies = [], []
    for place in places:
        distribution = torch.log_softmax(logits[place - 1].double() / temperature, dim=-1)
        log_probs.append(float(distribution[ids[place]]))
        entropies.append(-sum(float(p) * float(p.exp()) for p in distribution))
    return log_probs, entropies


def segment(turn: Completion) -> Segment:
    return Segment(str(turn), "policy", turn.token_ids)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_that_were_sampled(
    make_policy: Callable[..., TransformersPolicy], sampled: list[Episode], temperature: float
) -> None:
    policy = make_policy(temperature=temperature, seed=1)
    turns = policy.act([replace(e, steps=(), answer=None, terminated=False) for e in sampled])
    episodes = [
        replace(e, steps=(replace(e.steps[0], turn=segment(turn), log_probs=turn.log_probs),))
        for e, turn in zip(sampled, turns, strict=True)
    ]
    batch = TokenBatch.from_episodes(episodes, policy.tokenizer)
    with torch.no_grad():
        found, _ = policy_log_probs(policy.model, batch, temperature)
    expected = [value for turn in turns for value in turn.log_probs or ()]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_log_probs_of_whole_episodes_are_those_that_were_sampled(
    make_policy: Callable[..., TransformersPolicy], sampled: list[Episode]
) -> None:
    policy = make_policy()
    batch = TokenBatch.from_episodes(sampled, policy.tokenizer)
    with torch.no_grad():
        found, _ = policy_log_probs(policy.model, batch)
    expected = [value for episode in sampled for value in ids_and_log_probs(episode)[1]]
    assert len(found) == len(expected) == sum(episode.policy_tokens for episode in sampled)
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_padding_changes_nothing(
    make_policy: Callable[..., TransformersPolicy], sampled: list[Episode], temperature: float
) -> None:
    policy = make_policy()
    episodes = sampled[:6]
    batch = TokenBatch.from_episodes(episodes, policy.tokenizer)
    assert len({len(episode_tokens(e, policy.tokenizer)[0]) for e in episodes}) > 1
    with torch.no_grad():
        log_probs, entropy = policy_log_probs(policy.model, batch, temperature)
    alone = [one_by_one(policy, episode, temperature) for episode in episodes]
    assert log_probs.tolist() == pytest.approx([v for row, _ in alone for v in row], abs=1e-4)
    assert entropy.tolist() == pytest.approx([v for _, row in alone for v in row], abs=1e-3)


def test_the_masks_say_who_wrote_what(sampled: list[Episode], tokenizer: SegmentTokenizer) -> None:
    batch = TokenBatch.from_episodes(sampled, tokenizer)
    for row, episode in enumerate(sampled):
        length = len(episode_tokens(episode, tokenizer)[0])
        assert not batch.input_ids[row, length:].any()
        chosen = batch.input_ids[row][batch.policy_mask[row]]
        assert chosen.tolist() == ids_and_log_probs(episode)[0]
        text = tokenizer.decode(batch.input_ids[row, :length].tolist())
        assert text == "".join(segment.text for segment in episode.transcript)
        others = [i for i in range(length) if not batch.policy_mask[row, i]]
        left = tokenizer.decode(batch.input_ids[row, others].tolist())
        assert left == "".join(s.text for s in episode.transcript if s.source != "policy")


def test_spread_is_aligned_with_log_probs(
    make_policy: Callable[..., TransformersPolicy], sampled: list[Episode]
) -> None:
    """Each value names its episode and token; they must come out where that token is scored."""
    policy = make_policy()
    batch = TokenBatch.from_episodes(sampled, policy.tokenizer)
    names = [
        1000.0 * row + np.arange(e.policy_tokens, dtype=np.float64) for row, e in enumerate(sampled)
    ]
    spread = batch.spread(names)
    rows, columns = batch.policy_mask.nonzero(as_tuple=True)
    assert (spread // 1000).tolist() == rows.tolist()
    for value, row, column in zip(spread.tolist(), rows.tolist(), columns.tolist(), strict=True):
        ids, _ = ids_and_log_probs(sampled[row])
        assert int(batch.input_ids[row, column]) == ids[int(value) % 1000]


@pytest.mark.parametrize("change", [-1, 1])
def test_spread_refuses_what_does_not_fit(
    sampled: list[Episode], tokenizer: SegmentTokenizer, change: int
) -> None:
    batch = TokenBatch.from_episodes(sampled, tokenizer)
    values = [np.zeros(episode.policy_tokens) for episode in sampled]
    values[2] = np.zeros(sampled[2].policy_tokens + change)
    with pytest.raises(ValueError, match="one per policy token"):
        batch.spread(values)


def test_only_policy_tokens_have_a_gradient(
    make_policy: Callable[..., TransformersPolicy], sampled: list[Episode]
) -> None:
    """The hidden state that predicts a token of a document gets nothing."""
    policy = make_policy()
    batch = TokenBatch.from_episodes(sampled[:4], policy.tokenizer)
    kept: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        kept.append(output.last_hidden_state)

    handle = decoder(policy.model).register_forward_hook(keep)
    log_probs, entropy = policy_log_probs(policy.model, batch)
    handle.remove()
    assert not entropy.requires_grad
    log_probs.sum().backward()
    gradient = kept[0].grad
    assert gradient is not None
    predicts = gradient.abs().sum(-1) > 0  # (B, T)
    assert torch.equal(predicts[:, :-1], batch.policy_mask[:, 1:])
    assert not predicts[:, -1].any()


def test_a_turn_without_ids_is_refused(
    written: Callable[..., Episode], tokenizer: SegmentTokenizer
) -> None:
    good = written(QUESTION, ["<search> Allia home </search>", "<answer> Delmora </answer>"])
    bad = written(QUESTION, ["<answer> Delmora </answer>"], tokens=False)
    assert TokenBatch.from_episodes([good], tokenizer).policy_mask.sum() == good.policy_tokens
    with pytest.raises(ValueError, match="question 'q' has no token ids"):
        TokenBatch.from_episodes([good, bad], tokenizer)
