"""The Session: what every backend offers, and what all of them share (checks, splitting, padding)."""

from __future__ import annotations

import importlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mlpdeploy.env import closest
from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.manifest import CANONICAL, Manifest, TensorSpec, read_manifest

# Backend name -> module with a class `BackendSession(directory, manifest, options)`.
BACKENDS = {
    "onnxruntime": "mlpdeploy.runtime.onnxruntime",
    "openvino": "mlpdeploy.runtime.openvino",
    "torch": "mlpdeploy.runtime.torch",
}
DEFAULT_BACKEND = "onnxruntime"
AUTO = "auto"
# Role of a file -> backends that run it, the first choice first. PyTorch takes the canonical file's weights only.
ROLE_BACKENDS: dict[str, tuple[str, ...]] = {
    "canonical": ("onnxruntime", "torch"),
    "cpu": ("onnxruntime",),
    "openvino": ("openvino", "onnxruntime"),
    "tensorrt": ("onnxruntime",),
    "tensorrt-rtx": ("onnxruntime",),
}
PRECISIONS = ("fp32", "bf16")
DEFAULT_MAX_BATCH = 32

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class LoadOptions:
    """What `load` was asked for, as its docstring explains; None means the default."""

    device: str | None = None
    threads: int | None = None
    max_batch: int | None = None
    role: str | None = None
    precision: str | None = None
    share_processors: bool = False


class Session(ABC):
    """A loaded model. Any batch is taken: it is split, and padded where the model's batch is fixed.

    `run` may be called from several threads at once. A closed session refuses.

    Attributes:
        inputs, outputs: what the model takes and gives.
        backend, device: who computes, and where (`cpu`, `cuda:0`).
        file: name of the artifact's file that runs; empty where a backend does not say.
        max_batch: rows that go through the backend at once; a larger batch is split.
        precision: what is computed in: the artifact's, or the one that `load` was asked for.
        precisions: those that `load` may ask this backend for, whatever the artifact's own.
    """

    backend: str
    file: str = ""
    precisions: tuple[str, ...] = ()

    def __init__(self, manifest: Manifest, device: str, max_batch: int | None) -> None:
        self.manifest = manifest
        self.inputs: tuple[TensorSpec, ...] = manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = manifest.outputs
        self.device = device
        self.precision = manifest.precision
        fixed = manifest.inputs[0].shape[0]
        if max_batch is not None and max_batch < 1:
            raise UsageError(f"max_batch is {max_batch}", "at least 1")
        self.fixed_batch = fixed if isinstance(fixed, int) else None
        self.max_batch = self.fixed_batch or max_batch or DEFAULT_MAX_BATCH
        self._closed = threading.Event()

    @abstractmethod
    def _execute(self, feeds: Arrays, into: Arrays | None) -> Arrays:
        """Run one batch that the backend takes as it is, writing to `into` where that is given. Thread-safe."""

    def run(self, feeds: Mapping[str, Any], outputs: Mapping[str, np.ndarray] | None = None) -> Arrays:
        """Return {output name: array} for {input name: array}.

        Args:
            feeds: one array per input, with the input's dtype; numpy, or anything on the CPU with `__dlpack__`.
            outputs: contiguous arrays to write the results to, one per output; they are bound, not copied to. The
                caller must not share them between threads.

        Raises:
            UsageError: an input is missing, unknown, of another dtype or of a shape that the model cannot take; an
                output array does not fit; or the session is closed.
        """
        if self._closed.is_set():
            raise UsageError("this session is closed", fix="load the artifact again")
        arrays = check_feeds(self.inputs, feeds)
        rows = len(next(iter(arrays.values())))
        into = None if outputs is None else check_outputs(self.outputs, outputs, rows)
        if rows == self.max_batch or (rows < self.max_batch and self.fixed_batch is None):
            return self._execute(arrays, into)
        parts = [self._run_part(arrays, into, start, rows) for start in range(0, rows, self.max_batch)]
        if into is not None:
            return into
        return {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in self.outputs}

    def _run_part(self, arrays: Arrays, into: Arrays | None, start: int, rows: int) -> Arrays:
        """Run rows start..start + max_batch, padded with zeros where the batch is fixed."""
        stop = min(start + self.max_batch, rows)
        part = {name: array[start:stop] for name, array in arrays.items()}
        target = None if into is None else {name: array[start:stop] for name, array in into.items()}
        if self.fixed_batch is None or stop - start == self.fixed_batch:
            return self._execute(part, target)
        padded = self._execute({name: _pad_rows(array, self.fixed_batch) for name, array in part.items()}, None)
        result = {name: array[: stop - start] for name, array in padded.items()}
        for name, array in (target or {}).items():
            array[...] = result[name]
        return result

    def random_feeds(self, batch: int, seed: int = 0, height_width: tuple[int, int] | None = None) -> Arrays:
        """Return standard normal inputs for `batch` rows; symbolic sizes take `height_width` (default 224x224)."""
        generator = np.random.default_rng(seed)
        sizes = dict(zip("HW", height_width or (224, 224), strict=True))
        feeds = {}
        for spec in self.inputs:
            axes = zip(spec.shape[1:], spec.layout[1:], strict=True)
            shape = [size if isinstance(size, int) else sizes[letter] for size, letter in axes]
            feeds[spec.name] = generator.standard_normal((batch, *shape)).astype(spec.dtype)
        return feeds

    def warmup(self, batch: int = 1, runs: int = 3) -> None:
        """Run random inputs a few times, so that later runs find everything allocated."""
        feeds = self.random_feeds(batch)
        for _ in range(runs):
            self.run(feeds)

    def close(self) -> None:
        """Free the backend's memory; later calls of `run` refuse. Closing twice is fine."""
        if not self._closed.is_set():
            self._closed.set()
            self._release()

    @abstractmethod
    def native_interface(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Return (inputs, outputs) as the loaded file itself tells them, apart from the manifest; layouts are empty."""

    @abstractmethod
    def _release(self) -> None:
        """Drop what the backend holds."""

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        name = self.manifest.model.get("name")
        return f"<Session {name} on {self.backend} ({self.device}), at most {self.max_batch} rows at once>"


def check_feeds(specs: tuple[TensorSpec, ...], feeds: Mapping[str, Any]) -> Arrays:
    """Return the feeds as contiguous arrays, in the model's order, after checking names, dtypes and shapes."""
    names = [spec.name for spec in specs]
    unknown = sorted(set(feeds) - set(names))
    if unknown:
        raise UsageError(f"unknown input {unknown[0]!r}", fix=closest(unknown[0], names))
    arrays: Arrays = {}
    sizes: dict[str, int] = {}
    for spec in specs:
        if spec.name not in feeds:
            raise UsageError(f"input {spec.name!r} is missing", f"inputs {', '.join(names)}")
        value = feeds[spec.name]
        array = value if isinstance(value, np.ndarray) else _to_numpy(value, spec.name)
        _check_array(array, spec, sizes)
        arrays[spec.name] = np.ascontiguousarray(array)
    return arrays


def check_outputs(specs: tuple[TensorSpec, ...], outputs: Mapping[str, np.ndarray], rows: int) -> Arrays:
    """Return the output arrays in the model's order, after checking that results can be written to them directly."""
    arrays: Arrays = {}
    for spec in specs:
        array = outputs.get(spec.name)
        if array is None:
            raise UsageError(f"outputs lacks {spec.name!r}", f"arrays for {', '.join(s.name for s in specs)}")
        fits = array.ndim == len(spec.shape) and array.shape[0] == rows
        if fits:
            sizes = zip(array.shape[1:], spec.shape[1:], strict=True)
            fits = all(size == wanted or not isinstance(wanted, int) for size, wanted in sizes)
        if array.dtype != np.dtype(spec.dtype) or not fits or not array.flags.c_contiguous or not array.flags.writeable:
            shape = (rows, *spec.shape[1:])
            raise UsageError(
                f"output array {spec.name!r} is {array.dtype} {array.shape}",
                f"a writable, contiguous {spec.dtype} ({', '.join(map(str, shape))})",
            )
        arrays[spec.name] = array
    return arrays


def _to_numpy(value: Any, name: str) -> np.ndarray:
    if not hasattr(value, "__dlpack__"):
        raise UsageError(f"input {name!r} is a {type(value).__name__}", "a numpy array or a DLPack tensor on the CPU")
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"input {name!r} cannot be read on the CPU ({error})", fix="move it to the CPU") from error


def _check_array(array: np.ndarray, spec: TensorSpec, sizes: dict[str, int]) -> None:
    """Raise UsageError unless dtype and shape fit; equal symbolic axes of all inputs must agree (in `sizes`)."""

    def refused(wanted: str = "", fix: str = "") -> UsageError:
        shape = ", ".join(map(str, spec.shape))
        wanted = wanted or f"{spec.dtype} {spec.layout} ({shape})"
        return UsageError(f"input {spec.name!r} is {array.dtype} {array.shape}", wanted, fix)

    if array.dtype != np.dtype(spec.dtype):
        raise refused(fix=f"convert it: x.astype('{spec.dtype}')")
    if array.ndim != len(spec.shape):
        one_missing = array.ndim == len(spec.shape) - 1
        raise refused(fix="add the batch axis: x[None]" if one_missing else "")
    for axis, (size, expected) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(expected, int):
            # A fixed batch is no limit: the session splits and pads.
            if axis and size != expected:
                raise refused()
            continue
        factor, _, _ = expected.rpartition("*")
        if size < 1 or (factor and size % int(factor)):
            raise refused(fix=f"axis {axis} must be a multiple of {factor or 1}, at least {factor or 1}")
        if sizes.setdefault(expected, size) != size:
            raise refused(f"{sizes[expected]} on axis {axis}, as another input has")
    if array.shape[0] < 1:
        raise refused("at least one row")


def rows_of(arrays: Arrays, start: int, stop: int) -> Arrays:
    """Return rows start..stop of every array, without a copy."""
    return {name: array[start:stop] for name, array in arrays.items()}


def _pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    padded = np.zeros((rows, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def load(
    directory: str | Path,
    backend: str | None = None,
    device: str | None = None,
    *,
    threads: int | None = None,
    max_batch: int | None = None,
    role: str | None = None,
    precision: str | None = None,
    share_processors: bool = False,
) -> Session:
    """Return a Session on an artifact folder.

    Args:
        directory: made by `mlpdeploy export`.
        backend: `onnxruntime` (the default), `openvino`, `torch` (the reference), or `auto`: the fastest of those that
            are installed and that the artifact has a file for, measured once on each machine.
        device: `cpu` or `cuda`; None takes CUDA where the backend and the machine have it.
        threads: of one run; None takes every processor that this process may use.
        max_batch: rows that go through the backend at once; None means 32. A larger batch is split.
        role: which of the artifact's models: `canonical` or a target's name; None takes the one lowered for the
            backend, or the canonical one where there is none (OpenVINO needs one of its own).
        precision: what floats are computed in, `fp32` or `bf16`; None means the artifact's precision. Only OpenVINO
            computes in another one.
        share_processors: leave the processors to other processes as soon as a run ends. Otherwise ONNX Runtime's
            threads look for more work for a while: faster where the next run follows at once and nobody else computes.

    Raises:
        UsageError: unknown backend, device, role or precision, or one that the backend or the processor has not.
        ArtifactError: the folder is incomplete, edited or truncated.
        MissingDependencyError: the backend's package is not installed.
    """
    name = DEFAULT_BACKEND if backend is None else backend
    if name != AUTO and name not in BACKENDS:
        raise UsageError(f"unknown backend {name!r}", fix=closest(name, (*BACKENDS, AUTO)))
    if device is not None and device.partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {device!r}", "cpu or cuda")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}", "at least 1")
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}", fix=closest(precision, PRECISIONS))
    directory = Path(directory)
    manifest = read_manifest(directory)
    if len(manifest.inputs) < 1 or not manifest.outputs:
        raise ArtifactError(f"{directory} has no inputs or no outputs", fix="export the model again")
    if role is not None:
        roles = {entry.role: name for name, entry in manifest.models.items()}
        if role not in roles:
            raise UsageError(f"{directory} has no model for {role!r}", fix=closest(role, roles))
        if role == CANONICAL and any(spec.dtype != "float32" for spec in (*manifest.inputs, *manifest.outputs)):
            raise UsageError(
                f"the canonical model of {directory}, which takes float32",
                f"a model with the artifact's inputs, {manifest.inputs[0].dtype}",
                "leave the role out, or load the float32 artifact that this one was made from",
            )
    options = LoadOptions(device, threads, max_batch, role, precision, share_processors)
    if name == AUTO:
        name = importlib.import_module("mlpdeploy.runtime.auto").fastest_backend(directory, manifest, options)
    return session_of(name, directory, manifest, options)


def session_of(backend: str, directory: Path, manifest: Manifest, options: LoadOptions) -> Session:
    """Return a Session on one of `BACKENDS`, after checking that it can do what is asked for; see `load`."""
    kind: type[Session] = importlib.import_module(BACKENDS[backend]).BackendSession
    if options.role is not None and backend not in (*ROLE_BACKENDS.get(options.role, BACKENDS), "torch"):
        able = " or ".join(ROLE_BACKENDS[options.role])
        raise UsageError(f"the file for {options.role} on {backend}", able, f"leave the role out for {backend}'s own")
    if options.precision not in (None, manifest.precision, *kind.precisions):
        raise UsageError(
            f"precision {options.precision} on {backend} for an artifact in {manifest.precision}",
            manifest.precision,
            "use --backend openvino, or quantize the artifact",
        )
    session: Session = kind(directory, manifest, options)  # type: ignore[arg-type]
    return session
