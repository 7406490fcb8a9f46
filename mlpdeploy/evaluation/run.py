"""Compute the rows of every candidate that are not there yet, one model after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mlpdeploy.classification import batches, run_logits
from mlpdeploy.env import PACKAGES, tool_versions
from mlpdeploy.errors import ArtifactError, ImageError
from mlpdeploy.evaluation.candidates import REFERENCE, Candidate, class_count
from mlpdeploy.evaluation.data import LabelledImages
from mlpdeploy.evaluation.state import CandidateIdentity, Rows, State
from mlpdeploy.evaluation.summary import Computed
from mlpdeploy.images import or_skip_it
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.session import Session

Progress = Callable[[int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """What all candidates of one evaluation have in common; see `evaluate_artifacts`."""

    images: LabelledImages
    device: str | None
    threads: int | None
    batch: int
    skip_bad: bool
    progress: Progress
    say: Say

    def compute_all(
        self, candidates: Sequence[Candidate], state: State, torch: bool | None
    ) -> tuple[list[Computed], list[str]]:
        """Return the candidates with their rows, and notes on those that could not be loaded.

        Only the reference may be missing, where nobody asked for it (`torch` is None) and no artifact in fp32 gives it:
        one of lower precision need not hold PyTorch's weights.
        """
        computed: list[Computed] = []
        notes: list[str] = []
        total = len(candidates) * len(self.images)
        for position, candidate in enumerate(candidates):
            needed = candidate.backend != REFERENCE or torch is True or candidate.manifest.precision == "fp32"
            try:
                session = load(
                    candidate.directory, candidate.backend, self.device, threads=self.threads, max_batch=self.batch
                )
            except ArtifactError as error:
                if needed:
                    raise
                notes.append(f"no reference from {candidate.name}: {error}")
                continue
            with session:
                # `auto` may have chosen what is there already.
                known = [(item.identity.name, item.identity.backend) for item in computed]
                if (candidate.name, session.backend) not in known:
                    computed.append(self._compute(session, candidate, state, position * len(self.images), total))
        return computed, notes

    def _compute(self, session: Session, candidate: Candidate, state: State, before: int, total: int) -> Computed:
        """Compute the rows that are missing; of `total` rows of all candidates `before` come before these."""
        identity = CandidateIdentity(
            name=candidate.name,
            backend=session.backend,
            device=session.device,
            manifest_sha256=candidate.manifest.identity,
            versions=tool_versions(name for name in ("PIL", session.backend) if name in PACKAGES),
        )
        rows = state.rows(identity)
        kept = f", {len(rows)} of them there already" if len(rows) else ""
        self.say(f"{candidate.name} ({session.backend}): {len(self.images)} images{kept}")
        if missing := len(self.images) - len(rows):
            session.warmup(min(session.max_batch, missing), runs=1)
            self._append(session, candidate, rows, lambda: self.progress(before + len(rows), total))
        self.progress(before + len(self.images), total)
        return Computed(candidate, identity, session.precision, rows, session.file)

    def _append(self, session: Session, candidate: Candidate, rows: Rows, after_batch: Callable[[], None]) -> None:
        preprocessing = None if self.images.raw else candidate.manifest.preprocessing
        missing = range(len(rows), len(self.images))

        def tensor(index: int) -> np.ndarray | ImageError:
            return self.images.tensor(index, preprocessing)

        for part, prepared in batches(missing, tensor, session.max_batch, self.threads):
            errors = [item for item in prepared if isinstance(item, ImageError)]
            if errors and not self.skip_bad:
                raise or_skip_it(errors[0])
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
