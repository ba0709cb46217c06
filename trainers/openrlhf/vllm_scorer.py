"""Scoring answers with a vLLM engine, by the log-probabilities of a prompt's tokens."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.tokenization import SegmentTokenizer
from igsearch_env.gain.prompt_scorer import Pair, answer_log_probs
from trainers.server_rollouts import ServerScorer


class VLLMScorer(ServerScorer):
    """Scores answers with an engine of vLLM.

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
        super().__init__(tokenizer, loop, max_length)
        self.engine = engine

    async def score_one(self, pair: Pair) -> NDArray[np.float64] | None:
        """The log-probabilities of one answer; None if the engine gave none."""
        from vllm import SamplingParams

        # Made afresh: with prompt_logprobs set on a copy, vLLM would read its prefix cache.
        asked = SamplingParams(prompt_logprobs=0, max_tokens=1, temperature=1.0, detokenize=False)
        known = (await self.engine.generate(list(pair[0]), asked)).prompt_logprobs
        return answer_log_probs(known, pair)
