"""Run a network with marked outputs as an engine that is built for this one question."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlpdeploy.engines.process import run_build
from mlpdeploy.engines.worker import BuildRequest
from mlpdeploy.manifest import Manifest
from mlpdeploy.runtime.cuda.interface import open_cuda
from mlpdeploy.runtime.gpu import visible_gpu
from mlpdeploy.runtime.tensorrt_api import load_tensorrt
from mlpdeploy.runtime.trt.engine import deserialize
from mlpdeploy.runtime.trt.lane import Lane, Part
from mlpdeploy.runtime.trt.profiles import Chunk

if TYPE_CHECKING:
    import onnx


def run_marked(
    model: onnx.ModelProto, marks: dict[str, str], feed: np.ndarray, manifest: Manifest, scratch: Path
) -> dict[str, np.ndarray]:
    """Return {value: array} of an engine of the model.

    Args:
        model: for TensorRT, with the marked values as outputs and without plugin nodes.
        marks: {block: value}.
        feed: (N, C, H, W) float32, computed at once.
        manifest: of the artifact.
        scratch: a folder for the network and the engine.

    Raises:
        MissingDependencyError: no TensorRT, no GPU, or nothing that reaches CUDA.
        EngineError: TensorRT cannot build or run it.
    """
    import onnx

    api, _ = load_tensorrt("tensorrt"), visible_gpu()
    path, plan = scratch / "marked.onnx", scratch / "marked.plan"
    onnx.save(model, path, save_as_external_data=True, location="marked.weights", convert_attribute=False)
    (spec,) = manifest.inputs
    shape = tuple(feed.shape)
    profiles = ({spec.name: (shape, shape, shape)},) if any(isinstance(size, str) for size in spec.shape) else ()
    run_build(BuildRequest("tensorrt", str(path), str(plan), manifest.precision, profiles), scratch)
    cuda = open_cuda()
    results: dict[str, np.ndarray] = {}
    with cuda.current():
        engine = deserialize(api, cuda, plan, plan.read_bytes(), host_code=False)
        lane = Lane(engine)
        try:
            lane.start(
                Part(Chunk(0, len(feed), len(feed), 0), len(feed), {spec.name: feed.astype(spec.dtype)}, results)
            )
            lane.finish()
        finally:
            lane.drain()
            lane.close()
            engine.drop()
    return results
