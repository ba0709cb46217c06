"""Ports for servers that programs under test start."""

from __future__ import annotations

import random
import socket

_EPHEMERAL = 32_768  # from here on the system hands out ports by itself
_random = random.Random()  # of its own: tests may seed the global one


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on, and that the system gives to no one else meanwhile.

    A port that is bound to 0 and let go can be handed out to any connection before its server
    starts; those below the system's own range cannot.
    """
    found: list[int] = []
    while len(found) < count:
        port = _random.randrange(20_000, _EPHEMERAL)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        if port not in found:
            found.append(port)
    return found


def free_port() -> int:
    """One such port."""
    return free_ports(1)[0]
