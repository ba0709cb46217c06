"""What a retrieval server accepts. Apart from the server, so that no web framework is needed."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class ServerLimits:
    """What a server accepts; all limits of a server stand here.

    Args:
        batch: Queries that are searched together, at most. A request with more is searched in
            parts, in turn with the other requests. 1 searches every query by itself.
        max_queries: Queries per request.
        max_characters: Characters per query.
        max_k: Documents per query.
        max_documents: Queries of a request times documents per query.
        max_bytes: Size of a request.
        max_header_bytes: Size of its head: address and header fields.
        max_seconds: Time for a request to arrive as a whole, and for its answer to be read.
        max_waiting: Queries that wait at once; further ones are refused with status 503.
        max_connections: Connections at once. A further one takes the place of the one that has
            been open longest without a whole request; where every one has a whole request, it is
            refused with status 503.

    Raises:
        ValueError: If one of them is less than 1.
    """

    batch: int = 32
    max_queries: int = 1024
    max_characters: int = 8192
    max_k: int = 100
    max_documents: int = 16_384
    max_bytes: int = 8 << 20
    max_header_bytes: int = 32 << 10
    max_seconds: float = 30.0
    max_waiting: int = 8192
    max_connections: int = 1024

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 1 <= value < inf:
                raise ValueError(f"the limit {name} must be at least 1 and finite, got {value}")
