"""One session: SearchQAEnv behind OpenEnv's interface."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any
from uuid import uuid4

from openenv.core.env_server.interfaces import Environment

from igsearch_env import SearchQAEnv
from igsearch_openenv.models import SearchQAAction, SearchQAObservation, SearchQAState


class SearchQAEnvironment(Environment[SearchQAAction, SearchQAObservation, SearchQAState]):
    """A session's environment.

    Args:
        env: An environment that no other session has. Its questions, retriever and scorer may be
            shared, and are then used by the threads of several sessions at once.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, env: SearchQAEnv) -> None:
        super().__init__()
        self._env = env
        self._episode_id = ""

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        question_id: str | None = None,
        group_id: str = "",
    ) -> SearchQAObservation:
        """Start an episode.

        Args:
            seed: As for ``SearchQAEnv.reset``.
            episode_id: Comes back in the state; a random one by default.
            question_id: A question of the set; a random one by default.
            group_id: Rollouts of one group share it.

        Raises:
            ValueError: If there is no such question.
        """
        options: dict[str, Any] = {"group_id": group_id}
        if question_id is not None:
            asked = (one for one in self._env.engine.questions if one.id == question_id)
            options["question"] = next(asked, None)
            if options["question"] is None:
                raise ValueError(f"the server's set has no question with the id {question_id!r}")
        self._episode_id = episode_id or str(uuid4())
        text, _ = self._env.reset(seed=seed, options=options)  # its info holds the gold answers
        question = self._env.episode.question
        info = {"question_id": question.id, "question": question.text}
        return SearchQAObservation(text=text, info=info, metadata=info)

    def step(
        self, action: SearchQAAction, timeout_s: float | None = None, **_: Any
    ) -> SearchQAObservation:
        """Play one turn; the time limits are those of retriever and scorer.

        Raises:
            RuntimeError: If the episode has ended, or none has begun.
        """
        text, reward, terminated, truncated, info = self._env.step(action.text)
        info = {name: _plain(value) for name, value in info.items()}
        if truncated:
            info["truncated"] = True
        if self._env.episode.finished and self._env.episode.left_out:
            info["left_out"] = True
        return SearchQAObservation(
            text=text,
            info=info,
            metadata=info,
            reward=float(reward),
            done=terminated or truncated,
        )

    @property
    def state(self) -> SearchQAState:
        """The episode so far."""
        episode = self._env.episode
        turns = sum(not step.call for step in episode.steps)
        return SearchQAState(
            episode_id=self._episode_id,
            step_count=turns,
            question_id=episode.question.id,
            question=episode.question.text,
            transcript=[{"source": s.source, "text": s.text} for s in episode.transcript],
            information_gains=list(episode.information_gains),
            outcome=episode.outcome,
            done=episode.finished,
        )


def _plain(value: Any) -> Any:
    """A value of an info as JSON has it."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value
