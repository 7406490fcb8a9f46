"""What a load is: whom it goes to, how requests arrive, for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from mlpdeploy.env import closest
from mlpdeploy.errors import UsageError

Protocol = Literal["http", "grpc"]
Arrivals = Literal["poisson", "constant"]
DEFAULT_PORTS: dict[Protocol, int] = {"http": 8000, "grpc": 8001}
DEFAULT_CLIENTS = 32


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        protocol: what it speaks there.
        host, port: of the socket.
        tls: whether the connection is encrypted.
    """

    protocol: Protocol
    host: str
    port: int
    tls: bool

    @property
    def authority(self) -> str:
        """`host:port`, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(url: str, protocol: str | None = None) -> Address:
    """Return the address of `localhost:8000`, `http://host:8000`, `https://host`, `grpc://host:8001` or `grpcs://host`.

    Args:
        url: without a scheme it takes `protocol`, or http.
        protocol: `http` or `grpc`; must agree with the scheme where there is one.

    Raises:
        UsageError: another scheme or protocol, one that contradicts the other, a path, or a port that is no number.
    """
    if protocol is not None and protocol not in get_args(Protocol):
        raise UsageError(f"unknown protocol {protocol!r}", fix=closest(protocol, get_args(Protocol)))
    scheme, mark, rest = url.partition("://")
    if not mark:
        scheme, rest = protocol or "http", url
    spoken = scheme.lower().removesuffix("s")
    if spoken not in get_args(Protocol):
        raise UsageError(f"the URL {url!r}", "http://, https://, grpc:// or grpcs:// and a host")
    if protocol is not None and protocol != spoken:
        raise UsageError(f"--protocol {protocol} for {url}", f"--protocol {spoken}", "leave one of the two out")
    try:
        parts = urlsplit(f"//{rest}")
        port = parts.port
    except ValueError as error:
        raise UsageError(f"the URL {url!r} ({error})", "host:port, for example localhost:8000") from None
    if not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        raise UsageError(f"the URL {url!r}", "a host and a port, nothing behind them", "name the model with --model")
    known: Protocol = "grpc" if spoken == "grpc" else "http"
    return Address(known, parts.hostname, port or DEFAULT_PORTS[known], scheme.lower().endswith("s"))


@dataclass(frozen=True)
class LoadOptions:
    """What `mlpdeploy load` is asked for.

    Attributes:
        model, version: on the server; an empty model means the only one there, an empty version the server's choice.
        clients: of the closed loop: each sends its next request when it has the answer to the last.
        rate: requests a second of the open loop, whatever the server does; None means the closed loop.
        arrivals: of the open loop: `poisson`, as independent users send, or `constant` intervals.
        duration_s: that is measured; `warmup_s` of the same load comes first and counts for nothing.
        rows: of one request.
        image: sent to /v1/classify as it is, instead of a tensor to the v2 protocol.
        height_width: pixels, where the model leaves them open.
        timeout_s: after which a request has failed.
        connections: at most so many at once in the open loop; what finds none free waits, and the wait is counted.
        seed: of inputs and arrivals.
        api_key: sent as `Authorization: Bearer`; empty for none.
        ca_file: certificates that TLS trusts; None for the system's.
        shared_memory: leave the inputs in shared memory of this machine, where the server reads them.
    """

    model: str = ""
    version: str = ""
    clients: int = DEFAULT_CLIENTS
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    duration_s: float = 10.0
    warmup_s: float = 1.0
    rows: int = 1
    image: Path | None = None
    height_width: tuple[int, int] = (224, 224)
    timeout_s: float = 30.0
    connections: int = 512
    seed: int = 0
    api_key: str = ""
    ca_file: Path | None = None
    shared_memory: bool = False

    def check(self) -> None:
        """Raise UsageError for what cannot be."""
        for name, count in (("clients", self.clients), ("rows", self.rows), ("connections", self.connections)):
            if count < 1:
                raise UsageError(f"{name} is {count}", "at least 1")
        numbers = {"rate": self.rate, "duration": self.duration_s, "timeout": self.timeout_s}
        for name, value in numbers.items():
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name} is {value}", "a number above 0")
        if not (self.warmup_s >= 0 and math.isfinite(self.warmup_s)):
            raise UsageError(f"warmup is {self.warmup_s}", "0 seconds or more")
        if self.arrivals not in get_args(Arrivals):
            raise UsageError(f"unknown arrivals {self.arrivals!r}", fix=closest(self.arrivals, get_args(Arrivals)))
        if self.image is not None and self.rows != 1:
            raise UsageError(f"{self.rows} rows of a picture", "one row, which is what /v1/classify takes")
        if self.image is not None and self.shared_memory:
            raise UsageError("a picture in shared memory", "tensors", "leave --image or --shared-memory out")


@dataclass(frozen=True)
class RampOptions:
    """When a rate is too much for the server.

    Attributes:
        start_rate: requests a second of the first step; None takes half of what one client alone gets.
        factor: from one step to the next.
        p99_limit_ms: latency that must not be exceeded; None takes ten times the median of one client alone, at least
            10 ms.
        error_limit: share of requests that may fail.
        refinements: steps between the last good rate and the first bad one.
    """

    start_rate: float | None = None
    factor: float = 1.5
    p99_limit_ms: float | None = None
    error_limit: float = 0.01
    refinements: int = 2

    def check(self) -> None:
        """Raise UsageError for what cannot be."""
        if self.p99_limit_ms is not None and not self.p99_limit_ms > 0:
            raise UsageError(f"a p99 limit of {self.p99_limit_ms} ms", "a number above 0")
        if not 0 <= self.error_limit < 1:
            raise UsageError(f"an error limit of {self.error_limit}", "a share from 0 to below 1")
