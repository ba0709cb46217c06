"""The client of the server in ``server``."""

from __future__ import annotations

from typing import Any

from openenv.core.client_types import StepResult
from openenv.core.env_client import EnvClient

from igsearch_openenv.models import SearchQAAction, SearchQAObservation, SearchQAState


class SearchQAClient(EnvClient[SearchQAAction, SearchQAObservation, SearchQAState]):
    """A session of its own with the server; ``.sync()`` gives one for code without async.

    ``reset`` takes ``seed``, ``episode_id``, ``question_id`` (a question of the server's set;
    a random one otherwise) and ``group_id``.
    """

    def _step_payload(self, action: SearchQAAction) -> dict[str, Any]:
        payload: dict[str, Any] = action.model_dump()
        return payload

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[SearchQAObservation]:
        fields = payload["observation"]
        reward, done = payload["reward"], payload["done"]
        observation = SearchQAObservation(
            **fields, metadata=fields["info"], reward=reward, done=done
        )
        return StepResult(observation, reward, done)

    def _parse_state(self, payload: dict[str, Any]) -> SearchQAState:
        return SearchQAState(**payload)
