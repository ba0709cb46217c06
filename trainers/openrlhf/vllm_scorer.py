"""Scoring answers with a vLLM engine, by the log-probabilities of a prompt's tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.tokenization import SegmentTokenizer
from igsearch_env.episode import Context


class VLLMScorer:
    """Scores each answer with a request of its own, which yields one token and throws it away.

    vLLM does not use its prefix cache for such requests, and gives values at temperature 1. It does
    not foresee the memory of the logits of all prompt tokens: lower ``gpu_memory_utilization``.

    Args:
        engine: What has ``async generate(prompt_token_ids, sampling_params)``, such as OpenRLHF's
            rollout actor.
        tokenizer: The policy's tokenizer.
        loop: The running event loop that the engine belongs to.
        max_length: The longest prompt and reply that the engine takes, in tokens.
    """

    def __init__(
        self,
        engine: Any,
        tokenizer: SegmentTokenizer,
        loop: asyncio.AbstractEventLoop,
        max_length: int,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.loop = loop
        self.max_length = max_length
        self.vocabulary_size = len(tokenizer)

    def fits(self, contexts: Sequence[Context], answers: Sequence[str]) -> list[bool]:
        """For each context with its answer, whether the engine can read it and reply to it."""
        pairs, _ = self.tokenizer.encode_all_scored(contexts, answers)
        return [len(ids) < self.max_length for ids, _ in pairs]

    def log_probs(
        self, contexts: Sequence[Context], answers: Sequence[str]
    ) -> list[NDArray[np.float64]]:
        """Score ``answers[i]`` as the continuation of ``contexts[i]``.

        Call it from another thread than the event loop's, which has to go on meanwhile.

        Returns:
            One array per pair, shape (answer tokens,), in nats, at temperature 1.
        """
        pairs, _ = self.tokenizer.encode_all_scored(contexts, answers)
        scored = asyncio.run_coroutine_threadsafe(self._score_all(pairs), self.loop)
        return scored.result()

    async def _score_all(self, pairs: list[tuple[list[int], int]]) -> list[NDArray[np.float64]]:
        return list(await asyncio.gather(*(self._score(ids, count) for ids, count in pairs)))

    async def _score(self, ids: list[int], count: int) -> NDArray[np.float64]:
        from vllm import SamplingParams

        # Made afresh: with prompt_logprobs set on a copy, vLLM would read its prefix cache.
        asked = SamplingParams(prompt_logprobs=0, max_tokens=1, temperature=1.0, detokenize=False)
        known = (await self.engine.generate(ids, asked)).prompt_logprobs
        first = len(ids) - count
        return np.array([known[at][ids[at]].logprob for at in range(first, len(ids))])
