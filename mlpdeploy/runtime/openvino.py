"""The OpenVINO backend: CPUs, in float32 or, where that is asked for, in bfloat16."""

from __future__ import annotations

import functools
import shlex
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from mlpdeploy.env import cpu_count, require, sums_of_int8_saturate
from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.manifest import Manifest, TensorSpec, checked_file
from mlpdeploy.runtime.feeds import Arrays, rows_of
from mlpdeploy.runtime.session import LoadOptions, Session, stream_runs

TARGET = "openvino"
# OpenVINO's names for what arithmetic it may use, and for what a processor can do by itself.
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_NATIVE = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}
# Streams that compute something else than one does (`BackendSession._make_streams`) are compiled again so many times;
# else is what differs by more than this part of the values.
_COMPILATIONS = 3
_ELSE = 0.5
# Held while a shape is computed for the first time (`BackendSession._run`): OpenVINO's cache is one for the process.
_MEETING = Lock()


class BackendSession(Session):
    """A Session on OpenVINO's CPU plugin.

    One model serves every batch: with open sizes it is 1 to 6 % slower than compiled for one shape, and needs neither
    that second nor the memory per shape. As with ONNX Runtime, batches of as many images as threads, or more, are
    computed in single-threaded streams; the model for those is compiled when the first such batch comes.

    OpenVINO by itself computes float32 files in bfloat16 where the processor can. Here the arithmetic is always asked
    for by name, and read back from the compiled model.
    """

    backend = "openvino"
    precisions = ("fp32", "bf16")

    def __init__(self, directory: Path, manifest: Manifest, options: LoadOptions) -> None:
        if options.device is not None and options.device != "cpu":
            raise UsageError(f"device {options.device} with backend openvino", "cpu", "use --device cpu")
        self.file = manifest.file_for(options.role or TARGET)
        if manifest.files[self.file].role != (options.role or TARGET):
            raise UsageError(
                f"{directory} has no file for openvino",
                fix="run: " + shlex.join(["mlpdeploy", "lower", str(directory), "--target", "openvino"]),
            )
        path = checked_file(directory, manifest, self.file)
        if manifest.needs_wide_sums and sums_of_int8_saturate():
            warnings.warn(
                "OpenVINO's INT8 is less exact on this processor, which has no VNNI: sums saturate; "
                "use --backend onnxruntime, fp32, or quantize with --weight-bits 7",
                stacklevel=2,
            )
        self._threads = options.threads or cpu_count()
        of_artifact = "fp32" if _keeps_float32(manifest) else manifest.float_precision
        self._compute = resolve_precision(of_artifact, options.precision)
        super().__init__(manifest, "cpu", options.max_batch)
        self._path = path
        self._model = _read(path)
        self._together = _Requests(self._compile(streams=1))
        self.precision = self._compute if manifest.precision in HINTS else manifest.precision
        self._streams: _Requests | None = None
        self._making_streams = Lock()

    def _execute(self, feeds: Arrays, into: Arrays | None) -> Arrays:
        rows = len(next(iter(feeds.values())))
        # OpenVINO shares writable memory only.
        feeds = {name: array if array.flags.writeable else array.copy() for name, array in feeds.items()}
        if self.fixed_batch is not None or not 1 < self._threads <= rows:
            return self._run(self._together, [feeds], into)
        with self._making_streams:
            if self._streams is None:
                self._streams = self._make_streams(feeds)
        shared = rows - rows % self._threads
        parts = [rows_of(feeds, start, stop) for start, stop in stream_runs(shared, self._threads)]
        results = self._run(self._streams, parts, None if into is None else rows_of(into, 0, shared))
        if shared == rows:
            return into if into is not None else results
        rest = self._run(
            self._together, [rows_of(feeds, shared, rows)], None if into is None else rows_of(into, shared, rows)
        )
        return into if into is not None else {name: np.concatenate([results[name], rest[name]]) for name in results}

    def _make_streams(self, feeds: Arrays) -> _Requests:
        """Compile for several streams, and compare them with the one that single rows take, on some rows of these.

        OpenVINO 2026.4.1 has been seen to compile one of several streams to something else, in some processes and not
        in others (docs/adr/0007-openvino.md): no verification can find that beforehand.
        """
        rows = [rows_of(feeds, row, row + 1) for row in range(self._threads)]
        wanted = self._run(self._together, rows, None)
        for _ in range(_COMPILATIONS):
            streams = _Requests(self._compile(streams=self._threads))
            # At first one waits for the other; then they run at once.
            if all(_alike(self._run(streams, rows, None), wanted) for _ in range(2)):
                return streams
        warnings.warn(
            "OpenVINO computes something else in several streams here: images are computed one after the other; "
            "use --backend onnxruntime, or --threads 1",
            stacklevel=2,
        )
        return self._together

    def _run(self, requests: _Requests, parts: list[Arrays], into: Arrays | None) -> Arrays:
        """Run the parts, as many at once as there are streams, and return the results in order.

        The first rows of a shape run alone. OpenVINO 2026.4.1 makes its kernels for a shape when it first comes. Where
        two streams do so at the same time, one of them may be given a product with a fused Gelu that is wrong, and
        stays so: on an AMD Zen 5 that happened to Vision Permutator in every third process. A kernel that has run once
        is safe for all streams.
        """
        results: list[list[Any]] = []
        with requests.taken(min(requests.streams, len(parts))) as taken:
            start = 0
            for index, part in enumerate(parts):
                stop = start + len(next(iter(part.values())))
                request = taken[index % len(taken)]
                request.wait()
                results.append(self._bind(request, part, None if into is None else rows_of(into, start, stop)))
                shapes = tuple(array.shape for array in part.values())
                if shapes in requests.met:
                    request.start_async()
                else:
                    for other in taken:
                        other.wait()
                    with _MEETING:
                        request.start_async()
                        request.wait()
                    requests.met.add(shapes)
                start = stop
            for request in taken:
                request.wait()
        if into is not None:
            return into
        arrays = [[tensor.data for tensor in tensors] for tensors in results]
        joined = arrays[0] if len(arrays) == 1 else [np.concatenate(column) for column in zip(*arrays, strict=True)]
        return {spec.name: array for spec, array in zip(self.outputs, joined, strict=True)}

    def _bind(self, request: Any, feeds: Arrays, into: Arrays | None) -> list[Any]:
        """Give a request the caller's memory for its inputs and outputs, or new tensors for the outputs."""
        ov = require("openvino")
        for spec in self.inputs:
            request.set_tensor(spec.name, ov.Tensor(feeds[spec.name], shared_memory=True))
        tensors = []
        for spec in self.outputs:
            if into is None:
                empty = [size if isinstance(size, int) else 0 for size in spec.shape]
                tensor = ov.Tensor(ov.Type(np.dtype(spec.dtype)), ov.Shape(empty))
            else:
                tensor = ov.Tensor(into[spec.name], shared_memory=True)
            request.set_tensor(spec.name, tensor)
            tensors.append(tensor)
        return tensors

    def _compile(self, streams: int) -> Any:
        """Return the compiled model, after comparing what it computes in with what was asked for."""
        options = {
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": streams,
            "INFERENCE_PRECISION_HINT": HINTS[self._compute],
            "EXECUTION_MODE_HINT": "ACCURACY" if self._compute == "fp32" else "PERFORMANCE",
        }
        with _failures_of(self._path):
            compiled = _core().compile_model(self._model, "CPU", options)
        found = precision_of(compiled)
        if found != self._compute:
            raise UsageError(f"OpenVINO computes in {found} here", self._compute, "use --precision fp32")
        return compiled

    def native_interface(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        inputs, outputs = ([_spec_of(port) for port in side] for side in (self._model.inputs, self._model.outputs))
        return inputs, outputs

    def _release(self) -> None:
        self._streams = None
        del self._together, self._model


def _alike(found: Arrays, wanted: Arrays) -> bool:
    """Return whether results differ by no more than roundings make them; what is no number is like anything."""
    return not any(
        bool((np.abs(found[name] - array) > _ELSE * np.sqrt(np.mean(np.square(array)))).any())
        for name, array in wanted.items()
    )


class _Requests:
    """A compiled model's infer requests: taken by whoever runs something, and brought back. Thread-safe."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.streams = int(compiled.get_property("NUM_STREAMS"))
        self.met: set[tuple[tuple[int, ...], ...]] = set()  # the inputs' shapes that were computed before
        self._free: deque[Any] = deque()

    @contextmanager
    def taken(self, count: int) -> Iterator[list[Any]]:
        """Yield `count` requests that nobody else uses; new ones where all are in use."""
        requests = [self._one() for _ in range(count)]
        yield requests
        self._free.extend(requests)  # not after an error: a request may still be running then

    def _one(self) -> Any:
        try:
            return self._free.pop()
        except IndexError:
            return self.compiled.create_infer_request()


@functools.cache
def _core() -> Any:
    return require("openvino").Core()


def native_precisions() -> list[str]:
    """Return the precisions that this processor computes in by itself, out of fp32, bf16, fp16 and int8."""
    capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [name for name, capability in _NATIVE.items() if capability in capabilities]


def _keeps_float32(manifest: Manifest) -> bool:
    """Return whether a typed fp16 file has nodes out of fp16's range, or kept: OpenVINO would round these too."""
    done = (manifest.quantization or {}).get("targets", {}).get(TARGET, {})
    return manifest.float_precision == "fp16" and bool(done.get("refused"))


def resolve_precision(of_artifact: str, asked: str | None) -> str:
    """Return what floats are computed in: as asked for, else as the artifact says; float32 around integers.

    Raises:
        UsageError: bf16 on a processor that has none.
    """
    wanted = asked or (of_artifact if of_artifact in HINTS else "fp32")
    native = native_precisions()
    if wanted == "bf16" and wanted not in native:
        raise UsageError(
            "this processor has no bfloat16 arithmetic", f"one of: {', '.join(native)}", "use --precision fp32"
        )
    if wanted == "fp16" and wanted not in native:
        warnings.warn("this processor has no float16 arithmetic: OpenVINO computes in float32", stacklevel=2)
        return "fp32"
    return wanted


def precision_of(compiled: Any) -> str:
    """Return what a compiled model says that it computes floats in."""
    name = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return {hint: precision for precision, hint in HINTS.items()}.get(name, name)


def _read(path: Path) -> Any:
    """Return the file as OpenVINO's model.

    Raises:
        ArtifactError: OpenVINO cannot read the file.
    """
    with _failures_of(path):
        return _core().read_model(str(path))


@contextmanager
def _failures_of(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # the one class that OpenVINO's errors have
        lines = [line.strip() for line in str(error).splitlines() if not line.startswith("Exception from")]
        version = require("openvino").__version__.partition("-")[0]
        raise ArtifactError(
            f"OpenVINO {version} cannot load {path} ({next(filter(None, lines), 'no reason given')})",
            fix="export the model again",
        ) from error


def _spec_of(port: Any) -> TensorSpec:
    """Return what OpenVINO says about one of its inputs or outputs."""
    shape = tuple(size.get_length() if size.is_static else "?" for size in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), shape, port.get_element_type().to_dtype().name, "")
