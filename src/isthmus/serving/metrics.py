"""What a server says of itself to Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
REQUEST_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

_GAUGES = {
    "queued": "Requests that wait.",
    "running": "Requests that are decoded now.",
    "bytes": "Bytes that prefixes and visual tokens take.",
    "rows_together": "1 if rows are decoded in one pass, 0 if one by one.",
}
_COUNTERS = {
    "images_encoded": "Images that were encoded.",
    "images_found": "Images whose visual tokens were there already.",
    "prefix_hits": "Prompts that began with a known prefix.",
    "prefix_misses": "Prompts that did not.",
    "prefill_tokens": "Tokens of prompts that were computed.",
    "cached_tokens": "Tokens of prompts that a known prefix held.",
    "decoded_tokens": "Tokens that were generated.",
}


class Metrics:
    """Counters and histograms of one server, in a registry of their own.

    Attributes:
        requests: Requests by route and status.
        first_token, token, total: Seconds to the first token, for each later one, and for all.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "isthmus_requests",
            "Requests by route and status.",
            ("route", "status"),
            registry=self.registry,
        )
        self.first_token = Histogram(
            "isthmus_first_token_seconds",
            "Seconds to an answer's first token, waiting included.",
            buckets=FIRST_TOKEN_S,
            registry=self.registry,
        )
        self.token = Histogram(
            "isthmus_token_seconds",
            "Seconds for each token after the first.",
            buckets=TOKEN_S,
            registry=self.registry,
        )
        self.total = Histogram(
            "isthmus_answer_seconds",
            "Seconds for a whole answer, waiting included.",
            buckets=REQUEST_S,
            registry=self.registry,
        )

    def watch(self, engine: Any) -> None:
        """Reports the engine's statistics whenever it is asked."""
        self.registry.register(_EngineCollector(engine))

    def text(self) -> bytes:
        """Everything, in Prometheus's format."""
        return generate_latest(self.registry)

    def answered(self, first_token_s: float | None, total_s: float, tokens: int) -> None:
        """Counts an answer."""
        self.total.observe(total_s)
        if first_token_s is None:
            return
        self.first_token.observe(first_token_s)
        if tokens > 1:
            each = max(0.0, total_s - first_token_s) / (tokens - 1)
            for _ in range(tokens - 1):
                self.token.observe(each)


class _EngineCollector:
    """Reads an engine's statistics when Prometheus asks."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def collect(self) -> Iterable[Any]:
        """One family for each number."""
        found = self.engine.statistics()
        for name, about in _GAUGES.items():
            value = float(getattr(found, name) or 0)
            yield GaugeMetricFamily(f"isthmus_{name}", about, value=value)
        for name, about in _COUNTERS.items():
            yield CounterMetricFamily(f"isthmus_{name}", about, value=getattr(found, name))
