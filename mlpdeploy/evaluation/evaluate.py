"""Evaluate artifacts: compute a row of logits per candidate and image, then read the rows once for all figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from mlpdeploy.classification import classifier_preprocessing
from mlpdeploy.env import PACKAGES, cpu_count, git_commit, machine, tool_versions
from mlpdeploy.errors import UsageError
from mlpdeploy.evaluation.candidates import class_count, list_candidates
from mlpdeploy.evaluation.data import LabelledImages, read_data
from mlpdeploy.evaluation.report import EvaluationReport
from mlpdeploy.evaluation.run import Progress, Run, Say
from mlpdeploy.evaluation.state import DataIdentity, open_state
from mlpdeploy.evaluation.summary import summarize

BATCH = 16


def evaluate_artifacts(
    directories: Sequence[str | Path],
    data: str | Path,
    *,
    class_map: Mapping[str, int] | None = None,
    backends: Sequence[str] = (),
    torch: bool | None = None,
    device: str | None = None,
    threads: int | None = None,
    batch: int = BATCH,
    limit: int | None = None,
    skip_bad: bool = False,
    resume: str | Path | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> EvaluationReport:
    """Return how good artifacts are on labelled images, side by side, and how near they are to PyTorch.

    One model is loaded at a time. Memory does not grow with the number of images, but for some bytes each; an .npz file
    is read whole.

    Args:
        directories: artifacts of classifiers with equally many classes.
        data: a folder with one folder of images per class, or an .npz file; see `read_data`.
        class_map: {class folder: class index}, where names do not tell.
        backends: see `load`; each artifact runs on each. Empty means the default one.
        torch: also run PyTorch as the reference; None means where it is installed.
        device, threads: see `load`.
        batch: images that go through a model at once.
        limit: evaluate so many images only, spread evenly over the classes; see `spread_evenly`.
        skip_bad: leave images out that cannot be read, for all candidates, and name them in the report.
        resume: a folder that keeps the logits; a second call with the same arguments goes on where the first stopped.
        progress: called after each batch with the number of rows done and of all rows.
        say: called with a short text at the beginning of each step.

    Raises:
        UsageError: an option is impossible, the classes do not fit, or `resume` holds another evaluation.
        ImageError: an image cannot be read and `skip_bad` is not given, or none can be read.
        ArtifactError: an artifact cannot be loaded.
        VerificationError: a model gives scores that are not finite.
    """
    for name, value in (("batch", batch), ("limit", 1 if limit is None else limit)):
        if value < 1:
            raise UsageError(f"{name} is {value}", "at least 1")
    candidates, notes = list_candidates(directories, backends, torch)
    first = candidates[0].manifest
    classes = class_count(first)
    images = read_data(data, first.labels, classes, class_map).limited(limit)
    if not images.raw:
        for candidate in candidates:
            classifier_preprocessing(candidate.manifest, candidate.directory)
    identity = DataIdentity(str(data), images.sha256(), len(images), classes)
    quiet_progress, quiet = (lambda done, total: None), (lambda text: None)
    run = Run(images, device, threads, batch, skip_bad, progress or quiet_progress, say or quiet)
    with open_state(None if resume is None else Path(resume), identity) as state:
        computed, missing = run.compute_all(candidates, state, torch)
        results, pairs, bad = summarize(computed, images, classes, skip_bad)
    return EvaluationReport(
        date_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        git_commit=git_commit(),
        machine=machine(),
        tools=tool_versions(
            ["numpy", "PIL", *(item.identity.backend for item in computed if item.identity.backend in PACKAGES)]
        ),
        data={
            "source": str(data),
            "sha256": identity.sha256,
            "images": len(images),
            "classes": classes,
            "limit": limit,
            "images_of_class": np.bincount(images.labels, minlength=classes).tolist(),
        },
        options={"batch": batch, "threads": threads or cpu_count()},
        class_names=_class_names(images, first.labels, classes),
        results=tuple(results),
        pairs=tuple(pairs),
        bad=bad,
        notes=(*notes, *missing),
    )


def _class_names(images: LabelledImages, labels: Sequence[str], classes: int) -> tuple[str, ...]:
    """Return the names of the data's folders, and the model's labels where the data has none."""
    own = labels or [f"class {index}" for index in range(classes)]
    return tuple(images.class_names.get(index, own[index]) for index in range(classes))
