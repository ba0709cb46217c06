"""Stands in for verl's client of vLLM servers where there is no GPU.

Tokens are sampled by a transformers model, one request at a time. What ``generate`` takes and gives
back is as with verl's vLLM server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl.workers.rollout.replica import TokenOutput


class PolicyServer:
    """Samples with a seed of its own; at temperature 0 it takes the most likely tokens."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.generator = torch.Generator().manual_seed(seed)
        self.asked: list[dict[str, Any]] = []

    @torch.no_grad()
    async def generate(
        self,
        request_id: str,
        *,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        priority: int = 0,
    ) -> TokenOutput:
        self.asked.append(sampling_params)
        output = self.model(torch.tensor([prompt_ids]), use_cache=True)
        extra: dict[str, Any] = {"min_global_steps": 3, "max_global_steps": 3}
        if sampling_params.get("prompt_logprobs") is not None:
            table = output.logits[0, :-1].log_softmax(-1)
            picked = table.gather(1, torch.tensor(prompt_ids[1:])[:, None])[:, 0].tolist()
            extra["prompt_logprobs"] = [*([value] for value in picked), [0.0]]
            extra["prompt_ids"] = [*([token] for token in prompt_ids[1:]), [0]]
        ids: list[int] = []
        log_probs: list[float] = []
        greedy = not sampling_params["temperature"]
        while len(ids) < sampling_params["max_tokens"]:
            logits = output.logits[0, -1]
            table = (logits if greedy else logits / sampling_params["temperature"]).log_softmax(-1)
            token = (
                int(table.argmax())
                if greedy
                else int(torch.multinomial(table.exp(), 1, generator=self.generator))
            )
            ids.append(token)
            log_probs.append(float(table[token]))
            text = self.tokenizer.decode(ids)
            stops = sampling_params.get("stop", [])
            if token == self.tokenizer.eos_token_id or any(stop in text for stop in stops):
                break
            output = self.model(
                torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True
            )
        return TokenOutput(
            token_ids=ids,
            log_probs=log_probs if sampling_params.get("logprobs") else None,
            stop_reason="completed",
            extra_fields=extra,
        )
