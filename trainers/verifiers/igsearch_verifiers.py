"""The environment in verifiers v1: a taskset, its rewards, and the conversation that earns them.

An episode of verifiers is one of the environment's. The engine of
:class:`igsearch_env.SearchQAEnv` plays the user: its prompt opens the conversation, a reply of the
model is a turn, and documents or a correction are the next message. So the same questions, seeds
and replies give the same transcripts and outcomes. A worker has one engine with one index, and the
searches of episodes that run side by side are made together.

What arrives: the outcome as the reward ``outcome``, the information gain of each search in the
metrics ``information_gain`` (its mean) and in ``trace.info["igsearch"]``. A model behind an
endpoint gives no log-probs of answers, so the gain is that of the scorer named in the settings.
An episode in which a search failed, or that could not be scored, ends with an error, so that
verifiers leaves it out or plays it again (``--env.retries``).

    vf-eval igsearch-verifiers -m MODEL --client.base-url http://localhost:8000/v1
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf
from openai import AsyncOpenAI
from pydantic import Field
from verifiers.v1.dialects.chat import message_to_wire

from igsearch_env.endpoint.agent import open_action
from igsearch_env.episode import Episode, Question
from igsearch_env.play_batcher import PlayBatcher
from igsearch_env.settings import EnvironmentSettings, make_engine

__all__ = ["SearchEnv", "SearchHarness", "SearchTaskset"]

KEY = "igsearch"
"""Where ``trace.info`` keeps what the environment found out."""


class SearchData(vf.TaskData):
    """A question. It is no prompt: the environment writes that itself."""

    question: str
    golden_answers: tuple[str, ...]


class SearchTask(vf.Task[SearchData]):
    """What a finished conversation is paid, and what is reported of it."""

    @vf.reward
    async def outcome(self, trace: vf.Trace) -> float:
        """The outcome that the environment paid, shaped gains included where they have a weight."""
        paid: float = trace.info[KEY]["reward"]
        return paid

    @vf.metric
    async def episode(self, trace: vf.Trace) -> dict[str, float]:
        """Exact match, F1, searches, and the mean gain of the searches that have one."""
        found = trace.info[KEY]
        gains = [gain for gain in found["information_gains"] if gain is not None]
        return {
            **{name: found[name] for name in ("em", "f1", "truncated")},
            "searches": len(found["information_gains"]),
            **({"information_gain": sum(gains) / len(gains)} if gains else {}),
        }


class SearchConfig(vf.TasksetConfig):
    """Options ``--env.taskset.*``."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """Fields of ``igsearch_env.settings.EnvironmentSettings``, such as ``questions``, ``retriever``
    and ``max_searches``."""
    scorer: str | None = None
    """Scores answers for the gain: ``unigram``, or None for no gain."""


class SearchTaskset(vf.Taskset[SearchTask, SearchConfig]):
    """The questions of the settings, one task each."""

    def __init__(self, config: SearchConfig) -> None:
        super().__init__(config)
        settings = EnvironmentSettings(**config.settings)
        self.engine = make_engine(scorer=config.scorer, settings=settings)

    def load(self) -> Iterator[SearchTask]:
        """One task for each question."""
        for question in self.engine.questions:
            data = SearchData(
                id=question.id, question=question.text, golden_answers=question.golden_answers
            )
            yield SearchTask(data, self.config.task)


class SearchHarness(vf.Harness[vf.HarnessConfig]):
    """Asks the model for one turn at a time, within this process: there is no program to run."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        """Ask for the next turn of the conversation; verifiers records it in the trace."""
        system, said = self.resolve_prompt(data)
        messages = [{"role": "system", "content": system}] if system else []
        messages += [message_to_wire(message) for message in said or ()]
        async with AsyncOpenAI(base_url=endpoint, api_key=secret, max_retries=0) as client:
            await client.chat.completions.create(model=ctx.model, messages=messages)
        return vf.ProgramResult(0, "", "")


class SearchEnvConfig(vf.EnvConfig):
    """Options ``--env.*``."""

    policy: vf.AgentConfig = vf.AgentConfig(
        harness={"id": "igsearch-verifiers"}, runtime=vf.SubprocessConfig()
    )
    stops: bool = True
    """Whether requests say where a turn ends (``stop``, and ``include_stop_str_in_output``, which
    vLLM and SGLang know). Without it the model may write on after its action; the environment
    ignores what follows, but the conversation keeps it."""
    seed: int = 0
    """Seed of the counterfactual evidence."""


class SearchEnv(vf.Env[SearchEnvConfig]):
    """Plays the user of each conversation."""

    def __init__(self, config: SearchEnvConfig) -> None:
        super().__init__(config)
        self.engine = self.taskset.engine
        self.engine.pool.seed(config.seed)
        self.batcher = PlayBatcher(self.engine)
        self.questions = {question.id: question for question in self.engine.questions}
        if config.stops:
            given = config.policy.sampling or vf.SamplingConfig()
            sampling = vf.SamplingConfig(
                stop=list(self.engine.rules.protocol.stop),
                include_stop_str_in_output=True,
                **given.model_dump(exclude_unset=True),
            )
            policy = config.policy.model_copy(update={"sampling": sampling})
            self.config = config.model_copy(update={"policy": policy})

    async def run(self, task: SearchTask, agents: vf.Agents) -> None:
        """Play one episode.

        Raises:
            RuntimeError: If a search failed or the outcome could not be had, so that nothing is
                learned from the episode.
        """
        question: Question = self.questions[task.data.id]
        episode = self.engine.rules.begin(question)
        said = episode.prompt.text
        async with agents.policy.interaction(task) as interaction:
            while not (episode.finished or episode.left_out):
                segment = await interaction.turn(said)
                if segment.terminated:
                    raise RuntimeError(f"the conversation ended early: {segment}")
                before = len(episode.steps)
                episode = await self.batcher.play(episode, self._reply(interaction.trace))
                said = "".join(one.text for step in episode.steps[before:] for one in step.replies)
            if episode.left_out:
                raise RuntimeError(
                    "a search failed, or the outcome could not be had; the episode does not count"
                )
            interaction.trace.info[KEY] = summary(episode)

    def _reply(self, trace: vf.Trace) -> str:
        """The model's last message as it is, its closing tag included."""
        text = next(node.message.content for node in reversed(trace.nodes) if node.sampled) or ""
        return text + open_action(self.engine.rules.protocol, text)


def summary(episode: Episode) -> dict[str, Any]:
    """What ``trace.info["igsearch"]`` holds of a finished episode."""
    return {
        "reward": sum(step.reward for step in episode.steps),
        "rewards": [step.reward for step in episode.steps],
        "answer": episode.answer,
        "em": episode.em,
        "f1": episode.f1,
        "truncated": float(episode.truncated),
        "queries": [step.query for step in episode.searches],
        "documents": [[document.id for document in step.documents] for step in episode.searches],
        "information_gains": list(episode.information_gains),
    }
