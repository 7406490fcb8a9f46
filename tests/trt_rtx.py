"""Build engines with TensorRT-RTX, which does so without a GPU; the package has no plugins.

Run as a program: `python tests/trt_rtx.py MODEL.onnx SM89,SM120` prints one JSON line. In a process of its own, because
a parser that aborts takes its process with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest


def require_trt_rtx() -> None:
    """Skip the test where TensorRT-RTX is not installed."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'mlpdeploy[rtx]'")


def build(path: Path, capabilities: tuple[str, ...] = ("SM89", "SM120"), timeout_s: int = 900) -> dict[str, Any]:
    """Return {"built": ..., "engine_bytes": ..., "seconds": ..., "layers": ..., "types": [...], "messages": [...]}."""
    done = subprocess.run(
        [sys.executable, __file__, str(path), ",".join(capabilities)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        return {"built": False, "messages": [f"exit code {done.returncode}", done.stderr[-2000:]]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _build(path: str, capabilities: list[str]) -> dict[str, Any]:
    import tensorrt_rtx as trt

    messages: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                messages.append(f"{str(severity).rpartition('.')[2]}: {message}")

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(path):
        return {"built": False, "messages": [parser.get_error(i).desc() for i in range(parser.num_errors)] + messages}
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        sizes = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (1, *sizes), (4, *sizes), (8, *sizes))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = len(capabilities)
    for index, name in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    # The types of what convolutions and products compute: read back from the network, not from the request.
    kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    types = sorted({str(layer.get_output(0).dtype).rpartition(".")[2] for layer in layers if layer.type in kinds})
    begin = time.perf_counter()
    engine = builder.build_serialized_network(network, config)
    return {
        "built": engine is not None,
        "engine_bytes": 0 if engine is None else engine.nbytes,
        "seconds": time.perf_counter() - begin,
        "layers": network.num_layers,
        "types": types,
        "messages": messages,
    }


if __name__ == "__main__":
    print(json.dumps(_build(sys.argv[1], sys.argv[2].split(","))))  # noqa: T201
