"""The Hugging Face hub, where it cannot be reached."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from igsearch_env.extras import import_extra


@contextmanager
def without_waiting(name: str, extra: str = "data") -> Iterator[bool]:
    """Let the libraries of the hub read their cache only, if the hub cannot be reached.

    They would try again for minutes otherwise.

    Args:
        name: What is about to be loaded; nothing is done for a file or folder that is there.
        extra: The extra that brings the hub's library.

    Yields:
        Whether only the cache is read.
    """
    if Path(name).exists():
        yield False
        return
    hub = import_extra("huggingface_hub", extra)
    places: list[Any] = [hub.constants]
    if "datasets" in sys.modules:  # it has a variable of its own
        places.append(sys.modules["datasets"].config)
    before = [place.HF_HUB_OFFLINE for place in places]
    offline = any(before) or not _reachable(hub)
    try:
        for place in places:
            place.HF_HUB_OFFLINE = offline
        yield offline
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _reachable(hub: Any) -> bool:
    """Whether the hub answers at all within seconds; what it answers does not matter."""
    try:
        hub.utils.get_session().head(hub.constants.ENDPOINT, timeout=5)
    except Exception as error:  # of the HTTP library that the installed hub library uses
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & {"TransportError", "ConnectionError", "Timeout", "OSError"}:
            return False
        raise
    return True
