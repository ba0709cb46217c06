"""Scoring with a vLLM engine, for which a transformers model stands in, and locally."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from agents.scoring.one_by_one import OneByOneScorer
from agents.transformers_policy import TransformersPolicy
from igsearch_env.episode import Segment
from trainers.openrlhf.vllm_scorer import VLLMScorer

STANDINS = Path(__file__).resolve().parents[1] / "openrlhf" / "standins"


class Engine:
    """Gives the log-probs of a prompt as vLLM does: a table by token id, and None for the first."""

    def __init__(self, model: Any) -> None:
        self.model, self.prompts = model, 0

    async def generate(self, ids: list[int], asked: Any) -> Any:
        assert (asked.prompt_logprobs, asked.max_tokens, asked.temperature) == (0, 1, 1.0)
        self.prompts += 1
        with torch.no_grad():
            table = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        rows = [{t: SimpleNamespace(logprob=float(table[i, t]))} for i, t in enumerate(ids[1:])]
        return SimpleNamespace(prompt_logprobs=[None, *rows])


def test_it_equals_the_local_scorer(
    make_policy: Callable[..., TransformersPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(STANDINS))
    policy = make_policy()
    engine, loop = Engine(policy.model), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        scorer = VLLMScorer(engine, policy.tokenizer, loop, max_length=40)
        asked, opening = Segment("Question: capital of Peru?", "system"), Segment("<a>", "system")
        contexts = [(asked, opening), (asked, Segment(" Lima .", "document"), opening)] * 2
        answers = [" Lima", " Rome in Italy", " Lima", " Lima"]
        found = scorer.log_probs(contexts, answers)
        expected = OneByOneScorer(policy.model, policy.tokenizer).log_probs(contexts, answers)
        for one, other in zip(found, expected, strict=True):
            assert one is not None
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
        assert engine.prompts == 3  # what is there twice is scored once
        assert scorer.fits(contexts, answers) == [True] * 4
        assert scorer.fits(contexts[:1], [" Lima" * 40]) == [False]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
