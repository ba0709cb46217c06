"""Samples tokens with a transformers model, one request at a time, as an inference server does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class TokenSampler:
    """Samples with a seed of its own; at temperature 0 it takes the most likely tokens."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def sample(
        self, prompt: Sequence[int], room: int, temperature: float, stop: Sequence[str]
    ) -> tuple[list[int], list[float]]:
        """Ids up to a stop string, which is kept, and their log-probabilities."""
        output = self.model(torch.tensor([prompt]), use_cache=True)
        ids: list[int] = []
        log_probs: list[float] = []
        while len(ids) < room:
            logits = output.logits[0, -1]
            table = (logits / (temperature or 1.0)).log_softmax(-1)
            token = (
                int(torch.multinomial(table.exp(), 1, generator=self.generator))
                if temperature
                else int(table.argmax())
            )
            ids.append(token)
            log_probs.append(float(table[token]))
            text = self.tokenizer.decode(ids)
            if token == self.tokenizer.eos_token_id or any(end in text for end in stop):
                break
            output = self.model(
                torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True
            )
        return ids, log_probs

    @torch.no_grad()
    def prompt_log_probs(self, prompt: Sequence[int]) -> list[float]:
        """The log-probability of each token of a prompt but the first."""
        table = self.model(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
        picked: list[float] = table.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
        return picked
