"""From the rows of every candidate to the figures of the report: one pass, some rows at a time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from mlpdeploy.errors import ImageError
from mlpdeploy.evaluation.candidates import REFERENCE, Candidate
from mlpdeploy.evaluation.data import LabelledImages
from mlpdeploy.evaluation.metrics import AgreementTally, QualityTally
from mlpdeploy.evaluation.report import ErrorSpread, Result, label
from mlpdeploy.evaluation.state import CandidateIdentity, Rows
from mlpdeploy.evaluation.statistics import Pair, mcnemar_p_value

_ROWS_AT_ONCE = 256
_BINS_OF_A_DECADE = 4  # in the histogram of errors


@dataclass(frozen=True)
class Computed:
    """A candidate whose rows are there, the precision it computes in, and the artifact's file that ran."""

    candidate: Candidate
    identity: CandidateIdentity
    precision: str
    rows: Rows
    file: str


def summarize(
    computed: list[Computed], images: LabelledImages, classes: int, skip_bad: bool
) -> tuple[list[Result], list[Pair], dict[str, str]]:
    """Return the results, every pair of them, and why which images were left out."""
    good, bad = _readable(computed, images)
    if bad and not skip_bad:
        name, reason = next(iter(bad.items()))
        raise ImageError(f"{name} could not be read when this evaluation began ({reason})", fix="pass --skip-bad again")
    if not good.any():
        raise ImageError(f"none of the {len(images)} images of {images.source} can be read", "at least one")
    references: dict[str, int] = {}
    for number, item in enumerate(computed):
        if item.identity.backend == REFERENCE:
            references.setdefault(item.candidate.weights, number)
    results: list[Result] = []
    hits: list[np.ndarray] = []
    for number, item in enumerate(computed):
        reference = references.get(item.candidate.weights)
        other = None if reference is None or reference == number else computed[reference].rows
        result, right = _result(item, other, None if other is None else reference, images.labels, good, classes)
        results.append(result)
        hits.append(right)
    names = [label(result.name, result.precision, result.backend) for result in results]
    pairs = [
        _pair(names[one], names[two], hits[one], hits[two])
        for one, two in itertools.combinations(range(len(results)), 2)
    ]
    return results, pairs, bad


def _readable(computed: list[Computed], images: LabelledImages) -> tuple[np.ndarray, dict[str, str]]:
    """Return which images every candidate could read, (N,) bool, and the reasons for the others."""
    good = np.ones(len(images), bool)
    bad: dict[str, str] = {}
    for item in computed:
        for start in range(0, len(images), _ROWS_AT_ONCE):
            _, readable = item.rows.read(start, start + _ROWS_AT_ONCE)
            for index in start + np.flatnonzero(~readable & good[start : start + _ROWS_AT_ONCE]):
                good[index] = False
                # Reading it again tells why, also where the row was computed by an earlier process.
                error = images.tensor(int(index), item.candidate.manifest.preprocessing)
                bad[images.name(int(index))] = str(error) if isinstance(error, ImageError) else "it could not be read"
    return good, bad


def _result(
    item: Computed,
    reference_rows: Rows | None,
    reference: int | None,
    labels: np.ndarray,
    good: np.ndarray,
    classes: int,
) -> tuple[Result, np.ndarray]:
    """Return a candidate's result and which of the good images it gets right, (G,) bool."""
    quality, agreement = QualityTally(classes), AgreementTally()
    right, errors = [], []
    for start in range(0, len(labels), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(labels))
        use = good[start:stop]
        logits = item.rows.read(start, stop)[0][use]
        right.append(quality.update(logits, labels[start:stop][use]))
        if reference_rows is not None:
            errors.append(agreement.update(logits, reference_rows.read(start, stop)[0][use]))
    candidate, manifest = item.candidate, item.candidate.manifest
    agreed = agreement.result() if reference_rows is not None else None
    entry = manifest.files.get(item.file)
    weights = manifest.files[entry.weights].bytes if entry is not None and entry.weights else 0
    result = Result(
        name=candidate.name,
        model={key: manifest.model.get(key) for key in ("name", "source", "random_weights")},
        precision="fp32" if item.identity.backend == REFERENCE else item.precision,
        backend=item.identity.backend,
        device=item.identity.device,
        manifest_sha256=item.identity.manifest_sha256,
        file=item.file,
        file_bytes=None if entry is None else entry.bytes + weights,
        images_per_s=item.rows.images_per_s(),
        quality=quality.result(),
        reference=reference,
        agreement=agreed,
        errors=None if agreed is None else _error_spread(np.concatenate(errors) / agreed.spread),
    )
    return result, np.concatenate(right)


def _error_spread(errors: np.ndarray) -> ErrorSpread:
    """Return quantiles and a histogram on a logarithmic axis of (N,) errors."""
    some = errors[errors > 0]
    exponents = np.log10(some)
    low, high = (np.floor(exponents.min()), np.floor(exponents.max()) + 1) if len(some) else (-1.0, 0.0)
    edges = np.linspace(low, high, round((high - low) * _BINS_OF_A_DECADE) + 1)
    counts, _ = np.histogram(exponents, edges)
    return ErrorSpread(
        p50=float(np.quantile(errors, 0.5)),
        p99=float(np.quantile(errors, 0.99)),
        exponents=tuple(edges.tolist()),
        images=tuple(counts.tolist()),
        equal=len(errors) - len(some),
    )


def _pair(first: str, second: str, first_right: np.ndarray, second_right: np.ndarray) -> Pair:
    only_first, only_second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    count = len(first_right)
    return Pair(
        first,
        second,
        count,
        only_first,
        only_second,
        (only_second - only_first) / count,
        mcnemar_p_value(only_first, only_second),
    )
