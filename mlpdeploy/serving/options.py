"""What a server is asked to be."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from pathlib import Path

from mlpdeploy.env import cpu_count
from mlpdeploy.errors import UsageError

SMALL_MACS = 50_000_000  # of a row of a model that gets several workers
MOST_WORKERS = 8  # which one server process can keep busy


@dataclass(frozen=True)
class ServeOptions:
    """How models are served; None means the default that is named.

    Attributes:
        host: address to listen on.
        http_port, grpc_port: 0 takes a free one.
        max_batch: rows that a worker computes at once; None takes the model's where it is fixed, or 32.
        max_delay_ms: how long a batch may wait for rows that are expected, although a worker is idle.
        instances: worker processes per model; None takes several for a small model on a CPU, else one.
        threads: of one instance; None shares the processors out to a model's instances.
        queue_limit: rows of a model that may wait; a request above it is refused at once.
        timeout_ms: of a request that brings no deadline.
        backend, device, precision: as `mlpdeploy.load` takes them.
        api_key_file: holds the key that requests must show; None asks for none.
        tls_cert, tls_key: PEM files; both or none.
        drain_seconds: how long a server that is told to stop waits for what it has accepted.
        shared_memory: whether clients may leave tensors in shared memory of this machine.
    """

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    max_batch: int | None = None
    max_delay_ms: float = 2.0
    instances: int | None = None
    threads: int | None = None
    queue_limit: int = 256
    timeout_ms: float = 10_000.0
    backend: str | None = None
    device: str | None = None
    precision: str | None = None
    api_key_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    drain_seconds: float = 30.0
    shared_memory: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError if a value makes no sense, or two contradict each other."""
        for name in ("max_batch", "instances", "threads", "queue_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}", "at least 1")
        for name in ("http_port", "grpc_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise UsageError(f"{name} is {getattr(self, name)}", "0 to 65535")
        for name in ("max_delay_ms", "drain_seconds", "timeout_ms"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise UsageError(f"{name} is {value}", "a finite number that is not negative")
        if self.timeout_ms == 0:
            raise UsageError("timeout_ms is 0", "more than 0")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("only one of tls_cert and tls_key", "both or none")
        if self.shared_memory and self.api_key_file is None and not is_loopback(self.host):
            raise UsageError(
                f"shared memory for whoever reaches {self.host}", "callers with a key", "give --api-key-file"
            )

    def workers_for(self, macs: int | None) -> tuple[int, int | None]:
        """Return how many workers a model gets, and how many threads each computes with; None leaves that to `load`.

        A small model's row takes a thread no longer than all threads of one worker that wait for each other, and while
        the server looks after the answers of one batch another worker computes the next. On a GPU there are no threads
        to share out, and `auto` may find one.

        Args:
            macs: multiply-adds of a row, or None where they are not known.
        """
        on_cpu = self.device in (None, "cpu") and not (self.backend or "").endswith("tensorrt")
        small = macs is not None and macs <= SMALL_MACS and on_cpu and self.backend != "auto" and self.threads is None
        instances = self.instances or (min(cpu_count(), MOST_WORKERS) if small else 1)
        shared = max(1, cpu_count() // instances) if on_cpu and instances > 1 else None
        return instances, self.threads or shared


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server that listens on this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
