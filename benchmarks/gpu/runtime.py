"""Build an engine and check the TensorRT runtime with it: parity, rows, graphs, arrays on the GPU, times.

    python benchmarks/gpu/runtime.py DIR [-o results.json] [--profile 1:1:1 --profile 2:8:32] [--plugin embedded]

Needs an NVIDIA GPU, mlpdeploy[export,tensorrt] and, for arrays on the GPU, a torch with CUDA. Never run on a GPU yet;
the tests run it on a simulated one. Exits with 1 when a check fails; what could not be checked is named as skipped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.engines.build import build_artifact
from mlpdeploy.engines.options import BuildOptions, parse_batches
from mlpdeploy.env import git_commit, tool_versions
from mlpdeploy.runtime.gpu import visible_gpu
from mlpdeploy.runtime.loading import load
from mlpdeploy.verify.tolerance import row_identity
from mlpdeploy.verify.verify import verify_artifact

PROFILES = ("1:1:1", "2:8:32")
RUNS = 50


def examine(
    directory: Path, profiles: tuple[str, ...] = PROFILES, runs: int = RUNS, plugin: Any = None
) -> dict[str, Any]:
    """Return every figure, and `failed`: the names of the checks that failed."""
    shift: Any = "plugin" if plugin else "auto"
    built = build_artifact(
        directory, BuildOptions(batches=tuple(map(parse_batches, profiles)), shift=shift, plugin=plugin)
    )
    report = verify_artifact(directory, backend="tensorrt")
    result: dict[str, Any] = {
        "engine": dataclasses.asdict(built.sidecar),
        "gpu": dataclasses.asdict(visible_gpu()),
        "git_commit": git_commit(),
        "tools": tool_versions(("tensorrt", "cuda", "pycuda", "torch", "numpy")),
        "parity": report.to_dict(),
    }
    failed = [] if report.passed else ["parity"]
    with load(directory, backend="tensorrt") as session:
        if session.sidecar != built.sidecar:  # type: ignore[attr-defined]
            failed.append("another engine was run")
        sizes = sorted({1, 8, session.max_batch, session.max_batch + 1})
        for batch in sizes:
            session.warmup(batch)
        result["rows"] = _rows(session, failed)
        result["arrays_on_the_gpu"] = _device_arrays(session, failed)
        result["times"] = {str(batch): _times(session, batch, runs) for batch in sizes}
        result["graphs"] = session.graphs()  # type: ignore[attr-defined]
        if any(note.startswith("no CUDA graph") for note in result["graphs"].values()):
            failed.append("graphs")
    return {**result, "failed": failed}


def _rows(session: Any, failed: list[str]) -> dict[str, Any]:
    """Compare each row of a batch with the same row alone, and equal rows with each other."""
    rows = session.max_batch + 3  # split, and a small rest
    ((name, images),) = session.random_feeds(rows).items()
    together = session.run({name: images})
    alone = [session.run({name: images[i : i + 1]}) for i in range(rows)]
    equal = session.run({name: np.repeat(images[:1], rows, 0)})
    found = {}
    for output, array in together.items():
        scale = float(np.std(array.astype(np.float64))) or 1.0
        single = np.concatenate([result[output] for result in alone])
        found[output] = {
            "against_alone": float(np.abs(array.astype(np.float64) - single).max()) / scale,
            "equal_rows": float(np.abs(equal[output].astype(np.float64) - equal[output][:1]).max()) / scale,
            "allowed": row_identity(session.manifest.precision, session.backend),
        }
        if max(found[output]["against_alone"], found[output]["equal_rows"]) > found[output]["allowed"]:
            failed.append(f"rows of {output}")
    return found


def _device_arrays(session: Any, failed: list[str]) -> str:
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
    for _ in range(20):  # without a wait between them: the order must come from the streams
        session.run({name: torch.from_numpy(images).cuda() * 1.0}, outputs)
        for key, array in wanted.items():
            if not np.array_equal(outputs[key].cpu().numpy(), array):
                failed.append(f"arrays on the GPU, {key}")
                return "different"
    return "equal"


def _times(session: Any, batch: int, runs: int) -> dict[str, Any]:
    """Return medians in milliseconds: of the GPU alone, where the batch goes through at once, and from host to host."""
    feeds = session.random_feeds(batch)
    host = []
    for _ in range(runs):
        began = time.perf_counter()
        session.run(feeds)
        host.append(1000 * (time.perf_counter() - began))
    fits = batch <= session.max_batch
    gpu = statistics.median(session.gpu_ms(batch, runs)) if fits else None
    p99 = sorted(host)[min(len(host) - 1, int(0.99 * len(host)))]
    return {"gpu_ms": gpu, "host_to_host_ms": statistics.median(host), "host_to_host_p99_ms": p99, "runs": runs}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--profile", action="append")
    parser.add_argument("--plugin", help="build with the plugin in this form, see mlpdeploy build")
    options = parser.parse_args(arguments)
    result = examine(options.directory, tuple(options.profile or PROFILES), plugin=options.plugin)
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
