"""Mixed precision by evidence: what each block costs in int8, and which of them have to stay in float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.classification import check_classifier, classifier_preprocessing
from mlpdeploy.errors import ImageError, UsageError
from mlpdeploy.evaluation.data import read_data
from mlpdeploy.quant.data import calibration_images, check_shape
from mlpdeploy.quant.quantize import Images, calibration_for
from mlpdeploy.quant.recipe import Recipe
from mlpdeploy.quant.search import BlockCost, Cost, Goal, SearchResult, search, sensitivity
from mlpdeploy.quant.source import Source, open_source
from mlpdeploy.quant.variants import Variants

DEFAULT_LIMIT = 256  # images that every variant is measured on
ROWS = 8  # that run at once

Progress = Callable[[str], None]
Count = Callable[[int, int], None]
# (n, C, H, W) float32 batches, of which the last may be filled up; N, the images that count; (N,) labels or None.
_Measured = tuple[list[np.ndarray], int, np.ndarray | None]


@dataclass(frozen=True)
class SensitivityReport:
    """What was measured.

    Attributes:
        model: the registry's name.
        weights: where they come from.
        images: how many every variant was measured on.
        labelled: whether `drop` is accuracy lost; else it is the share of images that changed their class.
        int8: cost with every block in int8.
        blocks: every block's part, the most harmful first.
        found: the answer of the search; None where no goal was given.
    """

    model: str
    weights: str
    images: int
    labelled: bool
    int8: Cost
    blocks: tuple[BlockCost, ...]
    found: SearchResult | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        return dataclasses.asdict(self)


def analyse(
    directory: str | Path,
    recipe: Recipe,
    *,
    images: Images | None,
    cache: str | Path | None = None,
    labelled: str | Path | None = None,
    class_map: Mapping[str, int] | None = None,
    goal: Goal | None = None,
    limit: int = DEFAULT_LIMIT,
    threads: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
    count: Count | None = None,
) -> SensitivityReport:
    """Measure every block of an artifact in int8, and search for what has to stay out of it where a goal is given.

    Args:
        directory: a float32 artifact of a classifier.
        recipe: of precision int8; what it keeps stays kept.
        images: calibration images; None takes the cache's ranges, and needs `labelled`.
        cache: of the calibration.
        labelled: a folder with one folder per class, or an .npz file: the drop is then accuracy lost on them. Without
            it the drop is the share of the calibration images that change their class; no more can be lost on them.
        class_map: {class folder: class index}, where names do not tell.
        goal: what has to be kept.
        limit: at most so many images are measured on.
        threads, skip_bad, progress, count: as in `quantize_artifact`.

    Raises:
        UsageError: the artifact is no classifier, the images are no good, or the goal cannot be reached.
        ArtifactError: the artifact or the cache is damaged or another model's.
    """
    say, tick = progress or (lambda text: None), count or (lambda done, total: None)
    if recipe.precision != "int8":
        raise UsageError(f"a sensitivity analysis for {recipe.precision}", "--precision int8")
    if limit < 1:
        raise UsageError(f"a limit of {limit} images", "at least 1")
    source = open_source(directory)
    check_classifier(source.manifest, directory)
    given = None if labelled is None else _labelled_images(source, directory, labelled, class_map, limit, skip_bad)
    calibration = calibration_for(source, recipe, images, cache, threads, skip_bad, say, count)
    assert calibration is not None
    batches, measured, labels = given or _calibration_images(source, images, limit, skip_bad)
    variants = Variants(source, recipe, calibration, batches, measured, labels, threads)
    say(f"measuring {len(variants.macs)} blocks on {measured} images")
    blocks = sensitivity(variants.macs, variants, tick)
    found = None
    if goal is not None:
        say("searching for the blocks that have to stay in float32")
        found = search(blocks, goal, variants)
    model = source.manifest.model
    return SensitivityReport(
        model["name"],
        model["source"],
        measured,
        labels is not None,
        variants(frozenset()),
        tuple(blocks),
        found,
    )


def _calibration_images(source: Source, images: Images | None, limit: int, skip_bad: bool) -> _Measured:
    """Return what to measure on where nothing is labelled."""
    if images is None:
        raise UsageError("no images to measure on", "--calibration-data or --data")
    manifest = source.manifest
    data = calibration_images(images, manifest.preprocessing, manifest.inputs[0], limit, skip_bad=skip_bad)
    return list(data.batches(_rows(source))), data.count, None


def _labelled_images(
    source: Source,
    directory: str | Path,
    labelled: str | Path,
    class_map: Mapping[str, int] | None,
    limit: int,
    skip_bad: bool,
) -> _Measured:
    """Return labelled images that the model takes."""
    manifest, rows = source.manifest, _rows(source)
    chosen = read_data(labelled, manifest.labels, int(manifest.outputs[0].shape[1]), class_map).limited(limit)
    preprocessing = None if chosen.raw else classifier_preprocessing(manifest, directory)
    tensors = [chosen.tensor(index, preprocessing) for index in range(len(chosen))]
    errors = [item for item in tensors if isinstance(item, ImageError)]
    if errors and not skip_bad:
        raise errors[0]
    good = [index for index, item in enumerate(tensors) if not isinstance(item, ImageError)]
    good = good[: len(good) // rows * rows] if isinstance(manifest.inputs[0].shape[0], int) else good
    if not good:
        raise UsageError(f"no usable batch of {rows} images in {labelled}", "more images that can be read")
    stacked = np.stack([np.asarray(tensors[index]) for index in good])
    check_shape(stacked.shape[1:], manifest.inputs[0], str(labelled))
    if not np.isfinite(stacked).all():
        raise UsageError(f"{labelled} has NaN or infinite values", "finite numbers")
    return [stacked[start : start + rows] for start in range(0, len(good), rows)], len(good), chosen.labels[good]


def _rows(source: Source) -> int:
    """Return how many images run at once."""
    rows = source.manifest.inputs[0].shape[0]
    return rows if isinstance(rows, int) else ROWS
