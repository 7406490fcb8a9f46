"""Where an error comes from: a model's values at the end of each block, against those of the float32 canonical file.

The values are made outputs of both files. On a CPU both run in ONNX Runtime. For `tensorrt` an engine is built of the
same file with these outputs, and thrown away afterwards. A value that is an output is not fused away, so that engine
rounds a little otherwise than the one that ships; and its shift is in native layers, whose types are known before.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpdeploy.env import closest, require
from mlpdeploy.errors import UsageError
from mlpdeploy.manifest import CANONICAL, Manifest, checked_file, read_manifest
from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.quant.blocks import blocks_of
from mlpdeploy.quant.data import FEWEST, calibration_images
from mlpdeploy.runtime.onnxruntime import inference_session
from mlpdeploy.verify.diverge import ON_ROWS

if TYPE_CHECKING:
    import onnx

BACKENDS = ("onnxruntime", "tensorrt")
IMAGES = 4


@dataclass(frozen=True)
class BlockError:
    """What a block's last value loses.

    Attributes:
        block: as in the names of its nodes.
        value: the name of its last value that both files have.
        error: root mean square of the differences, over the standard deviation of the reference; infinite where a value
            is no finite number.
        worst: the largest difference, over the same.
        added: how much of `error` was not there after the block before; negative where a block hides an error.
    """

    block: str
    value: str
    error: float
    worst: float
    added: float


@dataclass(frozen=True)
class DebugReport:
    """What was compared, on how many images of what, and what came of it; `blocks` are in the model's order."""

    model: str
    precision: str
    file: str
    backend: str
    images: int
    data: str
    blocks: tuple[BlockError, ...]

    def ranked(self) -> list[BlockError]:
        """Return the blocks, the one that adds most first."""
        return sorted(self.blocks, key=lambda block: -block.added)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data, which has no infinite numbers: None stands for them."""
        blocks = [
            {key: None if value in (math.inf, -math.inf) else value for key, value in asdict(block).items()}
            for block in self.blocks
        ]
        return {**asdict(self), "blocks": blocks}


def debug_artifact(
    directory: str | Path,
    role: str | None = None,
    backend: str = "onnxruntime",
    against: str = CANONICAL,
    data: str | Path | None = None,
) -> DebugReport:
    """Return what each block of a model adds to the error.

    Args:
        directory: the artifact.
        role: which of its models; None is the first one that is not the canonical one, and for `tensorrt` what
            `mlpdeploy build` takes.
        backend: `onnxruntime`, or `tensorrt`, which builds an engine for this.
        against: the role of the reference, which runs in ONNX Runtime.
        data: images as `quantize` takes them for calibration, of which a few are used; None is standard normal noise.

    Raises:
        UsageError: an unknown role or backend, two files without a common value, or unusable images.
        ImageError: pictures that cannot be read, by name.
    """
    onnx = require("onnx")
    directory = Path(directory)
    manifest = read_manifest(directory)
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}", fix=closest(backend, BACKENDS))
    feed = _noise(manifest) if data is None else _images(manifest, data)
    reference = onnx.load(checked_file(directory, manifest, _file(manifest, against)))
    with (
        tempfile.TemporaryDirectory() as scratch,
        _model(directory, manifest, role, backend, Path(scratch)) as (name, model),
    ):
        marks = _marks(reference, model)
        wanted = _run(_marked(reference, marks), marks, feed, Path(scratch) / "reference")
        wanted = _planes(wanted, reference)
        if backend == "onnxruntime":
            found = _run(_marked(model, marks), marks, feed, Path(scratch) / "model")
        else:
            from mlpdeploy.debug_engine import run_marked

            found = run_marked(_marked(model, marks), marks, feed, manifest, Path(scratch))
    return DebugReport(
        model=manifest.model["name"],
        precision=manifest.precision,
        file=name,
        backend=backend,
        images=len(feed),
        data="noise" if data is None else str(data),
        blocks=_errors(marks, wanted, _planes(found, model)),
    )


def _images(manifest: Manifest, data: str | Path) -> np.ndarray:
    """Return a few of the user's images, as many as a fixed batch takes."""
    chosen = calibration_images(data, manifest.preprocessing, manifest.inputs[0], FEWEST)
    rows = manifest.inputs[0].shape[0]
    return next(chosen.batches(rows if isinstance(rows, int) else chosen.count))


def _noise(manifest: Manifest) -> np.ndarray:
    """Return standard normal images of the model's size, as many as a fixed batch takes.

    What an int8 model takes is cut to the range that it was calibrated for: beyond it, it is wrong by design.
    """
    rows, channels, *_ = manifest.inputs[0].shape
    shape = (int(channels), *manifest.model["config"]["image_size"])
    count = rows if isinstance(rows, int) else IMAGES
    low, high = (manifest.quantization or {}).get("input_range") or (-np.inf, np.inf)
    return np.clip(np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32), low, high)


def _file(manifest: Manifest, role: str) -> str:
    """Return the name of the file with a role."""
    roles = {entry.role: name for name, entry in manifest.models.items()}
    if role not in roles:
        raise UsageError(f"the artifact has no model for {role!r}", fix=closest(role, roles))
    return roles[role]


@contextmanager
def _model(
    directory: Path, manifest: Manifest, role: str | None, backend: str, scratch: Path
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield (name, model) of what is compared."""
    import onnx

    if backend == "tensorrt" and role is None:
        from mlpdeploy.engines.network import NATIVE_SHIFT, lowered_network

        network = lowered_network(directory, manifest, "tensorrt", NATIVE_SHIFT, scratch)
        yield "engine", onnx.load(network.path)
        return
    own = [entry.role for entry in manifest.models.values() if entry.role != CANONICAL]
    if role is None and not own:
        raise UsageError(f"{directory} has only its canonical model", fix="run: mlpdeploy lower, for a target")
    name = _file(manifest, role or own[0])
    if manifest.files[name].shift == "plugin":
        raise UsageError(f"{name}, whose shift is the plugin", "native layers", "export --shift conv, or leave it out")
    yield name, onnx.load(checked_file(directory, manifest, name))


def _marks(reference: onnx.ModelProto, model: onnx.ModelProto) -> dict[str, str]:
    """Return {block: its last value that both files have}, in the model's order; the outputs are of the last blocks."""
    known = {output for node in reference.graph.node for output in node.output}
    blocks = blocks_of(node.name for node in model.graph.node)
    marks: dict[str, str] = {}
    for node in model.graph.node:
        for output in node.output:
            if output in known:
                marks.pop(blocks[node.name], None)  # so that the order is that of the last values
                marks[blocks[node.name]] = output
    if not marks:
        raise UsageError("two files that have no value in common", fix="export the model again")
    return marks


def _marked(model: onnx.ModelProto, marks: dict[str, str]) -> onnx.ModelProto:
    """Return the model with the marked values as outputs, with their types; the weights are inside."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    types = {value.name: value for value in (*inferred.graph.value_info, *inferred.graph.output)}
    del model.graph.output[:]
    for name in marks.values():
        model.graph.output.append(types.get(name, onnx.helper.make_empty_tensor_value_info(name)))
    return model


def _run(model: onnx.ModelProto, marks: dict[str, str], feed: np.ndarray, path: Path) -> dict[str, np.ndarray]:
    """Return {value: array} in ONNX Runtime, image by image unless the batch is fixed."""
    import onnx

    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.weights", convert_attribute=False)
    session = inference_session(path)
    (given,) = session.get_inputs()
    images = feed.astype(np.float16 if "16" in given.type else np.float32)
    names = list(marks.values())
    step = given.shape[0] if isinstance(given.shape[0], int) else 1
    parts = [session.run(names, {given.name: images[i : i + step]}) for i in range(0, len(images), step)]
    return {name: np.concatenate([part[index] for part in parts]) for index, name in enumerate(names)}


def _planes(values: dict[str, np.ndarray], model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return a model's values laid out as the canonical model has them: those of blocks may be channels-last."""
    rows = {node.output[0] for node in model.graph.node if node.domain == DOMAIN and node.op_type in ON_ROWS}
    return {name: value.transpose(0, 3, 1, 2) if name in rows else value for name, value in values.items()}


def _errors(
    marks: dict[str, str], wanted: dict[str, np.ndarray], found: dict[str, np.ndarray]
) -> tuple[BlockError, ...]:
    """Return one BlockError for each mark, in order."""
    errors = []
    before = 0.0
    for block, name in marks.items():
        exact = wanted[name].astype(np.float64)
        other = found[name].astype(np.float64).reshape(exact.shape)  # tokens may be a matrix
        scale = float(np.std(exact)) or 1.0
        difference = np.abs(other - exact) / scale
        error, worst = float(np.sqrt(np.mean(np.square(difference)))), float(difference.max())
        if not math.isfinite(error):
            error = worst = math.inf
        errors.append(BlockError(block, name, error, worst, 0.0 if error == before else error - before))
        before = error
    return tuple(errors)
