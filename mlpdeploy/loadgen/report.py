"""A load from URL to report."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mlpdeploy.env import git_commit, machine, package_version
from mlpdeploy.loadgen.arrivals import run_precisely
from mlpdeploy.loadgen.loops import closed_loop, open_loop
from mlpdeploy.loadgen.options import Address, LoadOptions, RampOptions, parse_address
from mlpdeploy.loadgen.ramp import Ramp, find_knee
from mlpdeploy.loadgen.step import Step
from mlpdeploy.loadgen.target import Target

FORMAT = "mlpdeploy-load"
VERSION = 1


@dataclass(frozen=True)
class LoadReport:
    """What was found, and what one has to know to repeat it.

    Attributes:
        date_utc: ISO 8601, when the load began.
        git_commit: of this package's checkout; None outside of one.
        machine: that the generator ran on.
        address: of the server.
        target: the model as the server tells it.
        options: what was asked for, without the API key.
        step: of a load without a ramp.
        ramp: of a load with one.
    """

    date_utc: str
    git_commit: str | None
    machine: dict[str, Any]
    address: Address
    target: dict[str, Any]
    options: dict[str, Any]
    step: Step | None = None
    ramp: Ramp | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every measured load."""
        return self.ramp.steps if self.ramp else (self.step,) if self.step else ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report for a JSON file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "mlpdeploy": package_version(),
            "date_utc": self.date_utc,
            "git_commit": self.git_commit,
            "machine": self.machine,
            "address": dataclasses.asdict(self.address),
            "target": self.target,
            "options": self.options,
            "step": self.step.to_dict() if self.step else None,
            "ramp": self.ramp.to_dict() if self.ramp else None,
        }


def run_load(
    url: str,
    options: LoadOptions,
    *,
    protocol: str | None = None,
    ramp: RampOptions | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> LoadReport:
    """Send load to a server and return what was measured.

    Args:
        url: see `parse_address`.
        options: of the load; with a rate it is an open loop.
        protocol: `http` or `grpc`, where the URL has no scheme.
        ramp: raise the rate until the knee instead.
        tell: called with a line about each step.

    Raises:
        UsageError: the request contradicts itself, or the model does not take it.
        LoadError: no server, no such model, or answers that are none.
        MissingDependencyError: gRPC without the package grpcio.
    """
    address = parse_address(url, protocol)
    options.check()
    if ramp is not None:
        ramp.check()
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")

    async def work() -> tuple[dict[str, Any], Step | None, Ramp | None]:
        target, stop = _target(address, options), asyncio.Event()
        try:
            known = await target.prepare(options)
            tell(f"{known['model'] or 'the default model'} at {address.authority} over {address.protocol} is ready")
            with _stopped_by_interrupt(stop, tell):
                if ramp is not None:
                    return known, None, await find_knee(target, options, ramp, tell, stop)
                if options.rate is not None:
                    return known, await open_loop(target, options, options.rate, stop), None
                return known, await closed_loop(target, options, stop), None
        finally:
            await target.close()

    known, step, found = run_precisely(work())
    asked = {key: value for key, value in dataclasses.asdict(options).items() if key != "api_key"}
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in asked.items()}
    return LoadReport(began, git_commit(), machine(), address, known, asked, step, found)


@contextmanager
def _stopped_by_interrupt(stop: asyncio.Event, tell: Callable[[str], None]) -> Iterator[None]:
    """Have the first Ctrl-C stop the load, whose report then comes, and the next one end the program."""
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)

    def first() -> None:
        tell("stopping: what was measured until now is reported")
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    try:
        loop.add_signal_handler(signal.SIGINT, first)
    except (NotImplementedError, RuntimeError, ValueError):  # no such signals, or not the main thread
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)


def _target(address: Address, options: LoadOptions) -> Target:
    if address.protocol == "http":
        from mlpdeploy.loadgen.http import HttpTarget

        return HttpTarget(address, options)
    from mlpdeploy.loadgen.grpc import GrpcTarget

    return GrpcTarget(address, options)
