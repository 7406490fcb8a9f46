"""The ONNX Runtime backend: CPU, and CUDA where the GPU package and a GPU are there (`onnxruntime_gpu.py`)."""

from __future__ import annotations

import ctypes
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.env import cpu_count, exact_sums, require
from mlpdeploy.errors import ArtifactError, MissingDependencyError, PluginError, UsageError
from mlpdeploy.manifest import Manifest, TensorSpec, checked_file
from mlpdeploy.plugins.cpu import find_cpu_library, kernels_of
from mlpdeploy.runtime.feeds import Arrays, rows_of
from mlpdeploy.runtime.onnxruntime_gpu import (
    CUDA,
    GpuRunner,
    Provider,
    Source,
    cuda_provider,
    gpu_index,
    has_provider,
)
from mlpdeploy.runtime.session import LoadOptions, Session, stream_runs

# How the passes are called whose nodes the library of CPU kernels runs.
_BLOCK_PASSES = "form_"


@dataclass
class _Streams:
    """A single-threaded ONNX Runtime session and the threads that call it."""

    session: Any
    pool: ThreadPoolExecutor


class BackendSession(Session):
    """A Session on ONNX Runtime.

    On the CPU one image, or a few, are computed by all threads together. As many images as threads, or more, are
    computed by one single-threaded session in as many streams: nothing waits for the slower half of an operator, and a
    stream's activations stay in its core's cache. Both give the same bits. The second session, with its own copy of the
    weights, is made when the first such batch comes.
    """

    backend = "onnxruntime"

    def __init__(self, directory: Path, manifest: Manifest, options: LoadOptions) -> None:
        self._gpu = self._open_gpu(directory, manifest, options) if self._wants_gpu(manifest, options) else None
        self._library: Path | None = None
        if self._gpu is not None:
            self._session, self._threads = self._gpu.session, 1
        else:
            role = options.role or "cpu"
            self.file = manifest.file_for(role)
            # Absolute: it is opened again for streams, whatever folder the process is in then.
            self._path = checked_file(directory.absolute(), manifest, self.file)
            self._on_disk = _state_of(self._path, manifest)
            self._threads = options.threads or cpu_count()
            wanted = options.kernels and has_blocks(manifest, role)
            self._library = _usable_library() if wanted else None
            self.kernels = "" if self._library is None else kernels_of(self._library, manifest.precision) or ""
            if wanted and manifest.precision == "bf16" and not self.kernels:
                sys.stderr.write(
                    "mlpdeploy: no CPU kernels for bf16 here (mlpdeploy doctor): float32 operators compute the same "
                    "numbers, no faster than a float32 artifact\n"
                )
            self._session = inference_session(
                self._path, threads=self._threads, share_processors=options.share_processors, library=self._library
            )
        super().__init__(manifest, f"cuda:{self._gpu.index}" if self._gpu else "cpu", options.max_batch)
        self._names = [spec.name for spec in self.outputs]
        self._streams: _Streams | None = None
        self._replaced = False
        self._making_streams = threading.Lock()

    def _wants_gpu(self, manifest: Manifest, options: LoadOptions) -> bool:
        """Return whether the GPU is asked for, or nothing is and it can be had for this artifact."""
        if self.backend != BackendSession.backend:
            return True
        if options.device is not None:
            return options.device.startswith("cuda")
        return has_provider(CUDA) and manifest.precision == "fp32"

    def _open_gpu(self, directory: Path, manifest: Manifest, options: LoadOptions) -> GpuRunner | None:
        """Return what runs on the GPU; None, with a line on stderr, where it cannot and nobody insists."""
        self.file, source, providers, index = self._gpu_source(directory, manifest, options)
        try:
            return GpuRunner(source, providers, index)
        except MissingDependencyError as error:
            if options.device is not None or self.backend != BackendSession.backend:
                raise
            sys.stderr.write(f"mlpdeploy: computes on the CPU: {error}\n")
            return None

    def _gpu_source(
        self, directory: Path, manifest: Manifest, options: LoadOptions
    ) -> tuple[str, Source, list[Provider], int]:
        """Return the file to run on a GPU, where it is, with which providers, and which GPU."""
        index = gpu_index(options.device, self.backend)
        name = manifest.file_for_cuda(options.role or "", options.device or "cuda")
        return name, Source(checked_file(directory, manifest, name)), [cuda_provider(index)], index

    def _on_gpu(self, value: Any, what: str) -> Any:
        return super()._on_gpu(value, what) if self._gpu is None else self._gpu.array(value, what)

    def _run_batch(self, arrays: Arrays, into: Arrays | None, rows: int) -> Arrays:
        there = [value for value in (*arrays.values(), *(into or {}).values()) if not isinstance(value, np.ndarray)]
        if there and self.fixed_batch is not None and rows % self.fixed_batch:
            raise UsageError(
                f"{rows} rows on the GPU for a model with a fixed batch of {self.fixed_batch}",
                f"a multiple of {self.fixed_batch}",
                "add rows, or give arrays of the CPU, to which zeros are added",
            )
        return super()._run_batch(arrays, into, rows)

    def _execute(self, feeds: Arrays, into: Arrays | None) -> Arrays:
        if self._gpu is not None:
            return self._gpu.run(feeds, into, self.outputs)
        rows = len(next(iter(feeds.values())))
        if self.fixed_batch is not None or not 1 < self._threads <= rows:
            return self._run(self._session, feeds, into)
        streams = self._stream_session()
        if streams is None:
            return self._run(self._session, feeds, into)
        shared = rows - rows % self._threads
        parts = self._stream(streams, rows_of(feeds, 0, shared), None if into is None else rows_of(into, 0, shared))
        if shared < rows:
            rest = None if into is None else rows_of(into, shared, rows)
            parts.append(self._run(self._session, rows_of(feeds, shared, rows), rest))
        if into is not None:
            return into
        return {name: np.concatenate([part[name] for part in parts]) for name in self._names}

    def _stream_session(self) -> _Streams | None:
        """Return what runs rows in streams, loaded when it is first asked for.

        None, after a warning, where the file is not any more the one that this session has read: it goes on with what
        it has.
        """
        with self._making_streams:
            if self._streams is None and not self._replaced:
                session = None
                if _state_of(self._path, self.manifest) == self._on_disk:
                    session = inference_session(self._path, threads=1, library=self._library)
                if session is None or _state_of(self._path, self.manifest) != self._on_disk:
                    self._replaced = True
                    warnings.warn(
                        f"{self._path.parent} was replaced since it was loaded: this session keeps the model that it "
                        "has, and computes batches without streams; load the artifact again",
                        stacklevel=2,
                    )
                else:
                    self._streams = _Streams(session, ThreadPoolExecutor(self._threads, "mlpdeploy-stream"))
            return self._streams

    def _stream(self, streams: _Streams, feeds: Arrays, into: Arrays | None) -> list[Arrays]:
        """Run the rows in streams, a few at a time, and return the results in order."""
        rows = len(next(iter(feeds.values())))

        def work(run: tuple[int, int]) -> Arrays:
            start, stop = run
            target = None if into is None else rows_of(into, start, stop)
            return self._run(streams.session, rows_of(feeds, start, stop), target)

        return list(streams.pool.map(work, stream_runs(rows, self._threads)))

    def _run(self, session: Any, feeds: Arrays, into: Arrays | None) -> Arrays:
        if into is None:
            return dict(zip(self._names, session.run(self._names, feeds), strict=True))
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, array in into.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        session.run_with_iobinding(binding)
        return into

    def native_interface(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        sides = (self._session.get_inputs(), self._session.get_outputs())
        inputs, outputs = ([_spec_of(value) for value in side] for side in sides)
        return inputs, outputs

    def _release(self) -> None:
        if self._streams is not None:
            self._streams.pool.shutdown()
            self._streams = None
        del self._session
        self._gpu = None


def _state_of(path: Path, manifest: Manifest) -> list[tuple[int, int, int, int]] | None:
    """Return what changes where a model's file, or that of its weights, is replaced or written to; None without one."""
    try:
        states = [path.with_name(name).stat() for name in (path.name, manifest.files[path.name].weights) if name]
    except OSError:
        return None
    return [(state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns) for state in states]


def has_blocks(manifest: Manifest, role: str) -> bool:
    """Return whether a role's file has operators that the library of CPU kernels runs."""
    return any(
        report["name"].startswith(_BLOCK_PASSES) and report["target"] == role and report["changed"]
        for report in manifest.passes
    )


def _usable_library() -> Path | None:
    """Return the library of CPU kernels, or None where there is none or, after a warning, where it cannot be loaded."""
    try:
        library = find_cpu_library()
    except PluginError as error:
        warnings.warn(f"without the CPU kernels: {error}", stacklevel=2)
        return None
    if library is None:
        return None
    try:
        require("onnxruntime").SessionOptions().register_custom_ops_library(str(library))
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors have no common class but Exception
        first = str(error).strip().splitlines()[0]
        warnings.warn(f"without the CPU kernels: {library} cannot be loaded ({first})", stacklevel=2)
        return None
    return library


def _spec_of(value: Any) -> TensorSpec:
    """Return what ONNX Runtime says about one of its inputs or outputs."""
    dtype = {"float": "float32", "double": "float64"}.get(kind := value.type[7:-1], kind)
    return TensorSpec(value.name, tuple(value.shape), dtype, "")


def inference_session(
    source: Path, *, threads: int | None = None, share_processors: bool = False, library: Path | None = None
) -> Any:
    """Return an `onnxruntime.InferenceSession` on the CPU, with the options that this project runs its models with.

    Args:
        library: of operators (`plugins/cpu.py`).

    Raises:
        ArtifactError: ONNX Runtime cannot load the file.
    """
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cpu_count()
    options.inter_op_num_threads = 1
    if share_processors:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    # Weights outside of the arena, which grows in powers of two.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    for option in exact_sums().items():
        options.add_session_config_entry(*option)
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(str(library))
    try:
        with _weights_go_back_to_the_system():
            return ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class but Exception
        first = str(error).strip().splitlines()[0]
        raise ArtifactError(
            f"ONNX Runtime {ort.__version__} cannot load {source} ({first})", fix="export or quantize the model again"
        ) from error


_M_MMAP_THRESHOLD = -3
_MMAP_BYTES_WHILE_LOADING = 256 << 10
_MMAP_BYTES_AFTERWARDS = 32 << 20  # where glibc's own adjustment ends in a process that frees large blocks


@contextmanager
def _weights_go_back_to_the_system() -> Iterator[None]:
    """While a model loads, let glibc map every large block by itself.

    ONNX Runtime copies the weights into another layout and frees the originals. In glibc's heap the holes that this
    leaves are not reused, so the peak is higher than with each tensor in a mapping of its own. Nothing happens with
    another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES_WHILE_LOADING)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES_AFTERWARDS)
