"""Stands in for verl's client of vLLM servers where there is no GPU.

What ``generate`` takes and gives back is as with verl's vLLM server.
"""

from __future__ import annotations

from typing import Any

from verl.workers.rollout.replica import TokenOutput

from tests.token_sampler import TokenSampler


class PolicyServer(TokenSampler):
    """Samples with a transformers model."""

    async def generate(
        self,
        request_id: str,
        *,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        priority: int = 0,
    ) -> TokenOutput:
        extra: dict[str, Any] = {"min_global_steps": 3, "max_global_steps": 3}
        if sampling_params.get("prompt_logprobs") is not None:
            picked = self.prompt_log_probs(prompt_ids)
            extra["prompt_logprobs"] = [*([value] for value in picked), [0.0]]
            extra["prompt_ids"] = [*([token] for token in prompt_ids[1:]), [0]]
        ids, log_probs = self.sample(
            prompt_ids,
            sampling_params["max_tokens"],
            sampling_params["temperature"],
            sampling_params.get("stop", []),
        )
        return TokenOutput(
            token_ids=ids,
            log_probs=log_probs if sampling_params.get("logprobs") else None,
            stop_reason="completed",
            extra_fields=extra,
        )
