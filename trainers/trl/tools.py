"""The environment as tools of TRL's GRPOTrainer; its ``environment_factory``.

Here TRL samples, with its own vLLM where ``use_vllm`` is set, in the model's chat template. The
model calls :meth:`SearchTools.search`, and answers in the tags of the protocol. The engine of
:class:`igsearch_env.SearchQAEnv` carries the calls out and scores the answer, so that the same
queries and answers give the same documents and outcomes. TRL knows one advantage per completion
here, so credit is scalar; :mod:`trainers.trl.rollouts` has one per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset

from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Question

PROMPT = (
    "Answer the question. Search for what you do not know, one query at a time. "
    "Give the answer inside <{answer}> and </{answer}>.\n\nQuestion: {question}"
)


class SearchTools:
    """One episode at a time: TRL resets it for each completion.

    Args:
        engine: The environment's engine (``SearchQAVectorEnv(...).engine``). All instances share
            it; TRL calls one tool at a time.
    """

    def __init__(self, engine: SearchQAEngine) -> None:
        self._engine = engine
        self._questions = {question.id: question for question in engine.questions}

    def reset(self, question_id: str, **row: Any) -> None:
        """Begin an episode.

        Args:
            question_id: The question of the row.
            **row: The other columns.

        Raises:
            ValueError: If the engine has no such question.
        """
        if question_id not in self._questions:
            raise ValueError(
                f"the question {question_id!r} is none of the engine's; make data sets with "
                "tool_prompts(engine)"
            )
        self._episode = self._engine.rules.begin(self._questions[question_id])

    def search(self, query: str) -> str:
        """Search for documents.

        Args:
            query: What to search for.

        Returns:
            The documents that were found, best first.
        """
        if self._episode.finished:
            return "The searches are used up. Answer now."
        return self._play(self._engine.rules.protocol.write_search(query))

    def _play(self, action: str) -> str:
        """Play one turn; returns what the environment writes back."""
        ((self._episode, _),) = self._engine.step([self._episode], [action])
        return "".join(reply.text for reply in self._episode.steps[-1].replies).strip()


def search_tools(engine: SearchQAEngine) -> Callable[[], SearchTools]:
    """TRL's ``environment_factory`` over one engine."""
    return lambda: SearchTools(engine)


def tool_prompts(engine: SearchQAEngine) -> Dataset:
    """A data set for TRL: a message with the question, and its id."""
    answer, escape = engine.rules.protocol.answer, engine.rules.protocol.escape

    def message(question: Question) -> dict[str, str]:
        said = PROMPT.format(answer=answer, question=escape(question.text))
        return {"role": "user", "content": said}

    return Dataset.from_list(
        [{"prompt": [message(one)], "question_id": one.id} for one in engine.questions]
    )


def tool_reward(
    completions: Sequence[list[dict[str, Any]]], environments: Sequence[SearchTools], **others: Any
) -> list[float | None]:
    """TRL's reward function: reads the answer in the last message and returns what was paid.

    The reward is the outcome, with the shaped gains of the searches where
    ``information_gain_weight`` is above 0. It is None for an episode in which a search failed, or
    whose outcome could not be had: TRL learns nothing from it. Without an answer it is what the
    searches were paid.
    """
    rewards: list[float | None] = []
    for messages, tools in zip(completions, environments, strict=True):
        if not tools._episode.finished:
            last = messages[-1]
            tools._play(str(last.get("content") or "") if last["role"] == "assistant" else "")
        episode = tools._episode
        rewards.append(
            None if episode.left_out else float(sum(step.reward for step in episode.steps))
        )
    return rewards
