from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.tokenization import SegmentTokenizer
from igsearch_env.rollout import collect
from scripts.benchmarks.scoring import make_model
from scripts.benchmarks.training_cost import (
    DOCUMENT,
    DictatedPolicy,
    main,
    make_engine_of_words,
    train_step,
)
from trainers.local.token_batch import TokenBatch, policy_log_probs
from trainers.warm_start.tiny_policy import build_tokenizer


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_step_is_real_training() -> None:
    seconds, episodes, parameters = train_step(layers=1, hidden=128, searches=2, rollouts=2)
    assert list(seconds) == ["rollout", "retrieval", "information gain", "update"]
    assert min(seconds.values()) > 0
    assert parameters > 4e6
    for episode in episodes:
        assert episode.terminated
        assert len(episode.searches) == 2
        assert None not in episode.information_gains
        assert all(step.refinement.text for step in episode.steps[1:])
        for step in episode.searches:
            assert [len(document.text.split()) for document in step.documents] == [DOCUMENT] * 3
            assert all(evidence.refinement.text for evidence in step.counterfactuals)
            assert len(step.counterfactuals) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--hidden", "100"), "--hidden must be a multiple of 128, got 100"),
        pytest.param(
            ("--device", "cuda"),
            "--device cuda needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_cannot_run_is_refused(
    flags: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["bench", "--out", str(tmp_path), *flags]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(ValueError, match=message):
        main()


def test_dictated_tokens_have_the_models_log_probs() -> None:
    model, tokenizer = make_model(1, 128), SegmentTokenizer(build_tokenizer())
    engine = make_engine_of_words(searches=1)
    policy = DictatedPolicy(model, tokenizer, searches=1)
    episodes = collect(engine, policy, engine.questions[:2])
    sampled = [log_prob for e in episodes for s in e.steps for log_prob in s.log_probs or ()]
    with torch.no_grad():
        expected, _ = policy_log_probs(model, TokenBatch.from_episodes(episodes, tokenizer))
    np.testing.assert_allclose(sampled, expected, atol=1e-4)
