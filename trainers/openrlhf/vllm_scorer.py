"""Scoring answers with a vLLM engine, by the log-probabilities of a prompt's tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.tokenization import SegmentTokenizer
from igsearch_env.gain.prompt_scorer import Pair, PromptScorer, answer_log_probs


class VLLMScorer(PromptScorer):
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
        super().__init__(tokenizer, max_length)
        self.engine, self.loop = engine, loop

    def score(self, pairs: Sequence[Pair]) -> list[NDArray[np.float64] | None]:
        """The log-probabilities of each answer, in order.

        Call it from another thread than the event loop's, which has to go on meanwhile.
        """
        return asyncio.run_coroutine_threadsafe(self._score_all(pairs), self.loop).result()

    async def _score_all(self, pairs: Sequence[Pair]) -> list[NDArray[np.float64] | None]:
        return list(await asyncio.gather(*map(self._score, pairs)))

    async def _score(self, pair: Pair) -> NDArray[np.float64] | None:
        from vllm import SamplingParams

        # Made afresh: with prompt_logprobs set on a copy, vLLM would read its prefix cache.
        asked = SamplingParams(prompt_logprobs=0, max_tokens=1, temperature=1.0, detokenize=False)
        known = (await self.engine.generate(list(pair[0]), asked)).prompt_logprobs
        return answer_log_probs(known, pair)
