"""An engine in memory: deserialized, with everything about it that running needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.runtime.cuda.interface import Cuda
from mlpdeploy.runtime.tensorrt_api import EngineError, EngineTensor, TensorRt
from mlpdeploy.runtime.tensorrt_log import Complaints
from mlpdeploy.runtime.trt.profiles import Profile


@dataclass
class LoadedEngine:
    """One engine on one GPU; its execution contexts are made by slots.

    Attributes:
        api: the TensorRT that runs it.
        engine: TensorRT's object.
        cuda: the GPU.
        complaints: what TensorRT says is wrong.
        tensors: inputs and outputs by name.
        profiles: what batches and sizes it takes.
        scratch_bytes: device memory that a context needs while it runs.
        runtime: TensorRT's, which must live as long as the engine.
        notes: {what was run (shapes, profile, bound tensors): whether as a CUDA graph, or why not}.
    """

    api: TensorRt
    engine: Any
    cuda: Cuda
    complaints: Complaints
    tensors: dict[str, EngineTensor]
    profiles: tuple[Profile, ...]
    scratch_bytes: int
    runtime: Any
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(name for name, tensor in self.tensors.items() if tensor.is_input)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(name for name, tensor in self.tensors.items() if not tensor.is_input)

    @property
    def has_profiles(self) -> bool:
        """Whether a shape is open, so that a context has to be told its profile."""
        return any(-1 in tensor.shape for tensor in self.tensors.values() if tensor.is_input)

    @property
    def most_rows(self) -> int:
        """Rows of the largest batch."""
        return max(profile.rows[2] for profile in self.profiles)

    def drop(self) -> None:
        """Free the engine's memory; nobody may use it afterwards."""
        with self.cuda.current():
            self.engine = None
            self.runtime = None

    def dtype(self, name: str) -> np.dtype:
        """Return a tensor's numpy dtype."""
        return np.dtype(self.tensors[name].dtype)


def deserialize(api: TensorRt, cuda: Cuda, path: Path, plan: bytes, host_code: bool) -> LoadedEngine:
    """Return the engine of a plan; the GPU's context must be current, and the plugin library loaded.

    Args:
        path: for the message.
        host_code: whether the plan is version-compatible, and so carries a runtime of its own.

    Raises:
        EngineError: TensorRT refuses it.
    """
    complaints = Complaints()
    runtime, engine = api.open_engine(api.logger(complaints), plan, host_code)
    if engine is None:
        raise EngineError(
            f"{api.name} cannot load {path}: {complaints.last()}",
            fix="run: mlpdeploy doctor; if it finds nothing, build the engine again with mlpdeploy build --force",
        )
    tensors = {tensor.name: tensor for tensor in api.tensors(engine)}
    inputs = [tensor for tensor in tensors.values() if tensor.is_input]
    profiles = _profiles(engine, inputs)
    scratch_bytes = api.scratch_bytes(engine)
    return LoadedEngine(api, engine, cuda, complaints, tensors, profiles, scratch_bytes, runtime)


def _profiles(engine: Any, inputs: list[EngineTensor]) -> tuple[Profile, ...]:
    """Return the engine's profiles; one of fixed shapes for an engine that has no others."""
    if not any(-1 in tensor.shape for tensor in inputs):
        return (Profile(0, {tensor.name: (tensor.shape,) * 3 for tensor in inputs}),)
    found = []
    for index in range(engine.num_optimization_profiles):
        shapes = {}
        for tensor in inputs:
            low, middle, high = (tuple(shape) for shape in engine.get_tensor_profile_shape(tensor.name, index))
            shapes[tensor.name] = (low, middle, high)
        found.append(Profile(index, shapes))
    return tuple(found)
