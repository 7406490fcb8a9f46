"""What a benchmark is asked to do, resolved against the artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlpdeploy.bench.candidates import PEERS, check_peers
from mlpdeploy.env import installed_version
from mlpdeploy.errors import UsageError
from mlpdeploy.manifest import Manifest, TensorSpec

DEFAULT_BATCHES = (1, 8)
DEFAULT_HEIGHT_WIDTH = (224, 224)
SEED = 0


@dataclass(frozen=True)
class BenchPlan:
    """What `bench_artifact` was asked for, checked and with defaults filled in.

    Attributes:
        batches: rows per run.
        threads: of every candidate.
        seconds: of measuring per batch size, all candidates together; as many again for `callers`.
        warmup: runs of each candidate before its first round.
        min_runs: timed runs per candidate at least.
        height_width: of the images, in pixels.
        peers: names, in the order of `candidates.PEERS`.
        memory: whether memory and load time are measured.
        backend: that runs the artifact.
        precision: what it was asked to compute in; None means the artifact's.
        callers: numbers of threads that call ours at once, each measured; none where it was not asked for.
        seed: of the random images.
    """

    batches: tuple[int, ...]
    threads: int
    seconds: float
    warmup: int
    min_runs: int
    height_width: tuple[int, int]
    peers: tuple[str, ...]
    memory: bool
    backend: str
    precision: str | None = None
    callers: tuple[int, ...] = ()
    seed: int = SEED


def resolve_peers(
    manifest: Manifest, names: Sequence[str] | None, backend: str, precision: str | None
) -> tuple[str, ...]:
    """Return the peers' names: those asked for, or all but ours itself and, without a file for it, OpenVINO's.

    Raises:
        UsageError: an unknown name.
    """
    if names is not None:
        return check_peers(names)
    itself = backend if precision in (None, manifest.precision) else ""
    has_file = "openvino" in {entry.role for entry in manifest.models.values()}
    no_openvino = not has_file or installed_version("openvino") is None
    return tuple(name for name in PEERS if name != itself and not (no_openvino and name.endswith("openvino")))


def resolve_batches(spec: TensorSpec, batches: Sequence[int] | None) -> tuple[int, ...]:
    """Return the rows per run: those asked for, the one that the artifact is fixed to, or 1 and 8.

    Raises:
        UsageError: none, one twice, one below 1, or one that a fixed artifact does not take.
    """
    fixed = spec.shape[0] if isinstance(spec.shape[0], int) else None
    if batches is None:
        return DEFAULT_BATCHES if fixed is None else (fixed,)
    if not batches or min(batches) < 1 or len(set(batches)) != len(batches):
        raise UsageError(f"the batch sizes {', '.join(map(str, batches))}", "different numbers of at least 1")
    if fixed is not None and set(batches) != {fixed}:
        raise UsageError(
            f"the batch sizes {', '.join(map(str, batches))} for an artifact whose batch is fixed",
            f"{fixed}",
            "export it again without --batch to measure others",
        )
    return tuple(batches)


def resolve_height_width(manifest: Manifest, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Return the image size in pixels: the artifact's where it is fixed, the one asked for, or the model's own.

    Raises:
        UsageError: not the fixed one, or not positive.
    """
    sizes = manifest.inputs[0].shape[2:]
    wanted = (image_size, image_size) if isinstance(image_size, int) else image_size
    if isinstance(sizes[0], int) and isinstance(sizes[1], int):
        if wanted not in (None, sizes):
            raise UsageError(
                f"image size {wanted[0]}x{wanted[1]}" if wanted else "",
                f"{sizes[0]}x{sizes[1]}, which the artifact is fixed to",
                "export it with --image-size dynamic to measure others",
            )
        return sizes[0], sizes[1]
    height, width = wanted or manifest.model.get("config", {}).get("image_size") or DEFAULT_HEIGHT_WIDTH
    if min(height, width) < 1:
        raise UsageError(f"image size {height}x{width}", "positive sizes")
    return height, width
