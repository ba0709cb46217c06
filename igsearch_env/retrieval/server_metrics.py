"""What a retrieval server has done, in Prometheus' text format."""

from __future__ import annotations

from igsearch_env.extras import extra

with extra("serve"):
    from prometheus_client import (
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        ProcessCollector,
        generate_latest,
    )

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class ServerMetrics:
    """The counts of one server, and what its process takes.

    Attributes:
        queries: Queries by the dialect that they came in.
        batch_queries: Queries of the batches that were searched.
        waiting: Queries that wait now.
        ready: 1 once the index is loaded.
        loads: How often an index was loaded, by outcome (done, failed).
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, CPU seconds; on Linux
        self._requests = Counter(
            "igsearch_requests", "Requests by status", ["status"], registry=self._registry
        )
        self._seconds = Histogram(
            "igsearch_request_seconds",
            "Time to answer a request",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.queries = Counter(
            "igsearch_queries", "Queries by dialect", ["dialect"], registry=self._registry
        )
        self.batch_queries = Histogram(
            "igsearch_batch_queries",
            "Queries that were searched together",
            buckets=BATCHES,
            registry=self._registry,
        )
        self.waiting = Gauge("igsearch_waiting_queries", "Queries waiting", registry=self._registry)
        self.loads = Counter(
            "igsearch_loads", "Loadings of the index", ["outcome"], registry=self._registry
        )
        self.ready = Gauge("igsearch_ready", "Whether the index is loaded", registry=self._registry)

    def observe_request(self, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def text(self) -> str:
        """All counts, for ``GET /metrics``."""
        return generate_latest(self._registry).decode()
