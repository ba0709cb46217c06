"""Stands in for vLLM's engine where there is no GPU: the part that OpenRLHF's actors call.

Tokens are sampled by a transformers model, one request after another. What the engine takes and
gives back (token ids, stop strings, log-probabilities, weights by broadcast) is as in vLLM.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

__version__ = "0.29.0"


@dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: list[str] = field(default_factory=list)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    detokenize: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None


class AsyncEngineArgs:
    def __init__(self, **options: Any) -> None:
        self.options = options


class AsyncLLMEngine:
    def __init__(self, options: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(options["seed"])
        path = options["model"]
        dtype = getattr(torch, options["dtype"])
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.running = 0
        self.turn = asyncio.Lock()
        self.output_processor = SimpleNamespace(get_num_unfinished_requests=lambda: self.running)

    @classmethod
    def from_engine_args(cls, args: AsyncEngineArgs) -> AsyncLLMEngine:
        return cls(args.options)

    async def is_sleeping(self) -> bool:
        return False

    async def sleep(self, level: int = 1) -> None:
        pass

    async def wake_up(self, tags: list[str] | None = None) -> None:
        pass

    async def pause_generation(self, mode: str) -> None:
        await self.turn.acquire()

    async def resume_generation(self) -> None:
        self.turn.release()

    async def reset_prefix_cache(self) -> None:
        pass

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[None]:
        async with self.turn:
            await asyncio.to_thread(getattr(self, f"_{method}"), *args)
        return [None]

    def _init_process_group(self, host: str, port: int, rank: int, size: int, *_: Any) -> None:
        from openrlhf.utils.distributed_util import stateless_init_process_group

        self.group = stateless_init_process_group(host, port, rank, size, "cpu")

    def _update_weight(self, name: str, dtype: Any, shape: Any, empty_cache: bool) -> None:
        assert dtype == self.model.dtype
        weight = torch.empty(tuple(shape), dtype=dtype)
        self.group.broadcast(weight, src=0)
        with torch.no_grad():
            self.model.get_parameter(name).copy_(weight)

    async def generate(
        self, prompt: dict[str, Any], params: SamplingParams, request_id: str
    ) -> AsyncIterator[Any]:
        self.running += 1
        try:
            async with self.turn:
                yield await asyncio.to_thread(self._answer, prompt["prompt_token_ids"], params)
        finally:
            self.running -= 1

    @torch.no_grad()
    def _answer(self, prompt: list[int], params: SamplingParams) -> Any:
        output = self.model(torch.tensor([prompt]), use_cache=True)
        known = None
        if params.prompt_logprobs is not None:
            log_probs = output.logits[0, :-1].float().log_softmax(-1)
            picked = log_probs.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
            known = [None, *(_table(t, p) for t, p in zip(prompt[1:], picked, strict=True))]
        ids: list[int] = []
        tables = []
        reason, text = "length", ""
        while len(ids) < params.max_tokens:
            log_probs = (output.logits[0, -1].float() / params.temperature).log_softmax(-1)
            token = int(torch.multinomial(log_probs.exp(), 1))
            ids.append(token)
            tables.append(_table(token, float(log_probs[token])))
            text = self.tokenizer.decode(ids)
            ended = token == self.tokenizer.eos_token_id
            if ended or any(stop in text for stop in params.stop):
                reason = "stop"
                break
            output = self.model(
                torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True
            )
        sampled = SimpleNamespace(
            token_ids=ids,
            text=self.tokenizer.decode(ids),
            finish_reason=reason,
            # The string that stopped it, as vLLM says; None at an end-of-sequence token.
            stop_reason=next((s for s in params.stop if s in text), None),
            logprobs=None if params.logprobs is None else tables,
        )
        return SimpleNamespace(outputs=[sampled], prompt_logprobs=known)


def _table(token: int, log_prob: float) -> dict[int, Any]:
    return {token: SimpleNamespace(logprob=log_prob)}
