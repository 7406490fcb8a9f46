"""Evaluate artifacts: compute a row of logits per candidate and image, then read the rows once for all figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from mlpdeploy.classification import batches, classifier_preprocessing, run_logits
from mlpdeploy.env import PACKAGES, cpu_count, git_commit, machine, tool_versions
from mlpdeploy.errors import ArtifactError, ImageError, UsageError
from mlpdeploy.evaluation.candidates import REFERENCE, Candidate, class_count, list_candidates
from mlpdeploy.evaluation.data import LabelledImages, read_data
from mlpdeploy.evaluation.report import EvaluationReport
from mlpdeploy.evaluation.state import CandidateIdentity, DataIdentity, Rows, State, open_state
from mlpdeploy.evaluation.summary import Computed, summarize
from mlpdeploy.manifest import FILE_NAME, sha256_of
from mlpdeploy.runtime.session import Session, load

BATCH = 16

Progress = Callable[[int, int], None]
Say = Callable[[str], None]


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
    for candidate in candidates:
        if candidate.manifest.labels != first.labels:
            notes.append(
                f"{candidate.name} and {candidates[0].name} have different labels; those of the second are used"
            )
    images = read_data(data, first.labels, classes, class_map).limited(limit)
    if not images.raw:
        for candidate in candidates:
            classifier_preprocessing(candidate.manifest, candidate.directory)
    identity = DataIdentity(str(data), images.sha256(), len(images), classes)
    run = _Run(
        images, device, threads, batch, skip_bad, progress or (lambda done, total: None), say or (lambda text: None)
    )
    with open_state(None if resume is None else Path(resume), identity) as state:
        computed = []
        for position, candidate in enumerate(candidates):
            try:
                computed.append(run.compute(candidate, state, position, len(candidates)))
            except ArtifactError as error:
                # Only an artifact in fp32 has to hold PyTorch's weights.
                if candidate.backend != REFERENCE or torch or candidate.manifest.precision == "fp32":
                    raise
                notes.append(f"no reference from {candidate.name}: {error}")
        results, pairs, bad = summarize(computed, images, classes, skip_bad)
    counts = np.bincount(images.labels, minlength=classes).tolist()
    return EvaluationReport(
        date_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        git_commit=git_commit(),
        machine=machine(),
        tools=tool_versions(["numpy", "PIL", *(c.backend for c in candidates if c.backend in PACKAGES)]),
        data={
            "source": str(data),
            "sha256": identity.sha256,
            "images": len(images),
            "classes": classes,
            "limit": limit,
            "images_of_class": counts,
        },
        options={"batch": batch, "threads": threads or cpu_count()},
        class_names=_class_names(images, first.labels, classes),
        results=tuple(results),
        pairs=tuple(pairs),
        bad=bad,
        notes=tuple(dict.fromkeys(notes)),
    )


@dataclass(frozen=True)
class _Run:
    """What all candidates of one evaluation have in common; see `evaluate_artifacts`."""

    images: LabelledImages
    device: str | None
    threads: int | None
    batch: int
    skip_bad: bool
    progress: Progress
    say: Say

    def compute(self, candidate: Candidate, state: State, position: int, candidates: int) -> Computed:
        """Compute the rows that are missing; `position` is the candidate's place among all of them."""
        with load(
            candidate.directory, candidate.backend, self.device, threads=self.threads, max_batch=self.batch
        ) as session:
            identity = CandidateIdentity(
                name=candidate.name,
                backend=candidate.backend,
                device=session.device,
                manifest_sha256=sha256_of(candidate.directory / FILE_NAME),
                versions=tool_versions(["PIL", *([session.backend] if session.backend in PACKAGES else [])]),
            )
            rows = state.rows(identity)
            done, before, total = len(rows), position * len(self.images), candidates * len(self.images)
            kept = f", {done} of them there already" if done else ""
            self.say(f"{candidate.key}: {len(self.images)} images{kept}")
            if done < len(self.images):
                session.warmup(min(session.max_batch, len(self.images) - done), runs=1)
                self._append(session, candidate, rows, lambda: self.progress(before + len(rows), total))
            self.progress(before + len(rows), total)
            return Computed(candidate, identity, rows, session.file)

    def _append(self, session: Session, candidate: Candidate, rows: Rows, after_batch: Callable[[], None]) -> None:
        preprocessing = None if self.images.raw else candidate.manifest.preprocessing
        missing = range(len(rows), len(self.images))

        def tensor(index: int) -> np.ndarray | ImageError:
            return self.images.tensor(index, preprocessing)

        for part, prepared in batches(missing, tensor, session.max_batch, self.threads):
            errors = [item for item in prepared if isinstance(item, ImageError)]
            if errors and not self.skip_bad:
                raise errors[0]
            readable = np.array([not isinstance(item, ImageError) for item in prepared])
            tensors = [item for item in prepared if not isinstance(item, ImageError)]
            names = [self.images.name(index) for index, good in zip(part, readable, strict=True) if good]
            logits = np.zeros((0, class_count(candidate.manifest)), np.float32)
            seconds = 0.0
            if tensors:
                pixels = np.stack(tensors)
                start = time.perf_counter()
                logits = run_logits(session, pixels, names)
                seconds = time.perf_counter() - start
            rows.append(logits, readable, seconds)
            after_batch()


def _class_names(images: LabelledImages, labels: Sequence[str], classes: int) -> tuple[str, ...]:
    """Return the names of the data's folders, and the model's labels where the data has none."""
    if labels and len(labels) != classes:
        raise ArtifactError(f"the artifact has {len(labels)} labels", f"{classes}, one for each class")
    own = labels or [f"class {index}" for index in range(classes)]
    return tuple(images.class_names.get(index, own[index]) for index in range(classes))
