"""Predict with many workers on Ray. What is done stays done: the next run begins where a killed one ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlpdeploy.errors
from mlpdeploy.classification import classifier_preprocessing
from mlpdeploy.distributed.chunks import DEFAULT_COLUMN, Chunk, find_chunks, work_sha256
from mlpdeploy.distributed.cluster import cluster, on_gpu, ray_module, threads_for
from mlpdeploy.distributed.results import open_run, part_path
from mlpdeploy.distributed.worker import Done, Worker, WorkerOptions
from mlpdeploy.errors import MlpDeployError, UsageError
from mlpdeploy.manifest import read_manifest

CHUNKS_AHEAD = 2  # of a worker: it must not wait for its next one
MOST_RETRIES = 3  # of a chunk whose worker died; a picture that kills every worker must end
_OBJECT_STORE_BYTES = 100 << 20  # chunks are names and counts


class WorkerError(MlpDeployError):
    """Workers died again and again."""


@dataclass(frozen=True)
class RayOptions:
    """How the work is spread.

    Attributes:
        address: of a Ray cluster; None starts workers on this machine.
        workers: None means one for each group of `threads` processors of the cluster, or one for each GPU.
        chunk_rows: image files that a worker takes at once.
        column: of Parquet files, with the pictures.
    """

    address: str | None = None
    workers: int | None = None
    chunk_rows: int = 256
    column: str = DEFAULT_COLUMN


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        output: the folder of results.
        rows: pictures in it.
        rows_before: that an earlier run had done.
        bad: of this run, pictures that could not be read.
        workers: that were started; none where nothing was left to do.
    """

    output: str
    rows: int
    rows_before: int
    bad: int
    workers: int


def predict_on_ray(
    directory: Path,
    inputs: Sequence[Path],
    output: Path,
    options: RayOptions,
    *,
    top: int = 5,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    batch: int = 8,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Write a Parquet file of predictions for each chunk of the pictures into `output`, which may hold some already.

    Artifact, pictures and output must be at the same paths on every machine of the cluster. For the other arguments
    see `mlpdeploy.prediction.predict`.

    Raises:
        UsageError: see `predict`; or `output` is of another run.
        ImageError: a picture cannot be read, and `skip_bad` is not given.
        WorkerError: workers died again and again.
        MissingDependencyError: ray or pyarrow is not installed.
    """
    counts = {"top": top, "batch": batch, "chunk": options.chunk_rows, "workers": options.workers, "threads": threads}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}", "at least 1")
    directory, output = directory.resolve(), output.resolve()
    manifest = read_manifest(directory)
    classifier_preprocessing(manifest, directory)
    chunks = find_chunks(inputs, options.chunk_rows, options.column)
    what = {
        "model": manifest.model["name"],
        "manifest_sha256": manifest.identity,
        "top": top,
        "backend": backend,
        "device": device,
        "precision": precision,
    }
    ray_module()
    open_run(output, work_sha256(chunks, what), what, skip_bad=skip_bad)
    missing = [chunk for chunk in chunks if not part_path(output, chunk).is_file()]
    total = sum(chunk.rows for chunk in chunks)
    rows_before = total - sum(chunk.rows for chunk in missing)
    if not missing:
        return Summary(str(output), total, rows_before, 0, 0)
    threads = threads_for(backend, device, threads)
    worker = WorkerOptions(str(directory), str(output), top, batch, skip_bad, backend, device, threads, precision)
    bad, done_rows = 0, rows_before
    with cluster(options.address, _OBJECT_STORE_BYTES) as ray:
        actors = _start_workers(ray, worker, options.workers, len(missing))
        try:
            for done in _run(ray, actors, missing):
                if done.error is not None:
                    kind, *parts = done.error
                    raise getattr(mlpdeploy.errors, kind, MlpDeployError)(*parts)
                bad, done_rows = bad + done.bad, done_rows + done.rows
                if progress is not None:
                    progress(done_rows, total)
        finally:
            for actor in actors:
                ray.kill(actor)
    return Summary(str(output), total, rows_before, bad, len(actors))


def _start_workers(ray: Any, options: WorkerOptions, wanted: int | None, chunks: int) -> list[Any]:
    """Return the actors, each on a core group or a GPU of its own."""
    gpu = on_gpu(options.backend, options.device)
    kind, share = ("GPU", 1) if gpu else ("CPU", options.threads or 1)
    there = int(ray.cluster_resources().get(kind, 0))
    room = there // share
    if room < 1 or (wanted or 0) > room:
        raise UsageError(
            f"{wanted or 1} workers with {share} {kind} each on a cluster with {there}",
            f"at most {room} workers",
            "lower --workers or --threads",
        )
    resources = {"num_gpus": 1, "num_cpus": 1} if gpu else {"num_cpus": share}
    # A worker that dies comes back, and its chunk is done again: a file appears whole or not at all.
    remote = ray.remote(max_restarts=-1, max_task_retries=MOST_RETRIES, **resources)(Worker)
    return [remote.remote(options) for _ in range(min(wanted or room, chunks))]


def _run(ray: Any, actors: list[Any], chunks: list[Chunk]) -> Iterator[Done]:
    """Yield what became of each chunk; every actor has its next chunk before it has done the last.

    Raises:
        WorkerError: a chunk's worker died too often.
    """
    waiting = list(reversed(chunks))
    running: dict[Any, tuple[Any, Chunk]] = {}

    def give(actor: Any) -> None:
        if waiting:
            chunk = waiting.pop()
            running[actor.run.remote(chunk)] = actor, chunk

    for _ in range(CHUNKS_AHEAD):
        for actor in actors:
            give(actor)
    while running:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        actor, chunk = running.pop(ready)
        try:
            yield ray.get(ready)
        except ray.exceptions.RayActorError as error:
            where = chunk.table or chunk.paths[0]
            raise WorkerError(
                f"the worker of chunk {chunk.index} ({where} ...) died {MOST_RETRIES + 1} times",
                fix="what is done is kept; look for a picture that kills it, or for memory, and run the command again",
            ) from error
        give(actor)
