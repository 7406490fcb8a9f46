"""Which of an artifact's files Triton runs, and what they allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlpdeploy.engines.sidecar import FOLDER, Sidecar, engines_of
from mlpdeploy.errors import ArtifactError, PluginError, UsageError
from mlpdeploy.manifest import Manifest, TensorSpec, checked_file, sha256_of
from mlpdeploy.plugins.find import face_of, locate
from mlpdeploy.triton.options import DEFAULT_MAX_BATCH, TritonOptions

PLAN_NAME = "model.plan"


@dataclass(frozen=True)
class Source:
    """A model for Triton.

    Attributes:
        files: {name in the version folder: path of the file}.
        model_file: which of them Triton opens.
        max_batch: rows that may be put together; 0 where the model fixes its batch.
        preferred: batch sizes that it was made fastest for.
        profiles: how many optimization profiles an engine has; 0 for an ONNX file.
        plugin: the library that Triton must load first; None without one.
        fastest: {input name: shape that an engine was made fastest for}; empty for an ONNX file.
    """

    files: dict[str, Path]
    model_file: str
    max_batch: int
    preferred: tuple[int, ...] = ()
    profiles: int = 0
    plugin: Path | None = None
    fastest: dict[str, Sequence[int]] = field(default_factory=dict)


def find_source(directory: Path, manifest: Manifest, options: TritonOptions) -> Source:
    """Return what Triton is given of an artifact, after comparing checksums.

    Raises:
        UsageError: an option of batching for a model that fixes its batch; a batch size above the engine's; several
            engines, none named; a precision that ONNX Runtime's CUDA provider does not run.
        ArtifactError: a file is missing or damaged, or there is no engine for TensorRT.
        PluginError: the engine needs the plugin library it was built with, and it is not there.
    """
    if options.backend == "tensorrt":
        return _engine_source(directory, manifest, options)
    name = manifest.file_for_cuda() if options.device == "cuda" else manifest.file_for("cpu")
    files = {name: checked_file(directory, manifest, name)}
    weights = manifest.files[name].weights
    if weights:
        files[weights] = directory / weights  # compared by checked_file, found by Triton beside the model
    if _fixed_batch(manifest.inputs[0]):
        _refuse_batching(manifest, options)
        return Source(files, name, 0)
    return Source(files, name, options.max_batch or DEFAULT_MAX_BATCH)


def _fixed_batch(spec: TensorSpec) -> bool:
    return isinstance(spec.shape[0], int)


def _refuse_batching(manifest: Manifest, options: TritonOptions) -> None:
    asked = {
        "--max-batch": options.max_batch,
        "--preferred": options.preferred or None,
        "--max-delay-ms": options.max_delay_ms,
        "--queue-limit": options.queue_limit,
        "--timeout-ms": options.timeout_ms,
    }
    given = [name for name, value in asked.items() if value is not None]
    if given:
        raise UsageError(
            f"{' and '.join(given)} for a model with a fixed batch of {manifest.inputs[0].shape[0]}",
            fix="leave it out, or export with --batch dynamic",
        )


def _engine_source(directory: Path, manifest: Manifest, options: TritonOptions) -> Source:
    sidecar = _choose_engine(directory, options.engine)
    path = directory / FOLDER / sidecar.file
    if not path.is_file() or sha256_of(path) != sidecar.sha256:
        raise ArtifactError(f"{path} is missing or was changed", fix="build it again with mlpdeploy build --force")
    mark = sidecar.fingerprint
    plugin = _plugin(mark.version, mark.plugin_sha256) if mark.plugin_sha256 else None
    files = {PLAN_NAME: path}
    # Open sizes of pictures are the same in all profiles.
    fastest = {name: shapes[1] for name, shapes in mark.profiles[0].items()} if mark.profiles else {}
    if _fixed_batch(manifest.inputs[0]):
        _refuse_batching(manifest, options)
        return Source(files, PLAN_NAME, 0, profiles=len(mark.profiles), plugin=plugin, fastest=fastest)
    batches = [[shape[0] for shape in profile[manifest.inputs[0].name]] for profile in mark.profiles]
    largest = max(high for _, _, high in batches)
    if options.max_batch is not None and options.max_batch > largest:
        raise UsageError(
            f"--max-batch {options.max_batch} for an engine that takes at most {largest} rows",
            f"at most {largest}",
            "build one with a larger profile",
        )
    if min(low for low, _, _ in batches) > 1:
        raise UsageError(
            "an engine that takes no single row, which Triton may have to send",
            "a profile that begins at 1",
            "build one: mlpdeploy build --profile 1:8:32",
        )
    max_batch = options.max_batch or largest
    preferred = tuple(sorted({middle for _, middle, _ in batches if 1 < middle <= max_batch}))
    return Source(files, PLAN_NAME, max_batch, preferred, len(mark.profiles), plugin, fastest)


def _choose_engine(directory: Path, wanted: str) -> Sidecar:
    """Return the engine that is named, or the only one for TensorRT."""
    engines = {Path(s.file).stem: s for s in engines_of(directory) if s.fingerprint.target == "tensorrt"}
    if not engines:
        raise ArtifactError(
            f"{directory} has no engine for TensorRT",
            "one built on the GPU that Triton will run on (Triton does not run TensorRT-RTX's)",
            "run: mlpdeploy build, or use --backend onnxruntime",
        )
    found = [name for name in engines if name.startswith(wanted)]
    if len(found) != 1:
        listed = ", ".join(f"{name} ({s.fingerprint.version}, {s.fingerprint.gpu})" for name, s in engines.items())
        raise UsageError(
            f"{len(found)} engines are named {wanted!r}" if wanted else f"{directory} has {len(engines)} engines",
            f"one of {listed}",
            "name it with --engine",
        )
    return engines[found[0]]


def _plugin(version: str, sha256: str) -> Path:
    """Return the plugin library that an engine was built with."""
    path = locate(face_of(version)).path
    if sha256_of(path) != sha256:
        raise PluginError(
            f"the engine was built with another plugin library than {path}",
            "the same one",
            "build the engine again: mlpdeploy build --force",
        )
    return path
