"""What is counted about a model that is served."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class ModelStats:
    """Counts since the model was loaded, and two levels of now.

    Attributes:
        requests, rows: answered with a result.
        failures: requests that ended otherwise, by the error's class name; `cancelled` is one of them.
        batches: {rows: batches of that size that were computed}.
        queue_seconds: summed over the parts of requests: from accepted to handed to a worker.
        compute_seconds: summed over batches, as the workers measured it.
        restarts: workers that had to be started again.
        queued_rows: waiting now.
        rows_in_flight: with the workers now.
    """

    requests: int = 0
    rows: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    batches: Counter[int] = field(default_factory=Counter)
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    restarts: int = 0
    queued_rows: int = 0
    rows_in_flight: int = 0
