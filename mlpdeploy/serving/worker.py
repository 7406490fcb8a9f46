"""The process that computes: one Session, and slots of shared memory. Messages are lines of JSON on a socket.

    python -m mlpdeploy.serving.worker SOCKET_DESCRIPTOR SLOT_DESCRIPTOR...

The first message says what to load. The answer is `ready`, or `error` and the end. Then every `batch` is answered with
`done`: how long it took, the shapes of the outputs' rows, and the parts of it that failed. The process ends when the
server closes the socket, or dies.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlpdeploy.errors import ArtifactError, MlpDeployError
from mlpdeploy.manifest import TensorSpec, read_manifest
from mlpdeploy.runtime.feeds import Arrays, rows_of
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.session import Session
from mlpdeploy.serving.slots import Slot

Message = dict[str, Any]
_PR_SET_PDEATHSIG = 1
_TIMED_RUNS = 2


def main(load_session: Callable[..., Session] = load) -> None:
    """Run the process; `load_session` is `mlpdeploy.load` or behaves like it."""
    _belong_to_the_server()
    descriptors = [int(text) for text in sys.argv[1:]]
    server = socket.socket(fileno=descriptors[0])
    slots = [Slot(descriptor) for descriptor in descriptors[1:]]
    with suppress(BrokenPipeError, ConnectionResetError):  # the server is gone
        _serve(server, slots, load_session)


def _serve(server: socket.socket, slots: list[Slot], load_session: Callable[..., Session]) -> None:
    def send(message: Message) -> None:
        server.sendall(json.dumps(message).encode() + b"\n")

    messages = map(json.loads, server.makefile("rb"))
    try:
        session = _open(next(messages), load_session)
        seconds = {rows: _warm(session, rows) for rows in (1, session.max_batch)}
    except MlpDeployError as error:
        send({"kind": "error", **_told(error)})
        return
    except StopIteration:
        return
    send({"kind": "ready", "seconds": list(seconds.items())})
    with session:
        for message in messages:
            send({"kind": "done", "number": message["number"], **_compute(session, slots[message["slot"]], message)})


def _open(order: Message, load_session: Callable[..., Session]) -> Session:
    """Return the session that the first message asks for.

    Raises:
        MlpDeployError: it cannot be loaded, or the artifact is not the one that the server has read.
    """
    directory = Path(order.pop("directory"))
    if order.pop("manifest") != read_manifest(directory).identity:
        raise ArtifactError(f"{directory} was replaced since it is served", fix="have the server load its models again")
    return load_session(directory, **order)


def _warm(session: Session, rows: int) -> float:
    """Run a batch until everything is allocated, and return its seconds."""
    session.warmup(rows, 1)
    start = time.perf_counter()
    session.warmup(rows, _TIMED_RUNS)
    return (time.perf_counter() - start) / _TIMED_RUNS


def _compute(session: Session, slot: Slot, order: Message) -> Message:
    """Compute a batch where it lies, and return what the server is told.

    Args:
        order: `number` of the batch; `rows` of each part; `inputs`: the shape of a row of each input.
    """
    if slot.given_up == order["number"]:
        return {"seconds": 0.0, "outputs": [], "failed": {}}
    began = time.perf_counter()
    total = sum(order["rows"])
    wanted = [(spec.dtype, (total, *row)) for spec, row in zip(session.inputs, order["inputs"], strict=True)]
    arrays, end = slot.arrays(wanted)
    feeds = {spec.name: array for spec, array in zip(session.inputs, arrays, strict=True)}
    shapes, failed = _run(session, feeds, order["rows"], slot, end)
    return {"seconds": time.perf_counter() - began, "outputs": shapes, "failed": failed}


def _run(
    session: Session, feeds: Arrays, rows: list[int], slot: Slot, place: int
) -> tuple[list[tuple[int, ...]], dict[int, Message]]:
    """Write the outputs from byte `place` of the slot on; return (shapes of their rows, {part: what failed}).

    Where the batch fails, its parts are run one by one, so that a bad one fails alone.
    """
    total = sum(rows)
    known = row_shapes(session.outputs)
    into = None if known is None else _arrays(session, slot, place, total, known)
    failed: dict[int, Message] = {}
    try:
        done = [(0, total, session.run(feeds, into))]
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the rows that cause it
        done = []
        start = 0
        for index, count in enumerate(rows):
            stop = start + count
            try:
                if len(rows) == 1:
                    raise error
                part = None if into is None else rows_of(into, start, stop)
                done.append((start, stop, session.run(rows_of(feeds, start, stop), part)))
            except Exception as alone:  # noqa: BLE001
                failed[index] = _told(alone)
            start = stop
    if into is not None or not done:
        return known or [], failed
    known = [done[0][2][spec.name].shape[1:] for spec in session.outputs]
    into = _arrays(session, slot, place, total, known)
    for start, stop, arrays in done:
        for name, array in arrays.items():
            into[name][start:stop] = array
    return known, failed


def row_shapes(specs: tuple[TensorSpec, ...]) -> list[tuple[int, ...]] | None:
    """Return the shapes of the tensors' rows, or None where they depend on the inputs."""
    if any(isinstance(size, str) for spec in specs for size in spec.shape[1:]):
        return None
    return [tuple(int(size) for size in spec.shape[1:]) for spec in specs]


def _arrays(session: Session, slot: Slot, place: int, rows: int, shapes: list[tuple[int, ...]]) -> Arrays:
    wanted = [(spec.dtype, (rows, *row)) for spec, row in zip(session.outputs, shapes, strict=True)]
    arrays, _ = slot.arrays(wanted, place)
    return {spec.name: array for spec, array in zip(session.outputs, arrays, strict=True)}


def _told(error: Exception) -> Message:
    """Return an error as a message; one that is not ours is told by its name and first line."""
    if isinstance(error, MlpDeployError):
        return {"type": type(error).__name__, "got": error.got, "wanted": error.wanted, "fix": error.fix}
    text = next(iter(str(error).strip().splitlines()), "")
    return {"type": "InternalError", "got": f"{type(error).__name__}: {text[:500]}"}


def _belong_to_the_server() -> None:
    """End with the server, leave the terminal's and the service manager's signals to it, and keep off its stdout."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.dup2(2, 1)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
