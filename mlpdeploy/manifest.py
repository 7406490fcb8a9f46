"""The artifact's manifest: versioned JSON beside the model, which says everything a runtime has to know."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    import numpy as np

FILE_NAME = "manifest.json"
FORMAT = "mlpdeploy-artifact"
VERSION = 1
TRANSPOSED = ".T"  # ends the name of a canonical model's initializer that is the transpose of a checkpoint's tensor
CANONICAL = "canonical"  # the role of model.onnx
# Whose fp16 files the CUDA provider runs too, the best first: they differ in the forms of shift and norm.
_FP16_ON_CUDA = ("cpu", "openvino", "tensorrt")
# Roles of files that are no models; every other role is the name of a target.
WEIGHTS = "weights"
CALIBRATION = "calibration"
USUAL_PIXELS = 224  # on a side of an image


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: as in the ONNX file.
        shape: sizes; a string is a symbolic axis (`batch`, `32*height`).
        dtype: numpy's name, e.g. `float32`.
        layout: one letter an axis, e.g. `NCHW`.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    layout: str


def usual_size(size: int | str) -> int:
    """Return an axis's size; of an open one that of a usual image in pixels, as near as its factor allows."""
    if isinstance(size, int):
        return size
    factor = int(size.rpartition("*")[0] or 1)
    return max(factor, USUAL_PIXELS // factor * factor)


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded photograph to the input tensor: resize the shorter side, crop the centre, scale, normalize.

    Attributes:
        height_width: of the crop, in pixels.
        crop_pct: side of the crop over side of the resized image.
        interpolation: of the resize, with antialiasing: `bicubic` or `bilinear`.
        mean, std: per channel, of values scaled to 0..1.
        color_order: `RGB` or `L` (one grey channel).
    """

    height_width: tuple[int, int]
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    color_order: str


@dataclass(frozen=True)
class FileEntry:
    """One file of the artifact.

    Attributes:
        role: `canonical`, the target that the file is lowered for (`cpu`, `tensorrt`, ...), `weights` or `calibration`.
        sha256: of the file's bytes, hexadecimal.
        bytes: the file's size.
        shift: the lowering of the axial shift, `function` in the canonical file; empty for what is no model.
        weights: the file beside it that holds its weights; empty where they are inside.
    """

    role: str
    sha256: str
    bytes: int
    shift: str = ""
    weights: str = ""


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says; see the field names. `verification` is empty until `verify` has run."""

    model: dict[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    precision: str
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    files: dict[str, FileEntry] = field(default_factory=dict)
    passes: tuple[dict[str, Any], ...] = ()
    verification: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] | None = None
    tools: dict[str, str] = field(default_factory=dict)

    @property
    def float_precision(self) -> str:
        """What floats are computed in: the precision, or in an int8 artifact that of what is not in int8."""
        if self.precision != "int8":
            return self.precision
        return str((self.quantization or {}).get("recipe", {}).get("rest", "fp32"))

    @property
    def needs_wide_sums(self) -> bool:
        """Whether it is in int8 with weights of 8 bits: the sum of two products does not fit into 16 bits then."""
        return self.precision == "int8" and (self.quantization or {}).get("recipe", {}).get("weight_bits") != 7

    @property
    def identity(self) -> str:
        """A SHA-256 of what the model computes and takes: the same after `verify`, and after `lower` for a target."""
        same = dataclasses.replace(
            self,
            files={name: entry for name, entry in self.files.items() if entry.role == CANONICAL},
            passes=(),
            verification={},
            tools={},
        )
        return hashlib.sha256(same.to_json().encode()).hexdigest()

    @property
    def models(self) -> dict[str, FileEntry]:
        """The entries of the files that are models: the canonical one first, then those lowered for a target."""
        return {name: entry for name, entry in self.files.items() if entry.role not in (WEIGHTS, CALIBRATION)}

    def file_for(self, role: str) -> str:
        """Return the name of the file for a target, or of the canonical file where there is none.

        Raises:
            ArtifactError: there is none, and the artifact's precision is not that of its canonical file, float32.
        """
        by_role = {entry.role: name for name, entry in self.models.items()}
        if role not in by_role and self.precision != "fp32":
            raise ArtifactError(
                f"this artifact has no {self.precision} model for {role}",
                fix=f"run: mlpdeploy quantize FLOAT32_ARTIFACT --precision {self.precision} --target {role}",
            )
        return by_role.get(role) or by_role[CANONICAL]

    def file_for_cuda(self, role: str = "", device: str = "cuda") -> str:
        """Return the file for ONNX Runtime's CUDA provider: canonical, or of an fp16 artifact one in native layers.

        Args:
            role: of the file that is asked for; empty means the one that fits.
            device: the word that it was asked for by, for the error's text.

        Raises:
            UsageError: a precision for which the CUDA provider has no kernels, or no such file.
        """
        native = {entry.role: name for name, entry in self.models.items() if entry.shift != "plugin"}
        roles = (role,) if role else (CANONICAL,) if self.precision == "fp32" else _FP16_ON_CUDA
        found = next((native[one] for one in roles if one in native), None)
        if self.precision not in ("fp32", "fp16") or found is None:
            raise UsageError(
                f"{f'the file for {role}' if role else f'an artifact in {self.precision}'} on {device}",
                "float32, or fp16 with a file in native layers (quantize --target cpu)",
                "use --device cpu, or build an engine with mlpdeploy build",
            )
        return found

    def to_json(self) -> str:
        """Return the file's text, with a checksum over everything else in it."""
        body = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        body["sha256"] = _checksum(body)
        return json.dumps(body, indent=1, ensure_ascii=False) + "\n"


def _checksum(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(directory: str | Path) -> Manifest:
    """Return the manifest of an artifact folder.

    Raises:
        ArtifactError: no artifact, not JSON, of another version, incomplete, or edited since it was written.
    """
    path = Path(directory) / FILE_NAME
    again = "export the model again"
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(body, ensure_ascii=False).encode()  # an escaped half of a surrogate pair is no text
    except FileNotFoundError:
        what = "has no manifest.json" if path.parent.is_dir() else "does not exist"
        raise ArtifactError(
            f"{path.parent} {what}", "a folder made by mlpdeploy export", "see: mlpdeploy export --help"
        ) from None
    except NotADirectoryError:
        raise ArtifactError(f"{path.parent} is a file", "a folder made by mlpdeploy export") from None
    except (OSError, UnicodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read ({error})", "JSON", again) from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ArtifactError(f"{path} is no mlpdeploy manifest", f"format {FORMAT}", again)
    if body.get("version") != VERSION:
        raise ArtifactError(
            f"{path} has version {body.get('version')}",
            f"version {VERSION}",
            "export the model again with this version",
        )
    if body.pop("sha256", None) != _checksum(body):
        raise ArtifactError(f"{path} was edited after it was written: its checksum differs", fix=again)
    try:
        return _from_body(body)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is incomplete ({error})", fix=again) from error


def _from_body(body: dict[str, Any]) -> Manifest:
    body = {key: value for key, value in body.items() if key not in ("format", "version")}

    def spec(value: dict[str, Any]) -> TensorSpec:
        return TensorSpec(**{**value, "shape": tuple(value["shape"])})

    body["inputs"] = tuple(map(spec, body["inputs"]))
    body["outputs"] = tuple(map(spec, body["outputs"]))
    if body["preprocessing"] is not None:
        lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in body["preprocessing"].items()}
        body["preprocessing"] = Preprocessing(**lists)
    body["files"] = {name: FileEntry(**entry) for name, entry in body["files"].items()}
    body["labels"], body["passes"] = tuple(body["labels"]), tuple(body["passes"])
    manifest = Manifest(**body)
    if CANONICAL not in {entry.role for entry in manifest.files.values()}:
        raise ValueError("no canonical model")
    return manifest


def largest_error(verification: dict[str, Any]) -> float | None:
    """Return the largest error of a manifest's verification, relative to the spread of the outputs.

    None where nothing was compared, because none of the files could be run where it was made; infinity where the values
    were no numbers, or not as many as wanted.
    """
    checks = [check for file in verification["files"].values() for check in file["checks"]]
    return max((c.get("relative_error", math.inf) for c in checks if c["check"].startswith("values")), default=None)


def file_entry(path: Path, role: str, shift: str = "", weights: str = "") -> FileEntry:
    """Return the entry of a file that has just been written."""
    return FileEntry(role, sha256_of(path), path.stat().st_size, shift, weights)


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def state_dict_sha256(state: dict[str, np.ndarray]) -> str:
    """Return one checksum over names, shapes and float32 values of all weights."""
    import numpy as np

    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.ascontiguousarray(state[name], dtype="<f4")
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def checked_file(directory: Path, manifest: Manifest, name: str) -> Path:
    """Return the path of one of the artifact's files, after comparing its size and SHA-256, and those of its weights.

    Raises:
        ArtifactError: it is missing, truncated or changed.
    """
    path = _checked(directory, manifest, name)
    weights = manifest.files[name].weights
    if weights:
        _checked(directory, manifest, weights)
    return path


def _checked(directory: Path, manifest: Manifest, name: str) -> Path:
    if name not in manifest.files or Path(name).name != name:
        raise ArtifactError(f"the manifest has no file {name} in the artifact", fix="export the model again")
    entry, path = manifest.files[name], directory / name
    if not path.is_file():
        raise ArtifactError(f"{path} is missing", fix="copy the whole folder, or export the model again")
    size = path.stat().st_size
    if size != entry.bytes:
        what = "truncated" if size < entry.bytes else "not the file that was exported"
        raise ArtifactError(
            f"{path} is {what}: {size} bytes", f"{entry.bytes}", "copy it again, or export the model again"
        )
    if sha256_of(path) != entry.sha256:
        raise ArtifactError(
            f"{path} was changed after the export: its SHA-256 differs from the manifest's",
            fix="copy it again, or export the model again",
        )
    return path
