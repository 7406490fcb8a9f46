"""Benchmark an artifact: build the peers, check every one of them, time them interleaved, measure their memory."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.artifact import disk_errors, write_file
from mlpdeploy.bench.candidates import (
    LABELS,
    OURS,
    Peer,
    PeerUnavailableError,
    Source,
    first_run,
    output_error,
)
from mlpdeploy.bench.concurrent import Throughput, check_callers, measure_concurrent
from mlpdeploy.bench.measure import MIN_RUNS, SECONDS, WARMUP, Candidate, Progress, check_effort, measure_interleaved
from mlpdeploy.bench.memory import MemoryUse, measure_memory
from mlpdeploy.bench.peers import BuiltPeers, build_peers, session_run
from mlpdeploy.bench.plan import SEED, BenchPlan, resolve_batches, resolve_height_width, resolve_peers
from mlpdeploy.bench.plot import plot_png
from mlpdeploy.bench.report import BenchReport, Result
from mlpdeploy.env import cpu_count, git_commit, machine, tool_versions
from mlpdeploy.errors import ArtifactError, VerificationError
from mlpdeploy.manifest import CANONICAL, Manifest, read_manifest
from mlpdeploy.runtime.backends import DEFAULT_BACKEND, GPU_BACKENDS
from mlpdeploy.runtime.loading import AUTO, load
from mlpdeploy.runtime.session import Session

_GPU_RUNS = 20
_TOOLS = ("numpy", "onnxruntime", "openvino", "torch", "onnx", "onnxscript", "onnx_ir")

# By precision of the artifact: how far a peer's output may be from ours, as a part of its standard deviation. Wide
# enough for another order of summation or for rounded weights, narrow enough for another model: unrelated outputs
# differ by 4 and more. Of lower precisions the usual error is 0.8 % (bf16) and 3 % (int8); the largest of thousands is
# several times that.
MAX_OUTPUT_ERROR = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.05, "int8": 0.3}


def bench_artifact(
    directory: str | Path,
    *,
    batches: Sequence[int] | None = None,
    threads: int | None = None,
    seconds: float = SECONDS,
    warmup: int = WARMUP,
    min_runs: int = MIN_RUNS,
    image_size: int | tuple[int, int] | None = None,
    peers: Sequence[str] | None = None,
    memory: bool = True,
    backend: str | None = None,
    precision: str | None = None,
    callers: Sequence[int] = (),
    progress: Progress | None = None,
) -> BenchReport:
    """Return how fast an artifact runs on this machine's CPU, beside what one would use instead.

    Every candidate's outputs are compared with ours at every batch size before it is timed; one that computes something
    else is reported as a mismatch, and one that cannot run here as unavailable.

    Args:
        directory: made by `mlpdeploy export`.
        batches: rows per run; None means 1 and 8, or the one that the artifact is fixed to.
        threads: of every candidate; None takes every processor that this process may use.
        seconds: of measuring per batch size, all candidates together; as many again for `callers`.
        warmup: runs of each candidate before its first round.
        min_runs: timed runs per candidate at least.
        image_size: pixels, one number or (height, width), where the artifact leaves them open; None means the model's.
        peers: names out of `candidates.PEERS`; None means all that can run here.
        memory: also measure peak memory and load time, each in a process of its own.
        backend, precision: of ours, see `load`; the artifact on the other backends is among the peers.
        callers: also measure what so many threads get together that call ours at once, for each number given.
        progress: called with a short text at the beginning of each step.

    Raises:
        UsageError: unknown peer, impossible batch, image size or number of threads or callers.
        ArtifactError: the artifact is damaged.
        MissingDependencyError: the backend is not installed.
        VerificationError: our own outputs are not finite.
    """
    directory, say = Path(directory), progress or (lambda text: None)
    manifest = read_manifest(directory)
    if manifest.precision not in MAX_OUTPUT_ERROR:
        raise ArtifactError(
            f"the artifact's precision is {manifest.precision!r}", f"one of: {', '.join(MAX_OUTPUT_ERROR)}"
        )
    check_effort(warmup, min_runs, seconds)
    if backend == AUTO:
        with load(directory, AUTO, "cpu", threads=threads, precision=precision) as session:
            backend = session.backend
    backend = backend or DEFAULT_BACKEND
    plan = BenchPlan(
        batches=resolve_batches(manifest.inputs[0], batches),
        threads=cpu_count() if threads is None else threads,
        seconds=seconds,
        warmup=warmup,
        min_runs=min_runs,
        height_width=resolve_height_width(manifest, image_size),
        peers=resolve_peers(manifest, peers, backend, precision),
        memory=memory,
        backend=backend,
        precision=precision,
        callers=check_callers(callers),
    )
    environment = _environment()
    results, uses, concurrent, file, kernels = _carry_out(plan, directory, manifest, say)
    return BenchReport(
        **environment,
        model=manifest.model,
        artifact={**_artifact(manifest, plan.backend, file), "kernels": kernels},
        options=asdict(plan),
        results=tuple(results),
        memory=tuple(uses),
        concurrent=tuple(concurrent),
    )


def write_report(report: BenchReport, json_path: str | Path | None, png_path: str | Path | None = None) -> None:
    """Write the results file, and the plot where its path is given; each appears whole or not at all.

    Raises:
        ArtifactError: the place cannot be written.
        MissingDependencyError: a plot is wanted and matplotlib is not installed; the results file is there by then.
    """
    if json_path is not None:
        _write(Path(json_path), report.to_json().encode())
    if png_path is not None:
        _write(Path(png_path), plot_png(report))


def _write(path: Path, data: bytes) -> None:
    path = Path(os.path.abspath(path))
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, data)


def _carry_out(
    plan: BenchPlan, directory: Path, manifest: Manifest, say: Progress
) -> tuple[list[Result], list[MemoryUse], list[Throughput], str, str]:
    """Return what was found, the file that ran and the kernels of our own that ran it, see `Session.kernels`.

    Ours runs first at every batch size, so that a wrong request fails early.
    """
    largest = max(plan.batches)
    say("loading the artifact")
    results: list[Result] = []
    uses: list[MemoryUse] = []
    concurrent: list[Throughput] = []
    on_gpu = plan.backend in GPU_BACKENDS
    device, threads = (None, None) if on_gpu else ("cpu", plan.threads)
    with load(directory, plan.backend, device, threads=threads, max_batch=largest, precision=plan.precision) as session:
        ours = Peer(OURS, session_run(session), _source(plan, directory, manifest))
        max_error = max(MAX_OUTPUT_ERROR[name] for name in (manifest.precision, session.precision))
        feeds = {batch: _feed(session, batch, plan.height_width) for batch in plan.batches}
        expected = {batch: _expected(ours, feed) for batch, feed in feeds.items()}
        with build_peers(
            plan.peers,
            directory,
            manifest,
            threads=plan.threads,
            max_batch=largest,
            height_width=plan.height_width,
            precision=session.precision,
            progress=say,
        ) as built:
            for batch, feed in feeds.items():
                found = _measure_batch(plan, ours, built, feed, expected[batch], max_error, say)
                if batch <= session.max_batch and (gpu_ms := session.gpu_ms(batch, _GPU_RUNS, plan.height_width)):
                    found[0] = replace(found[0], gpu_ms=statistics.median(gpu_ms))
                results += found
            for batch, feed in feeds.items() if plan.callers else ():
                say(f"measuring batch {batch}: {', '.join(map(str, plan.callers))} callers at once")
                concurrent += measure_concurrent(ours.run, feed, plan.callers, plan.seconds)
            for batch, feed in feeds.items() if plan.memory else ():
                timed = {result.name for result in results if result.batch == batch and result.timing}
                candidates = [peer for peer in (ours, *built.peers) if peer.name in timed]
                uses += _memory_at(candidates, feed.shape, plan.threads, say)
    return results, uses, concurrent, session.file, session.kernels


def _measure_batch(
    plan: BenchPlan,
    ours: Peer,
    built: BuiltPeers,
    feed: np.ndarray,
    expected: Sequence[np.ndarray],
    max_error: float,
    say: Progress,
) -> list[Result]:
    """Return one result per candidate at one batch size, ours first. What passed the check is timed."""
    batch = len(feed)
    found = {name: Result(name, batch, "unavailable", reason) for name, reason in built.unavailable.items()}
    errors = {OURS: 0.0}
    ready = [ours]
    for peer in built.peers:
        say(f"checking {LABELS[peer.name]} at batch {batch}")
        try:
            error = output_error(first_run(peer, feed), expected)
        except PeerUnavailableError as failure:
            found[peer.name] = Result(peer.name, batch, "unavailable", str(failure))
            continue
        if error <= max_error:
            errors[peer.name] = error
            ready.append(peer)
        else:
            reason = f"its outputs differ from ours by {error:.1e} of their spread, more than {max_error:.0e}"
            known = error if np.isfinite(error) else None  # JSON has no infinity
            found[peer.name] = Result(peer.name, batch, "mismatch", reason, known)
    say(f"measuring batch {batch}: {len(ready)} candidates")
    timings = measure_interleaved(
        [Candidate(peer.name, peer.run) for peer in ready],
        [feed],
        baseline=OURS,
        warmup=plan.warmup,
        min_runs=plan.min_runs,
        seconds=plan.seconds,
        progress=lambda text: say(f"measuring batch {batch}: {text}"),
    )
    for timing in timings:
        error = errors[timing.name]
        found[timing.name] = Result(timing.name, batch, "measured", output_error=error, timing=timing)
    return [found[name] for name in LABELS if name in found]


def _memory_at(candidates: Sequence[Peer], shape: tuple[int, ...], threads: int, say: Progress) -> list[MemoryUse]:
    """Return the memory figures of those candidates that a process without PyTorch can run."""
    uses = []
    for peer in candidates:
        if peer.source is not None:
            say(f"memory of {LABELS[peer.name]} at batch {shape[0]}")
            uses.append(measure_memory(peer.name, peer.source, shape, threads))
    return uses


def _feed(session: Session, batch: int, height_width: tuple[int, int]) -> np.ndarray:
    (array,) = session.random_feeds(batch, SEED, height_width).values()
    return array


def _expected(ours: Peer, feed: np.ndarray) -> Sequence[np.ndarray]:
    """Return our outputs, the measure for all peers."""
    outputs = ours.run(feed)
    if not all(np.isfinite(array).all() for array in outputs):
        raise VerificationError(
            "the artifact computes NaN or infinite values", "finite outputs", "run: mlpdeploy verify on it"
        )
    return outputs


def _environment() -> dict[str, Any]:
    """Return what a results file must say about when, where and with what, as it was before the measurement."""
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "machine": {**machine(), "load_average_1min": load_average},
        "tools": tool_versions(_TOOLS),
    }


def _source(plan: BenchPlan, directory: Path, manifest: Manifest) -> Source | None:
    """Return from what a process of its own loads ours; None where it would not be the same."""
    loader = {"onnxruntime": "artifact", "openvino": "openvino"}.get(plan.backend)
    if loader is None or plan.precision is not None:
        return None
    return Source(loader, directory, manifest.inputs[0].dtype)


def _artifact(manifest: Manifest, backend: str, file: str) -> dict[str, Any]:
    """Return what ran: one of the artifact's files, or an engine, which is none of them."""
    if backend in GPU_BACKENDS:
        return {"precision": manifest.precision, "opset": manifest.opset, "file": file}
    name = manifest.file_for({"openvino": "openvino", "torch": CANONICAL}.get(backend, "cpu"))
    return {"precision": manifest.precision, "opset": manifest.opset, "file": name, **asdict(manifest.files[name])}
