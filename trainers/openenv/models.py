"""What goes over the wire: turns of a policy, and what the environment says to them."""

from __future__ import annotations

from typing import Any

from openenv.core.env_server.types import Action, Observation, State
from pydantic import Field

from igsearch_env.spaces import UnicodeText


class SearchQAAction(Action):
    """The text of one turn."""

    text: str = Field(max_length=UnicodeText().max_length, description="A search or an answer.")


class SearchQAObservation(Observation):
    """The new text: the prompt, then documents or a correction.

    ``info`` is that of ``SearchQAEnv.step``, as JSON, and ``metadata`` the same: OpenEnv's server
    leaves ``metadata`` out of what it sends, and the client restores it. ``info`` has ``truncated``
    where the episode has ended without an answer, and ``left_out`` where a trainer should leave the
    episode out, because a search failed or the outcome could not be had.
    """

    text: str
    info: dict[str, Any] = Field(default_factory=dict)


class SearchQAState(State):
    """The episode so far, without the gold answers.

    ``transcript`` holds what was said in order: ``source`` (``policy``, ``document`` or ``system``)
    and ``text``. ``information_gains`` has one entry per search, None where it is not settled.
    """

    question_id: str
    question: str
    transcript: list[dict[str, str]]
    information_gains: list[float | None]
    outcome: float | None
    done: bool
