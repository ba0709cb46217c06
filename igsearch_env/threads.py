"""How many threads to compute with."""

from __future__ import annotations

import os
import sys

MAX_THREADS = 1024
"""More than any machine has cores; over absurd numbers torch fails without naming them."""


def free_cores() -> int:
    """Cores that this process may use and that nobody keeps busy now; at least 1.

    Two threads on one free core can be ten times slower than one.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, round((allowed or 1) - busy))


def set_threads(threads: int = 0) -> int:
    """Set the threads of torch, if something has loaded it.

    Args:
        threads: How many; 0 for as many as there are free cores.

    Returns:
        How many it is.
    """
    chosen = threads or free_cores()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(chosen)
    return chosen
