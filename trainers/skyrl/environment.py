"""A text environment of SkyRL-gym: one conversation is one episode.

:func:`register` makes it known to ``skyrl_gym.make`` under the name ``igsearch``, and :func:`rows`
makes the data set. The engine of :class:`igsearch_env.SearchQAEnv` reads the turns, so the same
questions, seeds and turns give the same transcripts and outcomes. All environments of a process
share one engine with one index.

The reward of a step is what the environment paid for the turn: the outcome, and the shaped gain of
a search where ``information_gain_weight`` is above 0. SkyRL's generator puts it on the last token
of the turn (``GeneratorOutput.rewards``). SkyRL-gym cannot mark an episode in which a search
failed: its metric ``left_out`` is 1, and its outcome is paid as 0.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from json import dumps, loads
from typing import Any

import skyrl_gym
from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput, ConversationType

from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Episode, Question
from igsearch_env.settings import EnvironmentSettings, make_engine

NAME = "igsearch"
"""The name that SkyRL knows the environment by (``env_class``)."""


class _Shared:
    """The engine of a process, which one thread at a time may use."""

    def __init__(self, engine: SearchQAEngine) -> None:
        self.engine = engine
        self.lock = threading.Lock()
        self.questions = {question.id: question for question in engine.questions}


_making = threading.Lock()  # lru_cache alone lets two threads make the same engine


@lru_cache
def _shared(settings: str, scorer: str | None, seed: int) -> _Shared:
    engine = make_engine(scorer=scorer, settings=EnvironmentSettings(**loads(settings)))
    engine.pool.seed(seed)
    return _Shared(engine)


class SearchEnv(BaseTextEnv):  # type: ignore[misc]  # skyrl_gym has no types
    """Plays one episode.

    Args:
        env_config: Not used: SkyRL has no table of settings for environments of others.
        extras: The columns of the row; ``question_id`` names the question.
        settings: Fields of :class:`igsearch_env.settings.EnvironmentSettings`.
        scorer: Scores answers for the gain: ``"unigram"``, or None for no gain.
        seed: Seed of the counterfactual evidence.

    Raises:
        ValueError: If the settings do not hold the question.
    """

    def __init__(
        self,
        env_config: Any = None,
        extras: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, Any],
        scorer: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with _making:
            self._shared = _shared(dumps(settings, sort_keys=True), scorer, seed)
        asked = (extras or {}).get("question_id")
        question = self._shared.questions.get(str(asked))
        if question is None:
            raise ValueError(
                f"the question {asked!r} is not one of the settings; make the data set with "
                "rows(questions) of the same questions"
            )
        self.episode: Episode = self._shared.engine.rules.begin(question)

    def init(self, prompt: ConversationType) -> tuple[ConversationType, dict[str, Any]]:
        """The first messages: the environment's own prompt, whatever the row holds."""
        return [{"role": "user", "content": self.episode.prompt.text}], {}

    def step(self, action: str) -> BaseTextEnvStepOutput:
        """Play one turn.

        Args:
            action: The text of the turn.
        """
        with self._shared.lock:
            ((episode, info),) = self._shared.engine.step([self.episode], [action])
        said = episode.said_since(len(self.episode.steps))
        self.episode = episode
        return BaseTextEnvStepOutput(
            observations=[{"role": "user", "content": said}] if said else [],
            reward=float(episode.steps[-1].reward),
            done=episode.finished,
            metadata=info,
        )

    def get_metrics(self) -> dict[str, Any]:
        """Numbers of a finished episode, which SkyRL averages and logs."""
        gains = [gain for gain in self.episode.information_gains if gain is not None]
        return {
            "em": self.episode.em,
            "f1": self.episode.f1,
            "searches": len(self.episode.searches),
            "truncated": self.episode.truncated,
            "left_out": self.episode.left_out,
            **({"information_gain": sum(gains) / len(gains)} if gains else {}),
        }


def register(settings: Mapping[str, Any], scorer: str | None = None, seed: int = 0) -> None:
    """Make the environment known to SkyRL-gym in this process, under :data:`NAME`.

    Args:
        settings: Fields of :class:`igsearch_env.settings.EnvironmentSettings`.
        scorer: Scores answers for the gain: ``"unigram"``, or None for no gain.
        seed: Seed of the counterfactual evidence.
    """
    EnvironmentSettings(**settings)  # a wrong one is found here, not in the first rollout
    skyrl_gym.register(
        id=NAME,
        entry_point=f"{SearchEnv.__module__}:{SearchEnv.__name__}",
        kwargs={"settings": dict(settings), "scorer": scorer, "seed": seed},
    )


def rows(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """The rows of SkyRL's data set, one per question."""
    return [
        {
            "prompt": [{"role": "user", "content": question.text}],
            "env_class": NAME,
            "question_id": question.id,
        }
        for question in questions
    ]
