"""ONNX Runtime on a GPU: parity with float64 PyTorch, arrays on the GPU, and times.

    python benchmarks/gpu/onnxruntime_gpu.py DIR [--backend onnxruntime-tensorrt] [-o results.json]

Needs an NVIDIA GPU, onnxruntime-gpu, mlpdeploy[export] and, for arrays on the GPU, a torch with CUDA. Never run on a
GPU yet; the tests run it on a simulated one. Exits with 1 when a check fails; what was not checked is named as skipped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.env import git_commit, tool_versions
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.session import Session
from mlpdeploy.verify.verify import verify_artifact

BATCHES = (1, 8, 32)
RUNS = 50


def examine(directory: Path, backend: str = "onnxruntime", runs: int = RUNS) -> dict[str, Any]:
    """Return every figure, and `failed`: the names of the checks that failed."""
    report = verify_artifact(directory, backend=backend, device="cuda", record=False)
    failed = [] if report.passed else ["parity"]
    with load(directory, backend, "cuda", max_batch=max(BATCHES)) as session:
        result = {
            "backend": backend,
            "file": session.file,
            "git_commit": git_commit(),
            "tools": tool_versions(("onnxruntime", "tensorrt", "torch", "numpy")),
            "parity": report.to_dict(),
            "nodes": session._gpu.nodes,  # type: ignore[attr-defined]
            "arrays_on_the_gpu": _device_arrays(session, failed),
            "milliseconds": {str(batch): _milliseconds(session, batch, runs) for batch in BATCHES},
        }
    return {**result, "failed": failed}


def _device_arrays(session: Session, failed: list[str]) -> str:
    """Compare results of tensors on the GPU with those of the same values on the host."""
    try:
        import torch
    except ImportError:
        return "skipped: no torch"
    if not torch.cuda.is_available():
        return "skipped: this torch has no CUDA"
    ((name, images),) = session.random_feeds(8).items()
    wanted = session.run({name: images})
    outputs = {key: torch.empty(array.shape, device="cuda") for key, array in wanted.items()}
    for _ in range(20):
        session.run({name: torch.from_numpy(images).cuda() * 1.0}, outputs)
        for key, array in wanted.items():
            if not np.allclose(outputs[key].cpu().numpy(), array, atol=1e-4 * float(array.std())):
                failed.append(f"arrays on the GPU, {key}")
                return "different"
    return "equal"


def _milliseconds(session: Session, batch: int, runs: int) -> float:
    """Return the median from host to host."""
    feeds = session.random_feeds(batch)
    session.warmup(batch)
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        session.run(feeds)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    result = examine(options.directory, options.backend)
    text = json.dumps(result, indent=1) + "\n"
    if options.output:
        options.output.write_text(text)
    else:
        print(text, end="")
    for name in result["failed"]:
        print(f"FAILED: {name}", file=sys.stderr)
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
