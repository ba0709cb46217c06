"""Scoring that starts from the keys and values that sampling left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agents.sampling.sampler import Prefix
from agents.scoring.one_by_one import OneByOneScorer
from agents.scoring.trie_scorer import TrieScorer
from agents.transformers_policy import TransformersPolicy
from igsearch_env.completion import Completion
from igsearch_env.episode import Context, Episode, Question, Segment, Step
from igsearch_env.protocol.tags import TagProtocol

MakeModel = Callable[..., PreTrainedModel]
PROTOCOL = TagProtocol(name="plain", prompt="{question}")
OPENING = Segment("\n<answer>", "system")
QUESTIONS = ["who wrote the book of sand", "lima", "capital of peru river cat", "dog 日本"]
EVERYTHING = 100_000


def new_policy(model: PreTrainedModel, bpe: PreTrainedTokenizerFast) -> TransformersPolicy:
    policy = TransformersPolicy(model, bpe, PROTOCOL, max_new_tokens=9, batch_size=3)
    policy.memory.finished_tokens = EVERYTHING
    return policy


def after(episode: Episode, turn: Completion, documents: str) -> Episode:
    step = Step(
        "search",
        Segment(turn, "policy", turn.token_ids),
        Segment(documents, "document"),
        slice(0, 0),
        slice(0, 0),
    )
    return replace(episode, steps=(*episode.steps, step))


def play(policy: TransformersPolicy, turns: int = 3) -> list[Episode]:
    """Sample turns; one episode ends after each of them, the others read documents."""
    episodes = [
        Episode(Question(f"q{i}", text, ("lima",)), Segment(text, "system"))
        for i, text in enumerate(QUESTIONS)
    ]
    running = list(range(len(episodes)))
    for number in range(turns):
        written = policy.act([episodes[row] for row in running])
        for row, turn in zip(running, written, strict=True):
            episodes[row] = after(episodes[row], turn, f"sand {number} river " * (row + 1))
        running = running[:-1]
    return episodes


def pairs_of(episodes: list[Episode]) -> tuple[list[Context], list[str]]:
    """After every turn: the real documents, others, and none; answers of several kinds."""
    contexts: list[Context] = []
    answers: list[str] = []
    for episode in episodes:
        before: Context = (episode.prompt,)
        for step in episode.steps:
            before = (*before, step.turn)
            assert step.observation is not None
            for documents in (step.observation, Segment("cat dog", "document")):
                contexts += [(*before, documents, OPENING)] * 2
                answers += [" lima", " Zürich and Kōbe"]
            before = (*before, step.observation)
    return contexts, answers


@pytest.mark.parametrize("budget", [None, 40])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_scores_are_the_same_and_less_is_run(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast, family: str, budget: int | None
) -> None:
    model = make_model(family, len(bpe))
    policy = new_policy(model, bpe)
    pairs = pairs_of(play(policy))
    warm = TrieScorer(model, bpe, max_batch_tokens=budget, memory=policy.memory)
    cold = TrieScorer(model, bpe, max_batch_tokens=budget)
    expected = np.concatenate(OneByOneScorer(model, bpe).log_probs(*pairs))
    found = np.concatenate(warm.log_probs(*pairs))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    cold.log_probs(*pairs)
    assert warm.tokens_processed == not_held(policy, pairs) < cold.tokens_processed


def not_held(policy: TransformersPolicy, pairs: tuple[list[Context], list[str]]) -> int:
    """Prefixes that a token follows and that no held sequence begins with, counted plainly."""
    encoded = [policy.tokenizer.encode_scored(*pair)[0] for pair in zip(*pairs, strict=True)]
    prefixes = {tuple(ids[:end]) for ids in encoded for end in range(1, len(ids))}
    held = {ids[:end] for ids, _ in policy.memory.held() for end in range(1, len(ids) + 1)}
    return len(prefixes - held)


def test_what_predicts_an_answer_is_run_even_if_it_is_held(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast
) -> None:
    """The policy has written the opening and the gold answer itself, ids and all."""
    model = make_model("qwen2", len(bpe))
    policy = new_policy(model, bpe)
    ids = tuple(bpe("\n<answer> lima and more river cat")["input_ids"])
    episode = Episode(Question("q", "who", ("lima",)), Segment("who", "system"))
    episode = after(episode, Completion.from_tokens(ids, None, bpe.decode), " sand")
    policy.act([episode])
    pairs: tuple[list[Context], list[str]] = ([(episode.prompt, OPENING)] * 2, [" lima", " cat"])
    held_ids = policy.memory.held()[0][0]
    scored_ids, count = policy.tokenizer.encode_scored(pairs[0][0], " lima")
    assert held_ids[: len(scored_ids)] == tuple(scored_ids)
    scorer = TrieScorer(model, bpe, memory=policy.memory)
    found = np.concatenate(scorer.log_probs(*pairs))
    expected = np.concatenate(OneByOneScorer(model, bpe).log_probs(*pairs))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    _, other = policy.tokenizer.encode_scored(pairs[0][1], " cat")
    # The opening's last token, once, and all tokens of the answers but their last ones.
    assert scorer.tokens_processed == 1 + (count - 1) + (other - 1)


def test_keys_of_old_weights_are_not_used(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama", len(bpe))
    policy = new_policy(model, bpe)
    pairs = pairs_of(play(policy))
    scorer = TrieScorer(model, bpe, memory=policy.memory)
    before = np.concatenate(scorer.log_probs(*pairs))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.7)
    expected = np.concatenate(OneByOneScorer(model, bpe).log_probs(*pairs))
    stale = policy.memory.held
    monkeypatch.setattr(policy.memory, "_check_weights", lambda: None)
    wrong = np.concatenate(scorer.log_probs(*pairs))
    assert stale()  # negative control: without the check they would be used, and be wrong
    assert np.abs(wrong - expected).max() > 0.01
    monkeypatch.undo()
    np.testing.assert_allclose(
        np.concatenate(scorer.log_probs(*pairs)), expected, rtol=0, atol=1e-4
    )
    assert np.abs(before - expected).max() > 0.01
    assert policy.memory.held() == []


def test_only_so_much_of_finished_episodes_is_kept(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast
) -> None:
    model = make_model("qwen2", len(bpe))
    everything = new_policy(model, bpe)
    episodes = play(everything)
    ends = [everything.tokenizer.encode_context(e.transcript)[:3] for e in episodes]
    assert len(everything.memory.held()) == len(episodes)
    latest = everything.memory.held()[1]  # of the two that ended early, the one that did so last
    for budget, count in ((0, 2), (len(latest[1]), 3), (len(latest[1]) - 1, 2)):
        policy = new_policy(model, bpe)
        policy.memory.finished_tokens = budget
        play(policy)
        held = [list(ids[:3]) for ids, _ in policy.memory.held()]
        assert len(held) == count
        assert sorted(held) == sorted(ends[:count])
    everything.memory.clear()
    assert everything.memory.held() == []


def test_a_kept_sequence_does_not_hold_its_batch(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast
) -> None:
    policy = new_policy(make_model("qwen2", len(bpe)), bpe)
    play(policy)
    _, kept = policy.memory.held()[0]
    for keys, values in kept.layers:
        assert keys.shape[0] == values.shape[0] == 1
        assert keys.shape[2] == len(kept)
        assert keys.untyped_storage().nbytes() == keys.numel() * keys.element_size()


def test_what_is_let_go_is_not_copied_first(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []
    alone = Prefix.alone

    def counted(prefix: Prefix) -> Prefix:
        copied.append(len(prefix))
        return alone(prefix)

    monkeypatch.setattr(Prefix, "alone", counted)
    policy = new_policy(make_model("qwen2", len(bpe)), bpe)
    episodes = [
        Episode(Question(f"q{i}", text, ("lima",)), Segment(text, "system"))
        for i, text in enumerate(QUESTIONS)
    ]
    policy.act(episodes)
    policy.memory.finished_tokens = max(len(prefix) for _, prefix in policy.memory.held())
    policy.act(episodes[:1])  # none of the four is continued
    assert 0 < sum(copied) <= policy.memory.finished_tokens


def test_keys_of_another_model_are_refused(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast
) -> None:
    model, other = make_model("qwen2", len(bpe)), make_model("qwen2", len(bpe))
    with pytest.raises(ValueError, match="of another model"):
        TrieScorer(other, bpe, memory=new_policy(model, bpe).memory)
