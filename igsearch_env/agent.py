"""What an agent is, and agents that programs know by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from igsearch_env.completion import Completion
from igsearch_env.episode import Episode
from igsearch_env.protocol.tags import TagProtocol


class Agent(Protocol):
    """Writes the next turn of each episode."""

    def act(self, episodes: Sequence[Episode]) -> list[Completion]:
        """Write one turn per episode.

        Args:
            episodes: Unfinished episodes, with everything that happened so far.

        Returns:
            One completion per episode, in the same order.
        """
        ...


AgentMaker = Callable[[str, TagProtocol, int], Agent]
"""Makes an agent from the name that was asked for, the tag grammar, and a seed."""
AGENTS: dict[str, AgentMaker] = {}
"""Agents that ``igsearch evaluate`` knows by name; :func:`register_agent` adds to it."""


def register_agent(name: str) -> Callable[[AgentMaker], AgentMaker]:
    """Decorator that makes an agent of your own known to ``igsearch evaluate --agent NAME``.

    The decorated function is called with the whole name that was asked for, of which ``name`` is
    what stands before the first colon, with the tag grammar and with a seed.

    Raises:
        ValueError: If the name is taken, or holds a colon.

    >>> @register_agent("curious")
    ... def make_curious(name: str, protocol: TagProtocol, seed: int) -> Agent:
    ...     from igsearch_env.baselines import RandomQueryAgent
    ...     return RandomQueryAgent(protocol, searches=int(name.partition(":")[2]), seed=seed)
    >>> from igsearch_env.protocol.tags import PROTOCOLS
    >>> AGENTS["curious"]("curious:4", PROTOCOLS["refine"], 0).searches
    4
    """
    if name in AGENTS or ":" in name:
        raise ValueError(f"an agent needs a new name without a colon, got {name!r}")

    def register(make: AgentMaker) -> AgentMaker:
        AGENTS[name] = make
        return make

    return register
