"""Answers scored by a model behind an endpoint: vLLM, SGLang or llama.cpp."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from igsearch_env.endpoint import Dialect
from igsearch_env.endpoint.client import Endpoint
from igsearch_env.endpoint.errors import EndpointError, RequestRefusedError
from igsearch_env.gain.prompt_scorer import (
    Pair,
    PromptScorer,
    ScoringTokenizer,
    answer_log_probs,
    checked,
)
from igsearch_env.text import clean_text

FORCED = 10_000.0  # added to the logit of a token; it outweighs every other one


class EndpointScorer(PromptScorer):
    """Scores answers with the log-probabilities that a server gives of a prompt's tokens.

    Threads may share one. Where a request fails after the endpoint's retries, or an answer does not
    hold the values of the very tokens that were asked for, the answer has no score: the gain of its
    search is missing, and ``counts`` says how often. If the server cannot be reached, what is left
    of the call is given up too. If not one answer was ever scored, an error is raised.

    vLLM holds the logits of all tokens of a prompt and does not foresee their memory: lower its
    ``--gpu-memory-utilization``.

    Args:
        endpoint: The server: the base of its OpenAI API (``http://HOST:8000/v1``) for vLLM, and
            that of the server itself (``http://HOST:30000``) for SGLang and llama.cpp.
        model: Name of the model; SGLang and llama.cpp have only one.
        tokenizer: The model's tokenizer, such as ``agents.tokenization.SegmentTokenizer``: prompts
            go out as token ids, so that what the policy sampled is scored as it was sampled.
        dialect: What the server speaks.
        max_length: The longest prompt and reply that it takes, in tokens; longer contexts are left
            out beforehand. None to let it refuse them.
        batch: Most prompts in a request (vLLM).
        concurrency: Most requests that are under way at once.

    Attributes:
        counts: ``answers`` to score, ``requests`` that were answered, and ``failed`` answers.
        failure: What was wrong with the answer that failed last; empty if none did.

    Raises:
        ValueError: If an argument is out of range, or the address does not fit the dialect.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        tokenizer: ScoringTokenizer,
        *,
        dialect: Dialect = "vllm",
        max_length: int | None = None,
        batch: int = 16,
        concurrency: int = 8,
    ) -> None:
        if dialect not in get_args(Dialect):
            raise ValueError(f"dialect must be one of {get_args(Dialect)}, got {dialect!r}")
        if batch < 1 or concurrency < 1 or (max_length is not None and max_length < 2):
            raise ValueError(
                "a scorer needs batch and concurrency of at least 1 and max_length of at least 2, "
                f"got {batch}, {concurrency} and {max_length}"
            )
        if dialect != "vllm" and endpoint.url.endswith("/v1"):
            raise ValueError(
                f"{dialect} scores at its own API: give the address of the server without /v1, got "
                f"{endpoint.url}"
            )
        super().__init__(tokenizer, max_length)
        self.endpoint, self.model, self.dialect = endpoint, model, dialect
        self.batch = batch if dialect == "vllm" else 1
        self.concurrency = concurrency
        self.counts: Counter[str] = Counter()
        self.failure = ""
        self._lock = threading.Lock()

    def score(self, pairs: Sequence[Pair]) -> list[NDArray[np.float64] | None]:
        """The log-probabilities of each answer, in order; None where there are none.

        Raises:
            EndpointError: If no answer could be scored, in this call and in all before.
        """
        parts = [pairs[at : at + self.batch] for at in range(0, len(pairs), self.batch)]
        gone = threading.Event()
        if len(parts) < 2:
            found = [self._part(part, gone) for part in parts]
        else:
            with ThreadPoolExecutor(min(self.concurrency, len(parts))) as threads:
                found = list(threads.map(lambda part: self._part(part, gone), parts))
        scores = [one for part in found for one in part]
        with self._lock:
            self.counts["answers"] += len(scores)
            self.counts["failed"] += sum(one is None for one in scores)
            if scores and self.counts["failed"] == self.counts["answers"]:
                raise EndpointError(
                    f"{self.endpoint.url} scored no answer ({self.failure}); see that it runs, "
                    f"that it is {self.dialect}, and that it serves {self.model!r}"
                )
        return scores

    def summary(self) -> str:
        """The counts in one line, with the reason of the last failure."""
        c = self.counts
        said = (
            f"scorer: {c['answers']:,} answers in contexts, {c['requests']:,} requests, "
            f"{c['failed']:,} failed"
        )
        return f"{said}; the last because {self.failure}" if self.failure else said

    def _part(
        self, pairs: Sequence[Pair], gone: threading.Event
    ) -> list[NDArray[np.float64] | None]:
        """The scores of the prompts of one request."""
        if gone.is_set():
            return [None] * len(pairs)
        try:
            if self.dialect == "vllm":
                return self._vllm(pairs)
            return [self._sglang(p) if self.dialect == "sglang" else self._llama(p) for p in pairs]
        except EndpointError as error:
            gone.set()
            self._failed(str(error))
        except RequestRefusedError as error:
            if len(pairs) > 1:  # one of them may be too long, which is no reason to lose the rest
                return [one for pair in pairs for one in self._part([pair], gone)]
            self._failed(str(error))
        return [None] * len(pairs)

    def _vllm(self, pairs: Sequence[Pair]) -> list[NDArray[np.float64] | None]:
        answer = self._post(
            "/completions",
            {
                "model": self.model,
                "prompt": [list(ids) for ids, _ in pairs],
                "prompt_logprobs": 0,
                "max_tokens": 1,
                "temperature": 1.0,
            },
            "choices",
        )
        choices = answer.get("choices")
        choices = choices if isinstance(choices, list) else []
        tables = {
            choice["index"]: choice.get("prompt_logprobs")
            for choice in choices
            if isinstance(choice, dict) and isinstance(choice.get("index"), int)
        }
        return [
            self._known(answer_log_probs(tables.get(place), pair))
            for place, pair in enumerate(pairs)
        ]

    def _sglang(self, pair: Pair) -> NDArray[np.float64] | None:
        ids, count = pair
        answer = self._post(
            "/generate",
            {
                "input_ids": list(ids),
                "sampling_params": {"max_new_tokens": 1, "temperature": 1.0},
                "return_logprob": True,
                "logprob_start_len": len(ids) - count - 1,
            },
            "meta_info",
        )
        told = answer.get("meta_info")
        rows = told.get("input_token_logprobs") if isinstance(told, dict) else None
        rows = rows[-count:] if isinstance(rows, list) else []
        pairs = [row for row in rows if isinstance(row, list) and len(row) > 1]
        if [row[1] for row in pairs] != list(ids[-count:]):
            return self._known(None)
        return self._known(checked([row[0] for row in pairs]))

    def _llama(self, pair: Pair) -> NDArray[np.float64] | None:
        ids, count = pair
        values = []
        for at in range(len(ids) - count, len(ids)):
            answer = self._post(
                "/completion",
                {
                    "prompt": list(ids[:at]),
                    "n_predict": 1,
                    "n_probs": 1,
                    "post_sampling_probs": False,
                    "logit_bias": [[ids[at], FORCED]],
                    "temperature": 0.0,
                    "cache_prompt": True,
                },
                "completion_probabilities",
            )
            rows = answer.get("completion_probabilities")
            row = rows[0] if isinstance(rows, list) and rows else None
            if not isinstance(row, dict) or row.get("id") != ids[at]:
                return self._known(None)
            values.append(row.get("logprob"))
        return self._known(checked(values))

    def _post(self, path: str, body: dict[str, Any], field: str) -> dict[str, Any]:
        answer = self.endpoint.post(path, body, field)
        with self._lock:
            self.counts["requests"] += 1
        return answer

    def _known(self, found: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        if found is None:
            self._failed("its answer does not hold the log-probs of the tokens that were asked for")
        return found

    def _failed(self, reason: str) -> None:
        with self._lock:
            self.failure = clean_text(reason)
