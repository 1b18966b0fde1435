"""`Metrics`: what a server counts and measures, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from proactor.engine import Engine

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
Family = CounterMetricFamily | GaugeMetricFamily

ENGINE_GAUGES = {
    "waiting": "requests that wait in the sampler",
    "running": "requests that are sampled",
    "decoding": "sequences that decode",
    "pages_total": "pages of the KV cache",
    "pages_used": "pages that running sequences hold",
    "pages_cached": "pages that are kept for their content",
    "pages_parked": "pages that are kept for samples to be continued",
}
ENGINE_COUNTERS = {
    "tokens_sampled": "tokens drawn",
    "tokens_computed": "rows computed",
    "tokens_avoided": "prompt tokens that the prefix cache and forks saved",
    "preemptions": "sequences sent back into the line",
}


class Metrics:
    """Made for one engine. Readings of the engine are taken when somebody asks."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "proactor_requests", "requests, by route and status", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "proactor_request_seconds",
            "from a request's head to the end of its answer",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "proactor_first_token_seconds",
            "to the first token of streamed answers",
            buckets=SECONDS,
            registry=registry,
        )
        self.places = Gauge("proactor_places_taken", "requests that hold a place", registry=registry)
        self.gone = Counter(
            "proactor_clients_gone",
            "clients that left before their answer was complete",
            registry=registry,
        )
        self.refused = Counter(
            "proactor_connections_refused", "connections beyond the last one", registry=registry
        )
        self.stalled = Counter(
            "proactor_clients_stalled",
            "connections ended because a client was too slow, by what it did not do",
            ["what"],
            registry=registry,
        )
        self.tokens_in = Counter("proactor_tokens_in", "prompt tokens of answers", registry=registry)
        self.tokens_out = Counter("proactor_tokens_out", "new tokens of answers", registry=registry)
        registry.register(_EngineReadings(engine))

    def count_tokens(self, prompt: int, drawn: int) -> None:
        """Count the tokens of an answer."""
        self.tokens_in.inc(prompt)
        self.tokens_out.inc(drawn)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineReadings(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Family]:
        """The engine's counters; all 0 before its first request."""
        values = self._engine.counters()
        for name, meaning in ENGINE_GAUGES.items():
            yield GaugeMetricFamily(f"proactor_engine_{name}", meaning, values.get(name, 0))
        for name, meaning in ENGINE_COUNTERS.items():
            yield CounterMetricFamily(f"proactor_engine_{name}", meaning, values.get(name, 0))
        total = values.get("pages_total", 0)
        share = values.get("pages_used", 0) / total if total else 0.0
        yield GaugeMetricFamily("proactor_engine_kv_use", "share of the KV cache in use", share)
        yield GaugeMetricFamily(
            "proactor_engine_policy_version", "updates of the adapter", self._engine.policy_version
        )
