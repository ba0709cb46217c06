"""The plain scorer: one context at a time. The oracle that faster scorers are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agents.inference import check_length, evaluating, max_positions
from agents.tokenization import SegmentTokenizer, as_segment_tokenizer
from igsearch_env.episode import Context


class OneByOneScorer:
    """Scores each answer by a forward pass of its own: no padding, no cache, no mask.

    It works with every causal language model, at the price of reading a shared prefix again for
    each context.

    Args:
        model: A causal language model; its weights at the time of the call are used.
        tokenizer: Its tokenizer.
        autocast: Type that matrices are multiplied in; None for that of the weights.

    Attributes:
        vocabulary_size: Number of tokens that the tokenizer knows.
        longest: Tokens that the model reads at most.
        tokens_processed: Tokens run by the last call.

    Raises:
        ValueError: If the tokenizer is not a fast one or does not fit the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast | SegmentTokenizer,
        *,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = as_segment_tokenizer(tokenizer)
        self.tokenizer.check_fits(model)
        self.autocast = autocast
        self.vocabulary_size = len(self.tokenizer)
        self.longest: float = max_positions(model) or math.inf
        self.tokens_processed = 0

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def fits(self, contexts: Sequence[Context], answers: Sequence[str]) -> list[bool]:
        """For each context with its answer, whether the model can read it."""
        pairs, _ = self.tokenizer.encode_all_scored(contexts, answers)
        return [len(ids) <= self.longest for ids, _ in pairs]

    def log_probs(
        self, contexts: Sequence[Context], answers: Sequence[str]
    ) -> list[NDArray[np.float64]]:
        """Score ``answers[i]`` as the continuation of ``contexts[i]``.

        Args:
            contexts: Segments in reading order, the last of them the answer's opening tag.
            answers: What follows the opening tag.

        Returns:
            One array per pair, shape (answer tokens,), in nats, at temperature 1.

        Raises:
            ValueError: If an answer has no tokens or a context is longer than the model reads.
        """
        pairs, longest = self.tokenizer.encode_all_scored(contexts, answers)
        check_length(self.model, longest)
        self.tokens_processed = sum(len(ids) for ids, _ in pairs)
        with evaluating(self.model, self.autocast):
            return [self._score(ids, count) for ids, count in pairs]

    def _score(self, ids: list[int], count: int) -> NDArray[np.float64]:
        tokens = torch.tensor([ids], device=self.model.device)  # (1, T)
        output = self.model(input_ids=tokens, use_cache=False, logits_to_keep=count + 1)
        logits = output.logits[0, :-1].float()  # (count, V): what precedes each answer token
        log_probs = torch.log_softmax(logits, dim=-1)
        chosen = log_probs.gather(1, tokens[0, -count:, None])[:, 0]  # (count,)
        return np.asarray(chosen.double().cpu().numpy())
