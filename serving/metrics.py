"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

#: The media type of `Metrics.text`.
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Counters and histograms of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "onceflow_http_requests", "Requests answered.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "onceflow_http_seconds", "Time to answer.", ["route"], registry=self._registry, buckets=_SECONDS
        )
        self._entities = Counter(
            "onceflow_entities_read",
            "Entities looked up, by what was found.",
            ["view", "status"],
            registry=self._registry,
        )
        self._predictions = Counter(
            "onceflow_http_predictions", "Predictions made.", ["service"], registry=self._registry
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request of a known route ("other" for the rest)."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def looked_up(self, view: str, statuses: Mapping[str, int]) -> None:
        """Count entities of a view by status."""
        for status, count in statuses.items():
            self._entities.labels(view, status).inc(count)

    def predicted(self, service: str, count: int) -> None:
        """Count predictions."""
        self._predictions.labels(service).inc(count)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
