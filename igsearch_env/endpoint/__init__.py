"""Agents behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from typing import Literal

Api = Literal["completions", "chat"]
"""``"completions"`` continues a text, ``"chat"`` a conversation."""
RequestField = Literal["max_tokens", "stop", "seed", "temperature"]
"""Fields of a request that not every server accepts."""
Dialect = Literal["vllm", "sglang", "llama.cpp"]
"""How a server gives the log-probabilities of a prompt's tokens.

- ``"vllm"``: ``prompt_logprobs`` of ``/v1/completions``. vLLM does not use its prefix cache for
  such requests; several prompts go in one request.
- ``"sglang"``: ``input_token_logprobs`` of ``/generate``, from the token before the answer on, so
  that the prefix cache serves what comes before. One prompt a request, neighbours one after
  another.
- ``"llama.cpp"``: its server gives values of generated tokens only. So each token of an answer is a
  request of its own to ``/completion``, after all tokens before it (which the cache holds), with a
  bias that forces the token. The value that it reports is that of the model without the bias.
"""
