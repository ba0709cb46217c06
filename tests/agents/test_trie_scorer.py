from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agents.inference import decoder
from agents.scoring import trie_forward
from agents.scoring.one_by_one import OneByOneScorer
from agents.scoring.trie_scorer import TrieScorer
from igsearch_env.episode import Context, Segment
from igsearch_env.testing import check_scorer

Load = tuple[list[Context], list[str]]
Scores = list[NDArray[np.float64]]
MakeModel = Callable[..., PreTrainedModel]
OPENING = Segment("\n<answer>", "system")


def largest_difference(left: Scores, right: Scores) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_it_equals_the_oracle(
    make_model: MakeModel,
    bpe: PreTrainedTokenizerFast,
    scoring_load: Load,
    family: str,
    attention: str,
) -> None:
    model = make_model(family, len(bpe), attn_implementation=attention)
    fast, slow = TrieScorer(model, bpe), OneByOneScorer(model, bpe)
    expected = slow.log_probs(*scoring_load)
    assert {len(scores) for scores in expected} > {1}  # answers of one token and of more
    assert largest_difference(fast.log_probs(*scoring_load), expected) < 1e-4
    assert fast.vocabulary_size == slow.vocabulary_size == len(bpe)


def test_the_oracle_equals_the_models_own_loss(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast, scoring_load: Load
) -> None:
    model = make_model("qwen3", len(bpe))
    scorer = OneByOneScorer(model, bpe)
    context, answer = scoring_load[0][5], scoring_load[1][4]
    ids, count = scorer.tokenizer.encode_scored(context, answer)
    labels = torch.tensor([[-100] * (len(ids) - count) + ids[-count:]])
    with torch.no_grad():
        loss = float(model(input_ids=torch.tensor([ids]), labels=labels).loss)
    assert -scorer.log_probs([context], [answer])[0].mean() == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_each_unique_token_is_run_once_whatever_the_batches(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast, scoring_load: Load, family: str
) -> None:
    model = make_model(family, len(bpe))
    scorer = TrieScorer(model, bpe)
    expected = scorer.log_probs(*scoring_load)
    sequences = [
        scorer.tokenizer.encode_scored(context, answer)[0]
        for context, answer in zip(*scoring_load, strict=True)
    ]
    followed = {tuple(ids[:end]) for ids in sequences for end in range(1, len(ids))}
    for budget in (1, 50, 300, 2_000):
        small = TrieScorer(model, bpe, max_batch_tokens=budget)
        assert largest_difference(small.log_probs(*scoring_load), expected) < 1e-5
        assert small.tokens_processed == scorer.tokens_processed == len(followed)
    backwards = scorer.log_probs(scoring_load[0][::-1], scoring_load[1][::-1])
    assert largest_difference(backwards[::-1], expected) < 1e-5


def test_logits_may_be_read_off_in_parts(
    make_model: MakeModel,
    bpe: PreTrainedTokenizerFast,
    scoring_load: Load,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scorer = TrieScorer(make_model("qwen2", len(bpe)), bpe)
    expected = scorer.log_probs(*scoring_load)
    monkeypatch.setattr(trie_forward, "_LOGITS_AT_ONCE", 3 * len(bpe))
    assert largest_difference(scorer.log_probs(*scoring_load), expected) < 1e-5


def test_the_models_mode_is_restored_and_dropout_is_off(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast, scoring_load: Load
) -> None:
    model = make_model("qwen2", len(bpe), attention_dropout=0.5)
    contexts, answers = scoring_load[0][:4], scoring_load[1][:4]
    expected = TrieScorer(model, bpe).log_probs(contexts, answers)
    model.train()
    model.get_input_embeddings().eval()
    for scorer in (TrieScorer(model, bpe), OneByOneScorer(model, bpe)):
        assert largest_difference(scorer.log_probs(contexts, answers), expected) < 1e-5
        assert model.training
        assert not model.get_input_embeddings().training
    assert all(parameter.grad_fn is None for parameter in model.parameters())


def test_it_sees_new_weights(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast, scoring_load: Load
) -> None:
    model = make_model("llama", len(bpe))
    scorer = TrieScorer(model, bpe)
    before = scorer.log_probs(*scoring_load)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    after = scorer.log_probs(*scoring_load)
    assert largest_difference(after, before) > 0.1
    assert largest_difference(after, OneByOneScorer(model, bpe).log_probs(*scoring_load)) < 1e-4


def test_nothing_to_score(make_model: MakeModel, bpe: PreTrainedTokenizerFast) -> None:
    scorer = TrieScorer(make_model("llama", len(bpe)), bpe)
    assert scorer.log_probs([], []) == []
    assert scorer.tokens_processed == 0


def test_one_token_before_an_answer_of_one_token(
    make_model: MakeModel, wordlevel: PreTrainedTokenizerFast
) -> None:
    model = make_model("mistral", len(wordlevel))
    pairs = [(OPENING,)] * 3, [" lima", " peru", " lima"]
    fast, slow = TrieScorer(model, wordlevel), OneByOneScorer(model, wordlevel)
    assert largest_difference(fast.log_probs(*pairs), slow.log_probs(*pairs)) < 1e-5
    assert fast.tokens_processed == 0 + 1  # the opening tag, once for all three


WINDOWS = {
    "mistral": {"sliding_window": 12},
    "qwen2": {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
}


@pytest.mark.parametrize("family", WINDOWS)
def test_a_window_shorter_than_a_context_is_refused(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast, scoring_load: Load, family: str
) -> None:
    model = make_model(family, len(bpe), **WINDOWS[family])
    with pytest.raises(ValueError, match="OneByOneScorer"):
        TrieScorer(model, bpe).log_probs(*scoring_load)


@pytest.mark.parametrize("family", WINDOWS)
def test_a_window_as_long_as_the_contexts_is_exact(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast, scoring_load: Load, family: str
) -> None:
    tokenizer = OneByOneScorer(make_model(family, len(bpe)), bpe).tokenizer
    pairs = zip(*scoring_load, strict=True)
    longest = max(len(tokenizer.encode_scored(*pair)[0]) for pair in pairs)
    model = make_model(family, len(bpe), **{**WINDOWS[family], "sliding_window": longest})
    fast, slow = TrieScorer(model, bpe), OneByOneScorer(model, bpe)
    assert largest_difference(fast.log_probs(*scoring_load), slow.log_probs(*scoring_load)) < 1e-4
    narrow = make_model(family, len(bpe), **WINDOWS[family])
    other = OneByOneScorer(narrow, bpe).log_probs(*scoring_load)
    assert largest_difference(other, slow.log_probs(*scoring_load)) > 0.1  # windows do matter


@pytest.mark.parametrize("scorer_class", [TrieScorer, OneByOneScorer])
def test_a_context_beyond_the_models_positions_is_refused_before_any_work(
    make_model: MakeModel,
    bpe: PreTrainedTokenizerFast,
    scorer_class: type[TrieScorer | OneByOneScorer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model("llama", len(bpe), max_position_embeddings=20)
    scorer = scorer_class(model, bpe)
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: pytest.fail("work was done"))
    monkeypatch.setattr(decoder(model), "forward", lambda *args, **kwargs: pytest.fail("work"))
    long = (Segment("lima " * 30, "document"), OPENING)
    with pytest.raises(ValueError, match="at most 20"):
        scorer.log_probs([(Segment("a", "system"), OPENING), long], [" a", " b"])


def test_a_context_that_just_fits_the_models_positions_is_scored(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast
) -> None:
    context = (Segment("lima " * 5, "document"), OPENING)
    length = len(
        OneByOneScorer(make_model("llama", len(bpe)), bpe).tokenizer.encode_scored(context, " a")[0]
    )
    for positions, fits in ((length, True), (length - 1, False)):
        model = make_model("llama", len(bpe), max_position_embeddings=positions)
        assert TrieScorer(model, bpe).fits([context], [" a"]) == [fits]


def test_models_that_cannot_be_run_exactly_are_refused(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama", len(bpe))
    monkeypatch.setattr(model, "_supports_attention_backend", False)
    with pytest.raises(ValueError, match="OneByOneScorer"):
        TrieScorer(model, bpe)
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    with pytest.raises(ValueError, match="OneByOneScorer"):
        TrieScorer(make_model("llama", len(bpe), rope_parameters=scaling), bpe)


def test_logits_changed_after_the_output_embedding_are_refused(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast
) -> None:
    model = make_model("llama", len(bpe))
    model.register_forward_hook(
        lambda module, args, output: setattr(output, "logits", output.logits.tanh())
    )
    with pytest.raises(ValueError, match="in a way that is not known here"):
        TrieScorer(model, bpe)


def test_arguments_are_checked(make_model: MakeModel, bpe: PreTrainedTokenizerFast) -> None:
    model = make_model("llama", len(bpe))
    with pytest.raises(ValueError, match="max_batch_tokens"):
        TrieScorer(model, bpe, max_batch_tokens=0)
    with pytest.raises(ValueError, match="largest id"):
        TrieScorer(make_model("llama", len(bpe) - 1), bpe)
    with pytest.raises(ValueError, match="shorter"):
        TrieScorer(model, bpe).log_probs([(OPENING,)], [])


@pytest.mark.parametrize("scorer_class", [TrieScorer, OneByOneScorer])
def test_they_keep_the_promises_of_a_scorer(
    make_model: MakeModel,
    bpe: PreTrainedTokenizerFast,
    scorer_class: type[TrieScorer | OneByOneScorer],
) -> None:
    check_scorer(scorer_class(make_model("llama", len(bpe), max_position_embeddings=2048), bpe))
