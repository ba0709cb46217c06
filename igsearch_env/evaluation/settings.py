"""The settings of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from igsearch_env.endpoint import Api
from igsearch_env.settings import EnvironmentSettings

MANNER = ("concurrency", "retries", "timeout", "api_key_variable")
"""Settings of how an endpoint is asked, not of what; they may change when a run is resumed."""

Precision = Literal["float32", "bfloat16-autocast"]
"""What a policy multiplies matrices in; its weights stay in float32."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Everything that an evaluation is made of.

    Args:
        questions: Names or files of the question sets.
        agent: Name of a scripted agent, the folder of a checkpoint, or the address of an
            OpenAI-compatible endpoint.
        corpus: Name or file of the corpus; it may be left out where ``index`` has one.
        index: Folder of a saved index; it is built from the corpus if there is none yet.
        benchmarks: Folder of the benchmarks' files; None for the one that the environment names,
            or else the hub.
        limit: Ask only so many questions of each set, the first ones.
        samples: How many times each question is asked.
        max_new_tokens: Longest turn, in tokens; None for what the checkpoint says, or else 64, and
            512 at an endpoint.
        environment: Fields of :class:`~igsearch_env.settings.EnvironmentSettings` that are to be
            other than those that the checkpoint was trained with, by name, such as ``top_k``. The
            outcome is EM unless it is among them.
        temperature: Of sampling.
        greedy: Take the most likely tokens instead of sampling.
        information_gain: Settle the gain of every search, with the checkpoint's own scorer or, for
            other agents, with a unigram model.
        seed: Seed of sampling, of random queries and of counterfactuals.
        batch_size: Questions that are played side by side; an endpoint has ``concurrency``.
        device: Where a checkpoint runs.
        precision: What a checkpoint multiplies in: ``"float32"`` (the type of its weights), or
            ``"bfloat16-autocast"``.
        threads: Torch threads; 0 for as many as there are free cores.
        model: Name of the endpoint's model; None if it serves only one.
        api: ``"completions"`` or ``"chat"``; see :class:`igsearch_env.endpoint.agent.OpenAIAgent`.
        concurrency: Questions that are played at once at an endpoint.
        retries: How often a request is repeated.
        timeout: Seconds to wait for an answer.
        api_key_variable: Environment variable that holds the endpoint's key, if it needs one.

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
    seed: int = 0
    batch_size: int = 128
    device: str = "cpu"
    precision: Precision = "float32"
    threads: int = 0
    model: str | None = None
    api: Api = "completions"
    concurrency: int = 16
    retries: int = 8
    timeout: float = 600.0
    api_key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        object.__setattr__(self, "questions", tuple(self.questions))
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
        for name in ("limit", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, least in (
            ("batch_size", 1),
            ("samples", 1),
            ("concurrency", 1),
            ("threads", 0),
            ("retries", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("temperature", "timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    @property
    def protocol(self) -> str | None:
        """Name of the tag grammar; None for the checkpoint's own, or else ``"refine"``."""
        return self.environment.get("protocol")

    @property
    def at_endpoint(self) -> bool:
        """Whether the agent is an endpoint."""
        return is_address(self.agent)


def is_address(agent: str) -> bool:
    """Whether an agent is named by an HTTP address."""
    return agent.startswith(("http://", "https://"))


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a resumed evaluation must share: a server may move, and be asked faster."""
    kept = {**settings, **settings.get("environment", {})}
    kept = {name: kept[name] for name in kept if name not in (*MANNER, "environment")}
    if is_address(str(kept.get("agent", ""))):
        kept["agent"] = "an endpoint"
    return kept
