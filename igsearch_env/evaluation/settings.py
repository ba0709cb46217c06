"""The settings of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Literal, get_args

from igsearch_env.endpoint import Api, Dialect, RequestField
from igsearch_env.settings import EnvironmentSettings
from igsearch_env.text import without_logins
from igsearch_env.threads import MAX_THREADS

MANNER = (
    *("concurrency", "retries", "timeout", "api_key_variable", "max_refused", "imports"),
    *("judge", "judge_cache"),
)
"""Settings of how an evaluation is made, not of what; they may change when it is resumed."""

Precision = Literal["auto", "float32", "bfloat16-autocast", "bfloat16"]
"""What a policy multiplies matrices in; in ``"bfloat16"`` its weights are rounded, too."""

MIN_TEMPERATURE = 0.001
"""Logits over less than this would not be finite numbers."""

EndpointScoring = Literal["unigram", Dialect]
"""What scores answers at an endpoint; see :mod:`igsearch_env.endpoint.scorer`."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Everything that an evaluation is made of; ``igsearch evaluate`` has an option for each.

    Args:
        questions: Question sets: benchmarks (``NAME`` or ``NAME:SPLIT``), ``benchmarks`` for all
            seven, ``world-test``, ``world-test:PEOPLE:SEED``, .jsonl or .parquet files, or
            ``hf:REPO``.
        agent: ``direct``, ``search_once``, ``random_query``, ``oracle``, the folder of a
            checkpoint, the name of a model on the Hugging Face hub, the address of an
            OpenAI-compatible endpoint, or a name that :func:`igsearch_env.register_agent` made
            known.
        corpus: ``world``, ``world:PEOPLE:SEED``, a .jsonl or .parquet file, or ``hf:REPO``; it may
            be left out where there is an index.
        index: Folder of a saved index, the address of a retrieval server, or the name of a
            registered retriever; where a folder is empty or missing, BM25 is built from the corpus
            and saved there.
        benchmarks: Folder with ``NAME/SPLIT.jsonl`` or .parquet of the benchmarks (default: that in
            IGSEARCH_BENCHMARKS, or else the Hugging Face hub).
        limit: Ask only the first so many questions of each set.
        samples: How many times each question is asked, for pass@k.
        max_new_tokens: Longest turn, in tokens (default: what the checkpoint says, or else 64, and
            512 at an endpoint).
        environment: Fields of :class:`~igsearch_env.settings.EnvironmentSettings` that are to be
            other than those that the checkpoint was trained with, by name, such as ``top_k``. The
            outcome is EM unless it is among them.
        temperature: Of sampling.
        greedy: Take the most likely tokens instead of sampling.
        information_gain: Compute the information gain of every search, with the checkpoint's own
            scorer or, for other agents, with a unigram model; at an endpoint see ``scorer``.
        scorer: What scores answers at an endpoint: ``unigram``, or the served model itself, by what
            ``vllm``, ``sglang`` or ``llama.cpp`` say of a prompt's tokens. The model's name must be
            a folder, or a name on the Hugging Face hub, with its tokenizer.
        seed: Seed of sampling, of random queries and of counterfactuals.
        batch_size: Questions that are played side by side (an endpoint has a concurrency); after a
            kill they are played again (default: 16 for a checkpoint on a CPU, or else 128).
        device: Where a checkpoint runs, such as ``cuda``.
        precision: What a checkpoint multiplies in: ``float32`` (the type of its weights),
            ``bfloat16-autocast``, or ``bfloat16``, which rounds its weights, too; ``auto`` takes
            ``bfloat16-autocast`` where the device multiplies bfloat16 itself, or else ``float32``.
        threads: Threads of torch; 0 for as many as there are free cores.
        model: Name of the endpoint's model (default: the only one that it serves).
        api: Of the endpoint: completions continues the transcript as it is, chat sends messages.
        concurrency: Questions that are played at once at an endpoint.
        retries: How often a request to the endpoint is repeated.
        timeout: Seconds to wait for an answer of the endpoint.
        api_key_variable: Environment variable that holds the endpoint's key, if it needs one.
        leave_out: Fields of requests that the endpoint does not accept.
        max_refused: Share of the questions that the endpoint may refuse; they count as not
            answered. Above it the evaluation stops.
        imports: Python files, or modules, that are imported first; a resumed evaluation and its
            page import them again.

    Raises:
        ValueError: If a number is out of range, or questions, agent or corpus are missing.
    """

    questions: tuple[str, ...] = ()
    agent: str = ""
    corpus: str | None = None
    index: str | None = None
    benchmarks: str | None = None
    limit: int | None = None
    samples: int = 1
    max_new_tokens: int | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    greedy: bool = False
    information_gain: bool = False
    scorer: EndpointScoring = "unigram"
    seed: int = 0
    batch_size: int | None = None
    device: str = "cpu"
    precision: Precision = "float32"
    threads: int = 0
    model: str | None = None
    api: Api = "completions"
    concurrency: int = 16
    retries: int = 8
    timeout: float = 600.0
    api_key_variable: str = "OPENAI_API_KEY"
    leave_out: tuple[RequestField, ...] = ()
    max_refused: float = 0.05
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("questions", "leave_out", "imports"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, value in (("questions", all(self.questions)), ("agent", self.agent)):
            if not value or not self.questions:
                raise ValueError(f"an evaluation needs {name}; give --{name}")
        if not self.corpus and not self.index:
            raise ValueError("there is nothing to search; give --corpus, or --index of a saved one")
        replace(EnvironmentSettings().rules, **self.environment)  # refuses what does not fit
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}"
            )
        if self.scorer not in get_args(EndpointScoring):
            raise ValueError(
                f"scorer must be one of {', '.join(get_args(EndpointScoring))}, got {self.scorer!r}"
            )
        if self.scorer != "unigram" and not (self.at_endpoint and self.information_gain):
            raise ValueError(
                f"scorer = {self.scorer!r} scores information gain at an endpoint; give an address "
                "as the agent and --information-gain, or leave it out"
            )
        for name in ("limit", "max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, least in (
            ("samples", 1),
            ("concurrency", 1),
            ("threads", 0),
            ("retries", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if strange := set(self.leave_out) - set(get_args(RequestField)):
            raise ValueError(
                f"leave_out may hold {', '.join(get_args(RequestField))}, got {', '.join(strange)}"
            )
        if not 0 <= self.max_refused <= 1:
            raise ValueError(f"max_refused must be from 0 to 1, got {self.max_refused}")
        if self.threads > MAX_THREADS:
            raise ValueError(f"threads must be at most {MAX_THREADS}, got {self.threads}")
        if not MIN_TEMPERATURE <= self.temperature < inf:
            raise ValueError(
                f"temperature must be at least {MIN_TEMPERATURE} and finite, got "
                f"{self.temperature}; --greedy takes the most likely tokens"
            )
        if not 0 < self.timeout < inf:
            raise ValueError(f"timeout must be above 0 and finite, got {self.timeout}")

    @property
    def protocol(self) -> str | None:
        """Name of the grammar; None for the checkpoint's own, or else ``"refine"``."""
        return self.environment.get("protocol")

    @property
    def at_endpoint(self) -> bool:
        """Whether the agent is an endpoint."""
        return is_address(self.agent)


def is_address(agent: str) -> bool:
    """Whether an agent is named by an HTTP address."""
    return agent.startswith(("http://", "https://"))


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a resumed evaluation must share: a server may move, and be asked faster.

    Logins are not among them: they are not written down.
    """
    kept = {**without_logins(settings), **settings.get("environment", {})}
    kept = {name: kept[name] for name in kept if name not in (*MANNER, "environment")}
    if is_address(str(kept.get("agent", ""))):
        kept["agent"] = "an endpoint"
    return kept
