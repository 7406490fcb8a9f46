"""`quantize_artifact`: from a float32 artifact to a verified one in another precision."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from mlpdeploy.artifact import check_files, check_output, new_artifact, write_manifest
from mlpdeploy.errors import InternalError, UsageError
from mlpdeploy.export.export import write_lowered
from mlpdeploy.manifest import CALIBRATION, CANONICAL, Manifest, file_entry, read_manifest
from mlpdeploy.quant.calibration import Calibration, calibrate, model_identity, read_calibration, write_calibration
from mlpdeploy.quant.data import CalibrationData, calibration_images
from mlpdeploy.quant.half import HALF_FORMS, HalfForm, fill_types, half_types, unexpected_float32
from mlpdeploy.quant.half_blocks import half_blocks
from mlpdeploy.quant.int8_blocks import quantize_int8
from mlpdeploy.quant.products import quantized_tensors
from mlpdeploy.quant.qdq import INT8_FORMS
from mlpdeploy.quant.recipe import Recipe
from mlpdeploy.quant.source import Source, open_source

CALIBRATION_FILE = "calibration.json"
BY_HINT = {"by": "the session asks the runtime for it; the file's floats are float32"}

Progress = Callable[[str], None]
Count = Callable[[int, int], None]
Images = str | Path | Sequence[str | Path]


def quantize_artifact(
    directory: str | Path,
    output: str | Path,
    recipe: Recipe,
    *,
    images: Images | None = None,
    cache: str | Path | None = None,
    targets: Sequence[str] | None = None,
    threads: int | None = None,
    skip_bad: bool = False,
    force: bool = False,
    verify: bool = True,
    search: dict[str, Any] | None = None,
    progress: Progress | None = None,
    count: Count | None = None,
) -> Manifest:
    """Write an artifact folder in the recipe's precision and return its manifest. It appears whole, or not at all.

    Args:
        directory: a float32 artifact. It is not changed; its canonical model is copied, as what everything is compared
            with.
        output: the folder to make.
        recipe: what to do.
        images: calibration images, see `calibration_images`: needed for int8 without a cache. For fp16 they show which
            nodes would overflow; without them none is looked for. bf16 needs none.
        cache: file with the collected ranges: read where it is there, else written.
        targets: whom to make files for; None means those that the artifact has files for.
        threads: of the calibration.
        skip_bad: leave out calibration pictures that cannot be read.
        force: replace an artifact that is there.
        verify: compare the result with PyTorch before the folder appears.
        search: what a search for `recipe.keep` found, for the manifest.
        progress: called with a short text at the beginning of each step.
        count: called with (images done, images) while calibrating.

    Raises:
        UsageError: an option is impossible, the artifact is quantized already, the images are no good.
        ArtifactError: the artifact or the cache is damaged or belongs to another model, the folder cannot be written.
        VerificationError: the result is further from PyTorch than the precision explains.
    """
    output, say = Path(output), progress or (lambda text: None)
    source = checked_source(directory, output, recipe, targets, force)
    calibration = calibration_for(source, recipe, images, cache, threads, skip_bad, say, count)
    manifest = source.manifest
    with new_artifact(output) as staging:
        name = manifest.file_for(CANONICAL)
        shutil.copyfile(source.directory / name, staging / name)
        files, reports = {name: manifest.files[name]}, []
        applied: dict[str, dict[str, Any]] = {}
        for target, shift in source.shifts.items():
            say(f"writing {recipe.precision} for {target}")
            int8 = recipe.precision == "int8"
            by_blocks = int8 or HALF_FORMS[target][recipe.precision] == "blocks"
            model, passes = source.lowered(target, expand_gelu=False if int8 else None, blocks=by_blocks)
            applied[target] = apply(model, recipe, target, calibration)
            files |= write_lowered(model, staging, target, shift if manifest.files[name].shift else "")
            reports += [{"target": target, **report.to_dict()} for report in passes]
        if calibration is not None:
            write_calibration(staging / CALIBRATION_FILE, calibration)
            files[CALIBRATION_FILE] = file_entry(staging / CALIBRATION_FILE, CALIBRATION)
        result = dataclasses.replace(
            manifest,
            inputs=tuple(_typed(spec, recipe) for spec in manifest.inputs),
            outputs=tuple(_typed(spec, recipe) for spec in manifest.outputs),
            precision=recipe.precision,
            files=files,
            passes=tuple(reports),
            verification={},
            quantization={
                "recipe": dataclasses.asdict(recipe),
                "images": calibration.images if calibration else 0,
                "images_sha256": calibration.data_sha256 if calibration else None,
                "input_range": _input_range(calibration, recipe, manifest),
                "targets": applied,
                "search": search,
            },
        )
        write_manifest(staging, result)
        if verify:
            from mlpdeploy.verify import verify_or_raise

            say("comparing with PyTorch")
            verify_or_raise(staging, "calibrate on more and typical images, or keep blocks in float32")
        check_output(output, force)  # another command may have made it meanwhile
    return read_manifest(output)


def checked_source(
    directory: str | Path, output: Path, recipe: Recipe, targets: Sequence[str] | None, force: bool
) -> Source:
    """Return the artifact to quantize, or raise what can be told before any work; see `quantize_artifact`."""
    source = open_source(directory, targets)
    check_output(output, force)
    if output.resolve() == source.directory.resolve():
        raise UsageError(f"{output} is the float32 artifact itself", "another folder")
    check_targets(recipe, source)
    return source


def check_targets(recipe: Recipe, source: Source) -> None:
    """Raise UsageError unless every target can be given the recipe's precision."""
    for target in source.shifts if recipe.rest != "fp32" else ():
        if _rest_form(recipe, target) is None:
            able = [name for name in INT8_FORMS if _rest_form(recipe, name)]
            raise UsageError(f"{recipe.rest} beside int8 for the target {target}", f"--target {' or '.join(able)}")
    if recipe.precision == "int8":
        return
    for target in source.shifts:
        if HALF_FORMS[target][recipe.precision] == "hint" and recipe.keep:
            raise UsageError(
                f"blocks to keep in float32 in {recipe.precision} for {target}",
                "none: the runtime decides there",
                "take fp16 or int8, or leave --keep out",
            )


def apply(model: ir.Model, recipe: Recipe, target: str, calibration: Calibration | None) -> dict[str, Any]:
    """Give a lowered model the recipe's precision, in place, and return what was done as JSON data."""
    if recipe.precision == "int8":
        assert calibration is not None
        report = quantize_int8(model, target, calibration, recipe).to_dict()
        if recipe.rest == "fp32":
            return report
        if _rest_form(recipe, target) == "hint":
            return {**report, "rest": BY_HINT}
        return {**report, "rest": _to_half(model, Recipe(recipe.rest), target, calibration)}
    if HALF_FORMS[target][recipe.precision] == "hint":
        return BY_HINT
    if HALF_FORMS[target][recipe.precision] == "blocks":
        return half_blocks(model, recipe).to_dict()
    return _to_half(model, recipe, target, calibration)


def _rest_form(recipe: Recipe, target: str) -> HalfForm | None:
    """Return how a target is given the type of what is not in int8; None where it is not."""
    form = HALF_FORMS[target][recipe.rest]
    return form if form == "hint" or INT8_FORMS[target].typed_rest else None


def _to_half(model: ir.Model, recipe: Recipe, target: str, calibration: Calibration | None) -> dict[str, Any]:
    magnitudes = calibration.magnitudes() if calibration else None
    report = half_types(model, recipe, target, magnitudes)
    if surprises := unexpected_float32(model, report):
        raise InternalError(f"{surprises[0]} computes in float32 (and {len(surprises) - 1} more)")
    return report.to_dict()


def calibration_for(
    source: Source,
    recipe: Recipe,
    images: Images | None,
    cache: str | Path | None,
    threads: int | None,
    skip_bad: bool,
    say: Progress,
    count: Count | None,
) -> Calibration | None:
    """Return the ranges that the recipe needs, from the cache or from the images; None where it needs none.

    Raises:
        UsageError: neither images nor a cache, or both of no use; a kept name is no module's; or the cache cannot be
            written.
        ArtifactError: the cache is of another model or of other images.
    """
    int8 = recipe.precision == "int8"
    if recipe.precision == "bf16" and (images is not None or cache is not None):
        raise UsageError("calibration images for bf16", "none: it has float32's range")
    cached = cache is not None and os.path.exists(cache)
    if images is None and not cached:
        if int8:
            raise UsageError("int8 without calibration images", "--calibration-data FOLDER", "some hundred real ones")
        return None
    if cache is not None and not cached:
        check_files(Path(cache))
    manifest = source.manifest
    model, _ = source.lowered("cpu")
    # Modules are the same for every target; which nodes they have there is seen when it is written.
    modules = dataclasses.replace(recipe, keep=tuple(name.partition("/")[0] for name in recipe.keep))
    modules.check_names(str(node.name) for node in model.graph)
    counted = quantized_tensors(model) if int8 else []
    tensors = counted if recipe.rest == "fp32" and int8 else activations(model)
    identity = model_identity(manifest)
    data: CalibrationData | None = None
    if images is not None:
        say("checking the calibration images")
        data = calibration_images(
            images, manifest.preprocessing, manifest.inputs[0], recipe.images, skip_bad=skip_bad, progress=count
        )
        for text in (*data.warnings, *(f"left out: {name}" for name in data.skipped)):
            say(f"note: {text}")
    if cached:
        say(f"reading the ranges from {cache}")
        return read_calibration(str(cache), identity, data.sha256 if data else None, tensors)
    assert data is not None
    say(f"calibrating on {data.count} images")
    found = calibrate(model, tensors, data, identity, histograms=counted, threads=threads, progress=count)
    if cache is not None:
        write_calibration(Path(cache), found)
    return found


def activations(model: ir.Model) -> list[str]:
    """Return the names of every float32 value that a model computes, and of its inputs; its values get their types."""
    fill_types(model)
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    return [str(value.name) for value in values if value.dtype == ir.DataType.FLOAT]


def _input_range(calibration: Calibration | None, recipe: Recipe, manifest: Manifest) -> list[float] | None:
    """Return (lowest, highest) of what the calibration images give the model; None for half precision."""
    if calibration is None or recipe.precision != "int8":
        return None
    seen = calibration.tensors[manifest.inputs[0].name]
    return [float(seen.minimum), float(seen.maximum)]


def _typed(spec: Any, recipe: Recipe) -> Any:
    return dataclasses.replace(spec, dtype="float16") if recipe.io == "fp16" else spec
