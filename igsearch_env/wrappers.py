"""Wrappers for algorithms that want the whole transcript as the observation.

An observation of the environment is the new text only. That is all that an agent needs who keeps
what it saw before; for others the text so far is the state. In a managed context (see
:attr:`igsearch_env.episode.Episode.context`) it is what the policy is to see, not all that was.
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import NDArray

from igsearch_env.env import SearchQAEnv
from igsearch_env.episode import Episode
from igsearch_env.vector_env import SearchQAVectorEnv


class TranscriptObservation(gymnasium.ObservationWrapper[str, str, str], RecordConstructorArgs):
    """The whole transcript in place of the new text: prompt, turns as kept, and replies.

    Args:
        env: A :class:`SearchQAEnv`, wrapped or not.

    Raises:
        TypeError: If there is another environment inside.

    >>> env = TranscriptObservation(SearchQAEnv())
    >>> prompt, _ = env.reset(seed=0)
    >>> observation, *_ = env.step("<search> Lima </search> dropped")
    >>> observation.startswith(prompt + "<search> Lima </search>")
    True
    """

    def __init__(self, env: gymnasium.Env[str, str]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        if not isinstance(env.unwrapped, SearchQAEnv):
            raise TypeError(f"expected a SearchQAEnv inside, got {type(env.unwrapped).__name__}")
        self._inner = env.unwrapped

    def observation(self, observation: str) -> str:
        """The transcript of the episode so far."""
        return _text(self._inner.episode)


class VectorTranscriptObservation(VectorWrapper[Any, Any, Any, Any, NDArray[Any]]):
    """The whole transcript of each row; a row that has ended keeps its last one.

    ``final_obs`` of ``autoreset_mode="SameStep"`` is the whole transcript, too. (Gymnasium's own
    ``VectorObservationWrapper`` refuses that mode.)

    Args:
        env: A :class:`SearchQAVectorEnv`, wrapped or not.

    Raises:
        TypeError: If there is another environment inside.
    """

    def __init__(self, env: VectorEnv[tuple[str, ...], Any, NDArray[Any]]) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, SearchQAVectorEnv):
            raise TypeError(
                f"expected a SearchQAVectorEnv inside, got {type(env.unwrapped).__name__}"
            )
        self._inner = env.unwrapped

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start episodes; rows that were left alone give their transcripts, too."""
        _, infos = self.env.reset(seed=seed, options=options)
        return self._texts(), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Play one turn of every row that has not ended."""
        _, rewards, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            for row, episode in self._inner.final_episodes.items():
                infos["final_obs"][row] = _text(episode)
        return self._texts(), rewards, terminated, truncated, infos

    def _texts(self) -> tuple[str, ...]:
        return tuple(map(_text, self._inner.episodes))


def _text(episode: Episode) -> str:
    return "".join(segment.text for segment in episode.context)
