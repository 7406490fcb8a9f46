"""The TensorRT backend: an engine of the artifact, on TensorRT 8.6, 10, 11 or TensorRT-RTX. Never run on a GPU yet.

Who does what in `trt/`: `choice` compares engines with the machine, `engine` deserializes one, `profiles` splits a
batch, `pool` lends lanes to threads, a `lane` has a stream and moves rows, a `slot` has a context and buffers for one
set of shapes, `graphs` captures its work. CUDA itself is in `cuda/`.
"""

from __future__ import annotations

import contextlib
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.engines.sidecar import FOLDER, Sidecar, engines_of
from mlpdeploy.errors import MlpDeployError, UsageError
from mlpdeploy.manifest import Manifest, TensorSpec
from mlpdeploy.runtime.cuda.arrays import DeviceArray, device_array
from mlpdeploy.runtime.cuda.interface import CudaError, open_cuda
from mlpdeploy.runtime.feeds import Arrays
from mlpdeploy.runtime.gpu import visible_gpu
from mlpdeploy.runtime.session import LoadOptions, Session
from mlpdeploy.runtime.tensorrt_api import load_tensorrt
from mlpdeploy.runtime.trt.choice import Machine, choose_engine, plugin_for, read_engine_file
from mlpdeploy.runtime.trt.engine import LoadedEngine, deserialize
from mlpdeploy.runtime.trt.lane import Part
from mlpdeploy.runtime.trt.pool import LanePool
from mlpdeploy.runtime.trt.profiles import Chunk, of_few_sizes, split
from mlpdeploy.runtime.trt.ring import OutputRing

_WARM_UP_RUNS = 3  # directly, captured, as a graph
TARGETS = ("tensorrt", "tensorrt-rtx")


class BackendSession(Session):
    """A Session on an engine.

    Inputs and outputs may be on the GPU; they are bound without a copy where their address is a multiple of 256 and no
    row has to be added. `run` returns when the results are there.

    Attributes:
        sidecar: what the engine is.
    """

    backend = "tensorrt"

    def __init__(
        self, directory: Path, manifest: Manifest, options: LoadOptions, sidecar: Sidecar | None = None
    ) -> None:
        index = _gpu_index(options.device)
        if options.threads is not None:
            raise UsageError("threads on the backend tensorrt", fix="leave the number of threads out")
        self.sidecar, engine = _open(directory, manifest, options, index, sidecar)
        super().__init__(manifest, f"cuda:{index}", options.max_batch)
        self.file = f"{FOLDER}/{self.sidecar.file}"
        least = min(profile.rows[0] for profile in engine.profiles)
        self.max_batch = max(least, min(engine.most_rows, options.max_batch or engine.most_rows))
        self._engine = engine
        self._pool = LanePool(engine)
        # Also when nobody closes the session; at the end of the process a thread may be holding a lane for good.
        self._finalizer = weakref.finalize(self, _close_quietly, self._pool)

    def _on_gpu(self, value: Any, what: str) -> DeviceArray:
        with self._engine.cuda.current():  # PyTorch refuses where another GPU is the current one
            return device_array(value, what, self._engine.cuda)

    def _run_batch(self, arrays: Arrays, into: Arrays | None, rows: int) -> Arrays:
        results: dict[str, Any] = dict(into or {})
        chunks = self._chunks(arrays, rows, into)
        with self._engine.cuda.current(), self._pool.lend(len(chunks)) as lanes:
            for number, chunk in enumerate(chunks):
                lane = lanes[number % len(lanes)]
                lane.finish()
                lane.start(Part(chunk, rows, arrays, results))
            for lane in lanes:
                lane.finish()
        return into if into is not None else {spec.name: results[spec.name] for spec in self.outputs}

    def _execute(self, feeds: Arrays, into: Arrays | None) -> Arrays:
        return self._run_batch(feeds, into, len(next(iter(feeds.values()))))

    def _chunks(self, arrays: Arrays, rows: int, into: Arrays | None = None) -> list[Chunk]:
        sizes = {name: tuple(array.shape[1:]) for name, array in arrays.items()}
        profiles = self._engine.profiles
        chunks = split(profiles, rows, sizes, self.max_batch)
        if any(isinstance(array, DeviceArray) for array in (*arrays.values(), *(into or {}).values())):
            return chunks  # TensorRT uses the caller's memory, which has a row for each that is computed and no more
        return [of_few_sizes(chunk, profiles) for chunk in chunks]

    def warmup(self, batch: int = 1, runs: int = _WARM_UP_RUNS) -> None:
        """Run random inputs a few times on every stream, so that later runs find buffers and graphs.

        Call it before other threads use the GPU by another library: their allocations can break a capture.
        """
        feeds = self.random_feeds(batch)
        with self._engine.cuda.current(), self._pool.lend(1, all_of_them=True) as lanes:
            for lane in lanes:
                for _ in range(runs):
                    for chunk in self._chunks(feeds, batch):
                        lane.start(Part(chunk, batch, feeds, {}))
                        lane.finish()

    def gpu_ms(self, batch: int, runs: int, height_width: tuple[int, int] | None = None) -> list[float]:
        """Return the GPU's own times of some runs, see `Session.gpu_ms`; a warm-up comes before them.

        Raises:
            UsageError: the batch does not go through at once.
        """
        feeds = self.random_feeds(batch, height_width=height_width)
        chunks = self._chunks(feeds, batch)
        if len(chunks) > 1:
            raise UsageError(f"a batch of {batch} in one run", f"at most {self.max_batch}")
        with self._engine.cuda.current(), self._pool.lend(1) as lanes:
            return lanes[0].gpu_ms(Part(chunks[0], batch, feeds, {}), runs + _WARM_UP_RUNS)[_WARM_UP_RUNS:]

    def output_ring(self, rows: int, sets: int = 3) -> OutputRing:
        """Return places on the GPU for the results of batches of `rows`, used in turns: `run(feeds, ring.next())`.

        Raises:
            UsageError: an output has an open size besides the batch.
        """
        shapes = {}
        for spec in self.outputs:
            sizes = tuple(size for size in spec.shape[1:] if isinstance(size, int))
            if len(sizes) < len(spec.shape) - 1:
                raise UsageError(f"a ring for {spec.name!r} {spec.shape}", "outputs of a fixed size", "give your own")
            shapes[spec.name] = ((rows, *sizes), np.dtype(spec.dtype))
        return OutputRing(self._engine.cuda, shapes, sets)

    def graphs(self) -> dict[str, str]:
        """Return {input shapes that were run: `CUDA graph`, or why there is none}."""
        return dict(self._engine.notes)

    def native_interface(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        specs = {
            name: TensorSpec(name, tuple("?" if size < 0 else size for size in tensor.shape), tensor.dtype, "")
            for name, tensor in self._engine.tensors.items()
        }
        return [specs[name] for name in self._engine.inputs], [specs[name] for name in self._engine.outputs]

    def _release(self) -> None:
        self._finalizer.detach()
        self._pool.close()
        self._engine.drop()


def _open(
    directory: Path, manifest: Manifest, options: LoadOptions, index: int, sidecar: Sidecar | None
) -> tuple[Sidecar, LoadedEngine]:
    """Return the engine that fits, and what it is; everything that can be compared is, before it is loaded."""
    target = options.role or _target(directory)
    sidecar = sidecar or choose_engine(directory, manifest, _machine(target, index))
    api = load_tensorrt(target)
    library = plugin_for(sidecar)
    plan = read_engine_file(directory, sidecar)
    cuda = open_cuda(index)
    with cuda.current():
        if library is not None:
            api.load_plugins(library)
        host_code = bool(sidecar.fingerprint.flags.get("version_compatible"))
        return sidecar, deserialize(api, cuda, directory / FOLDER / sidecar.file, plan, host_code)


def fitting_engine(directory: Path, manifest: Manifest, options: LoadOptions) -> Sidecar | None:
    """Return the engine that a session would run here, or None where there is none, no GPU or no TensorRT."""
    with contextlib.suppress(MlpDeployError):
        if engines_of(directory):
            machine = _machine(options.role or _target(directory), _gpu_index(options.device))
            return choose_engine(directory, manifest, machine)
    return None


def _machine(target: str, index: int) -> Machine:
    """Return what is here, after asking whether its parts fit together."""
    api, gpu = load_tensorrt(target), visible_gpu(index)
    api.check_driver(gpu.driver, gpu.cuda)
    return Machine(target, api.version, gpu, index)


def _target(directory: Path) -> str:
    """Return the flavour of TensorRT to run: that of the artifact's engines, TensorRT before TensorRT-RTX."""
    found = {sidecar.fingerprint.target for sidecar in engines_of(directory)}
    return next((target for target in TARGETS if target in found), TARGETS[0])


def _gpu_index(device: str | None) -> int:
    """Return the GPU of `cuda` or `cuda:1`; None is the first."""
    kind, _, number = (device or "cuda").partition(":")
    if kind != "cuda":
        raise UsageError(f"device {device} on the backend tensorrt", "cuda", "leave the device out")
    if number and not number.isdigit():
        raise UsageError(f"device {device!r}", "cuda, or cuda:1 for the second GPU")
    return int(number or 0)


def _close_quietly(pool: LanePool) -> None:
    with contextlib.suppress(CudaError):
        pool.close(wait=False)
