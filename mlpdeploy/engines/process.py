"""Run a build in a process of its own, tell how far it is, and turn its end into a result or one error."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlpdeploy.engines.sidecar import BuildFacts
from mlpdeploy.engines.worker import BuildRequest
from mlpdeploy.errors import UsageError
from mlpdeploy.runtime.tensorrt_api import EngineError

# (done, between 0 and 1; what is going on)
Progress = Callable[[float, str], None]


class Phases:
    """How far a build is, from TensorRT's nested phases: a phase's part is one step of its parent's."""

    def __init__(self) -> None:
        self._open: list[tuple[str, int, int]] = []  # name, steps done, steps in all; outermost first
        self._most = 0.0

    def start(self, name: str, steps: int) -> None:
        self._open.append((name, 0, max(steps, 1)))

    def step(self, name: str, done: int) -> None:
        self._open = [(n, done if n == name else d, total) for n, d, total in self._open]

    def finish(self, name: str) -> None:
        self._open = [phase for phase in self._open if phase[0] != name]

    def done(self) -> float:
        """Return the share that is done, between 0 and 1; it never falls."""
        share, width = 0.0, 1.0
        for _, done, total in self._open:
            share += width * min(done, total) / total
            width /= total
        self._most = max(self._most, min(share, 1.0))
        return self._most

    def text(self) -> str:
        """Return the innermost phase with its count."""
        if not self._open:
            return ""
        name, done, total = self._open[-1]
        return f"{name} {min(done + 1, total)}/{total}" if total > 1 else name


def run_build(request: BuildRequest, scratch: Path, progress: Progress | None = None) -> BuildFacts:
    """Build in a process of its own and return what it says.

    Args:
        request: what to build.
        scratch: a folder for the request and for what the process prints.
        progress: called often.

    Raises:
        EngineError: TensorRT cannot build it, or its process died.
        UsageError, ArtifactError: as the process says.
    """
    tell = progress or (lambda done, text: None)
    (scratch / "request.json").write_text(json.dumps(dataclasses.asdict(request)))
    reader, writer = os.pipe()
    with tempfile.TemporaryFile(dir=scratch) as said, os.fdopen(reader, encoding="utf-8") as events:
        try:
            worker = subprocess.Popen(
                [sys.executable, "-m", "mlpdeploy.engines.worker", str(scratch / "request.json"), str(writer)],
                pass_fds=(writer,),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        finally:
            os.close(writer)
        try:
            last = _follow((json.loads(line) for line in events), tell)
            worker.wait()
        except BaseException:
            worker.kill()
            worker.wait()
            raise
        if last is None:
            said.seek(0)
            raise EngineError(
                f"the process that builds the engine {_end(worker.returncode)}{_last_words(said.read())}",
                fix="run it again; if it ends so again, report it with the artifact's manifest",
            )
    return _result(last)


def _follow(events: Iterator[dict[str, Any]], tell: Progress) -> dict[str, Any] | None:
    """Pass on how far the build is, and return its last event, or None where the process died before."""
    phases, layers = Phases(), ""
    for event in events:
        kind = event.pop("event")
        if kind in ("result", "error"):
            return {"kind": kind, **event}
        if kind == "network":
            layers = f"{event['layers']} layers"
        elif kind == "start":
            phases.start(event["name"], event["steps"])
        elif kind == "step":
            phases.step(event["name"], event["done"])
        elif kind == "finish":
            phases.finish(event["name"])
        tell(phases.done(), f"{layers}, {phases.text()}" if phases.text() else layers)
    return None


def _result(last: dict[str, Any]) -> BuildFacts:
    if last.pop("kind") == "error":
        kind = UsageError if last.pop("exit_code") == UsageError.exit_code else EngineError
        raise kind(**last)
    return BuildFacts(**{**last, "warnings": tuple(last["warnings"])})


def _end(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"was ended by {signal.Signals(-status).name}"


def _last_words(said: bytes) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return f", and said last: {lines[-1][:300]}" if lines else ""
