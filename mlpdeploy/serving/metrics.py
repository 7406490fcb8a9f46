"""What a server counts, for Prometheus and for its own page."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mlpdeploy.serving.repository import ModelRepository

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
WINDOW_SECONDS = 60
SAMPLES_PER_SECOND = 1000  # of which the page's percentiles are made


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self, repository: ModelRepository) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram
        from prometheus_client.process_collector import ProcessCollector

        self._registry = CollectorRegistry()
        ProcessCollector(namespace="mlpdeploy", registry=self._registry)
        labels = ("protocol", "method", "status")
        self._requests = Counter("mlpdeploy_requests", "Requests by status", labels, registry=self._registry)
        self._seconds = Histogram(
            "mlpdeploy_request_seconds",
            "Time from a request's headers to its answer",
            ("protocol", "method"),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._inference = Histogram(
            "mlpdeploy_inference_seconds",
            "Time in queue and computation of answered requests",
            ("model",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self.reloads = Counter("mlpdeploy_reloads", "Reloads by result", ("result",), registry=self._registry)
        self._registry.register(ModelCollector(repository))
        self._children: dict[tuple[str, str, str], tuple[Any, Any]] = {}
        self.recent = Recent()

    def answered(self, protocol: str, method: str, status: int | str, seconds: float) -> None:
        """Count one request; `method` is one of a fixed set, never what a client wrote."""
        key = (protocol, method, str(status))
        if key not in self._children:
            self._children[key] = (self._requests.labels(*key), self._seconds.labels(protocol, method))
        requests, histogram = self._children[key]
        requests.inc()
        histogram.observe(seconds)

    def inferred(self, model: str, seconds: float) -> None:
        """Count one answered inference of a model that exists."""
        self._inference.labels(model).observe(seconds)
        self.recent.add(seconds)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self._registry))


class ModelCollector:
    """Reads the models' own counts when Prometheus asks."""

    def __init__(self, repository: ModelRepository) -> None:
        self._repository = repository

    def collect(self) -> Iterator[Any]:
        """Yield the metrics of all models."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = ("model", "version")
        gauges = {
            name: GaugeMetricFamily(f"mlpdeploy_{name}", text, labels=labels)
            for name, text in {
                "model_ready": "Whether a worker of the model is warm",
                "queued_rows": "Rows that wait",
                "rows_in_flight": "Rows with the workers",
            }.items()
        }
        counters = {
            name: CounterMetricFamily(f"mlpdeploy_{name}", text, labels=labels)
            for name, text in {
                "model_rows": "Rows answered",
                "queue_seconds": "Time that requests waited for a worker",
                "compute_seconds": "Time that workers computed",
                "worker_restarts": "Workers that had to be started again",
            }.items()
        }
        batches = CounterMetricFamily("mlpdeploy_batches", "Batches by rows", labels=(*labels, "rows"))
        failures = CounterMetricFamily("mlpdeploy_model_failures", "Requests by failure", labels=(*labels, "failure"))
        for model in self._repository.models():
            own, stats = (model.name, model.version), model.stats
            gauges["model_ready"].add_metric(own, float(model.ready))
            gauges["queued_rows"].add_metric(own, stats.queued_rows)
            gauges["rows_in_flight"].add_metric(own, stats.rows_in_flight)
            counters["model_rows"].add_metric(own, stats.rows)
            counters["queue_seconds"].add_metric(own, stats.queue_seconds)
            counters["compute_seconds"].add_metric(own, stats.compute_seconds)
            counters["worker_restarts"].add_metric(own, stats.restarts)
            for rows, count in sorted(stats.batches.items()):
                batches.add_metric((*own, str(rows)), count)
            for failure, count in sorted(stats.failures.items()):
                failures.add_metric((*own, failure), count)
        yield from (*gauges.values(), *counters.values(), batches, failures)


class Recent:
    """Latencies of the last minute, second by second, for the page's chart."""

    def __init__(self) -> None:
        self._buckets: deque[tuple[int, list[float], list[int]]] = deque(maxlen=WINDOW_SECONDS)

    def add(self, seconds: float) -> None:
        """Note one answered request."""
        now = int(time.monotonic())
        if not self._buckets or self._buckets[-1][0] != now:
            self._buckets.append((now, [], [0]))
        _, samples, count = self._buckets[-1]
        count[0] += 1
        if len(samples) < SAMPLES_PER_SECOND:
            samples.append(seconds)

    def points(self) -> list[dict[str, float]]:
        """Return what happened in each of the last seconds that saw a request, oldest first."""
        now = int(time.monotonic())
        found = []
        for second, samples, count in self._buckets:
            if now - second >= WINDOW_SECONDS:
                continue
            p50, p99 = 1000 * np.percentile(samples, (50, 99))
            found.append(
                {
                    "age": now - second,
                    "requests": count[0],
                    "p50_ms": round(float(p50), 3),
                    "p99_ms": round(float(p99), 3),
                }
            )
        return found
