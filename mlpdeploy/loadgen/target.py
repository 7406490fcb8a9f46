"""What the load is sent to: one protocol's way to ask, and how an answer that is none is named."""

from __future__ import annotations

import contextlib
import ssl
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.errors import MlpDeployError, UsageError
from mlpdeploy.loadgen.options import LoadOptions
from mlpdeploy.loadgen.shared import Feeds, Place, SharedInputs
from mlpdeploy.loadgen.wire import DTYPES, ModelMetadata, TensorMetadata

VARIANTS = 4  # different inputs that are sent in turn, so that a cache of answers has nothing to answer


class LoadError(MlpDeployError):
    """The load cannot be sent: no server there, no such model, an answer that the protocol does not know."""


class RequestError(Exception):
    """One request failed; the text is the kind of failure that it is counted as."""


class Target(ABC):
    """A model on a server, and the requests for it, ready as bytes."""

    requests: Sequence[Any]
    _shared: SharedInputs | None = None

    @abstractmethod
    async def connect(self, slots: int) -> None:
        """Make ready for `slots` requests at once."""

    @abstractmethod
    async def send(self, slot: int, request: Any, timeout_s: float) -> None:
        """Send a request and read the whole answer within the time; one at a time per slot.

        Raises:
            RequestError: any answer but a good one, or none.
        """

    @abstractmethod
    async def prepare(self, options: LoadOptions) -> dict[str, Any]:
        """Ask the server for the model, make the requests, send one, and return what is known of the model.

        Raises:
            LoadError: there is no server, no such model, or its answer is not what was asked for.
            UsageError: the model does not take what was asked to be sent.
        """

    async def share(self, feeds: Sequence[Feeds], options: LoadOptions) -> Sequence[dict[str, Place] | None]:
        """Return where the server finds each request's inputs; None where they are to be sent.

        Raises:
            LoadError: the server does not take them.
        """
        if not options.shared_memory:
            return [None] * len(feeds)
        self._shared = SharedInputs(feeds)
        await self._register(self._shared)
        return list(self._shared)

    @abstractmethod
    async def _register(self, shared: SharedInputs) -> None:
        """Tell the server of shared memory."""

    @abstractmethod
    async def _unregister(self, shared: SharedInputs) -> None:
        """Have the server forget it."""

    async def close(self) -> None:
        """Give shared memory back, and close every connection."""
        if self._shared is not None:
            with contextlib.suppress(LoadError):  # the server may be gone
                await self._unregister(self._shared)
            self._shared.close()
        await self._close()

    @abstractmethod
    async def _close(self) -> None:
        """Close every connection."""


def random_inputs(metadata: ModelMetadata, options: LoadOptions) -> list[dict[str, np.ndarray]]:
    """Return VARIANTS feeds: standard normal floats, integers of 0 to 255 (as far as the type goes).

    Raises:
        UsageError: a data type that has no numbers, or a shape that does not take `options.rows`.
    """
    generator = np.random.default_rng(options.seed)
    feeds: list[dict[str, np.ndarray]] = []
    for _ in range(VARIANTS):
        arrays = {}
        for spec in metadata.inputs:
            if spec.datatype not in DTYPES:
                raise UsageError(f"input {spec.name!r} is {spec.datatype}", f"one of {', '.join(DTYPES)}")
            dtype, shape = np.dtype(DTYPES[spec.datatype]), request_shape(spec, options)
            if dtype.kind == "f":
                arrays[spec.name] = generator.standard_normal(shape).astype(dtype)
            else:
                high = 2 if dtype.kind == "b" else min(256, int(np.iinfo(dtype).max) + 1)
                arrays[spec.name] = generator.integers(0, high, shape).astype(dtype)
        feeds.append(arrays)
    return feeds


def request_shape(spec: TensorMetadata, options: LoadOptions) -> tuple[int, ...]:
    """Return the shape to send: the first axis takes the rows, open axes behind it the image size.

    Raises:
        UsageError: the first axis is fixed at another number of rows.
    """
    if not spec.shape:
        raise UsageError(f"input {spec.name!r} has no axis for rows", "an input with a batch axis")
    first, *others = spec.shape
    if first not in (-1, options.rows):
        raise UsageError(f"{options.rows} rows for input {spec.name!r}", f"{first}, which the model fixes")
    sizes = iter(options.height_width)
    open_axes = sum(size < 0 for size in others)
    if open_axes not in (0, 2):
        raise UsageError(f"input {spec.name!r} has the shape {list(spec.shape)}", "none or two open axes, of an image")
    return (options.rows, *(size if size >= 0 else next(sizes) for size in others))


def check_answer(shapes: Mapping[str, tuple[int, ...]], metadata: ModelMetadata, rows: int) -> None:
    """Raise LoadError unless the first answer has every output, with a row for each that was sent."""
    for spec in metadata.outputs:
        if spec.name not in shapes:
            raise LoadError(f"the answer lacks the output {spec.name!r}", "every output of the model's metadata")
        if shapes[spec.name][:1] != (rows,):
            raise LoadError(f"output {spec.name!r} has the shape {list(shapes[spec.name])}", f"{rows} rows")


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return what TLS trusts: the certificates in a file, or the system's.

    Raises:
        UsageError: the file cannot be read, or holds none.
    """
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except OSError as error:
        raise UsageError(f"{ca_file} cannot be used ({error})", "certificates as PEM") from error


def only_model(names: list[str]) -> str:
    """Return the one model that the server has.

    Raises:
        UsageError: there are none or several.
    """
    names = sorted(set(names))
    if len(names) != 1:
        found = f"the server has {len(names)} models" + (f": {', '.join(names[:10])}" if names else "")
        raise UsageError(found, "one of them", "name it with --model")
    return names[0]


def described(metadata: ModelMetadata) -> dict[str, Any]:
    """Return what a report says about the model."""
    return {
        "model": metadata.name,
        "platform": metadata.platform,
        "inputs": {spec.name: [spec.datatype, *spec.shape] for spec in metadata.inputs},
        "outputs": {spec.name: [spec.datatype, *spec.shape] for spec in metadata.outputs},
    }
