"""What an evaluation found, as data and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from mlpdeploy.evaluation.metrics import Agreement, Quality
from mlpdeploy.evaluation.statistics import Pair

FORMAT = "mlpdeploy-evaluation"
VERSION = 1


@dataclass(frozen=True)
class Result:
    """One candidate.

    Attributes:
        name: of the artifact.
        model: name of the model, source of the weights and whether they are random, as in the manifest.
        precision, backend, device: what computed, and where; PyTorch always in fp32.
        manifest_sha256: of what the artifact's manifest says the model computes and takes (`Manifest.identity`).
        file, file_bytes: the artifact's file that runs, with its weights; empty and None where a backend does not say.
        images_per_s: that the model computed in this evaluation, without decoding; no benchmark.
        quality: accuracy and calibration.
        reference: index of the result that `agreement` is with; None for a reference, and where there is none.
        agreement: see there.
        errors: quantiles of each image's largest logit error over the spread, {"p50": ..., "p99": ...}, and counts of
            images per decade of it, for the plot; None without a reference.
    """

    name: str
    model: dict[str, Any]
    precision: str
    backend: str
    device: str
    manifest_sha256: str
    file: str
    file_bytes: int | None
    images_per_s: float | None
    quality: Quality
    reference: int | None
    agreement: Agreement | None
    errors: ErrorSpread | None


@dataclass(frozen=True)
class ErrorSpread:
    """How the images differ in their largest logit error, over the reference's spread.

    Attributes:
        p50, p99: quantiles over the images.
        exponents: (E + 1,) edges of bins, as powers of ten.
        images: (E,) images in each bin.
        equal: images without any error, which are in no bin.
    """

    p50: float
    p99: float
    exponents: tuple[float, ...]
    images: tuple[int, ...]
    equal: int


@dataclass(frozen=True)
class EvaluationReport:
    """Everything that was found, and what one has to know to repeat it.

    Attributes:
        date_utc: ISO 8601, when the report was made.
        git_commit: of this package's checkout; None outside of one.
        machine: `env.machine()`.
        tools: {package: version}.
        data: source, sha256, images, classes, limit, and the images of each class.
        options: batch and threads, with defaults filled in.
        class_names: (K,) for people.
        results: in the order of the table, a reference before those that are compared with it.
        pairs: every two results on the same images.
        bad: {image: why it could not be read}; these count for no candidate.
        notes: what a reader has to know besides.
    """

    date_utc: str
    git_commit: str | None
    machine: dict[str, Any]
    tools: dict[str, str]
    data: dict[str, Any]
    options: dict[str, Any]
    class_names: tuple[str, ...]
    results: tuple[Result, ...]
    pairs: tuple[Pair, ...]
    bad: dict[str, str]
    notes: tuple[str, ...]

    def label(self, result: Result) -> str:
        """Return what to call a result in one short text."""
        return label(result.name, result.precision, result.backend)

    def to_json(self) -> str:
        """Return the text of a results file."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}


def label(name: str, precision: str, backend: str) -> str:
    """Return what to call a candidate in one short text."""
    return f"{name}, PyTorch" if backend == "torch" else f"{name}, {precision}, {backend}"
