"""What a benchmark found: the report as data, as JSON and as a table."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mlpdeploy.bench.candidates import LABELS, OURS
from mlpdeploy.bench.concurrent import Throughput
from mlpdeploy.bench.measure import Timing
from mlpdeploy.bench.memory import MemoryUse
from mlpdeploy.errors import ArtifactError, InternalError

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = "mlpdeploy-bench"
VERSION = 1

Status = Literal["measured", "unavailable", "mismatch"]


@dataclass(frozen=True)
class Result:
    """One candidate at one batch size.

    Attributes:
        name: a key of `LABELS`.
        batch: rows of one run.
        status: `measured`; `unavailable`: it cannot run here; `mismatch`: it computes something else and is not timed.
        reason: why it was not measured.
        output_error: largest difference from our outputs, as a part of their standard deviation.
        timing: where it was measured.
        gpu_ms: of ours, what the GPU computes in a run, without copies and the host; the median, None where not known.
    """

    name: str
    batch: int
    status: Status
    reason: str = ""
    output_error: float | None = None
    timing: Timing | None = None
    gpu_ms: float | None = None

    def __post_init__(self) -> None:
        if self.status not in get_args(Status) or (self.timing is not None) != (self.status == "measured"):
            raise InternalError(f"a result of {self.name} with status {self.status} and timing {self.timing}")


@dataclass(frozen=True)
class BenchReport:
    """Everything that was found, and what one has to know to repeat it.

    Attributes:
        date_utc: ISO 8601, when the measurement began.
        git_commit: of this package's checkout; None outside of one.
        machine: `env.machine()` and the load average when the measurement began.
        tools: {package: version}.
        model: as in the manifest: name, source of the weights, architecture, parameters, multiply-adds.
        artifact: the file that was measured: name, role, sha256, bytes, shift; its precision and opset; `kernels`, the
            instruction set of our own kernels, empty where none ran.
        options: what was asked for, with defaults filled in.
        results: by batch, then ours first.
        memory: by batch, then ours first; empty where it was not asked for.
        concurrent: what several threads got that call ours at once, by batch; empty where it was not asked for.
    """

    date_utc: str
    git_commit: str | None
    machine: dict[str, Any]
    tools: dict[str, str]
    model: dict[str, Any]
    artifact: dict[str, Any]
    options: dict[str, Any]
    results: tuple[Result, ...]
    memory: tuple[MemoryUse, ...] = ()
    concurrent: tuple[Throughput, ...] = ()

    @property
    def mismatches(self) -> list[Result]:
        """Results that are no comparison because a candidate computes something else."""
        return [result for result in self.results if result.status == "mismatch"]

    def at_batch(self, batch: int) -> list[Result]:
        """Return the results at one batch size, ours first."""
        return [result for result in self.results if result.batch == batch]

    def memory_of(self, name: str, batch: int) -> MemoryUse | None:
        """Return the memory figures of a candidate, or None where there are none."""
        return next((use for use in self.memory if (use.name, use.batch) == (name, batch)), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document as Python values."""
        head = {"format": FORMAT, "version": VERSION, "baseline": OURS, "labels": LABELS}
        document: dict[str, Any] = json.loads(json.dumps({**head, **dataclasses.asdict(self)}, allow_nan=False))
        return document

    def to_json(self) -> str:
        """Return the text of a results file."""
        return json.dumps(self.to_dict(), indent=1) + "\n"


def read_report(path: str | Path) -> BenchReport:
    """Return the report in a results file.

    Raises:
        ArtifactError: not there, not JSON, of another version or incomplete.
    """
    again = "run the benchmark again"
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error})", "a results file of mlpdeploy bench") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ArtifactError(f"{path} is no results file", f"format {FORMAT}", again)
    if body.get("version") != VERSION:
        raise ArtifactError(f"{path} has version {body.get('version')}", f"version {VERSION}", again)
    try:
        body.setdefault("concurrent", [])  # of before there was such a thing
        values = {field.name: body[field.name] for field in dataclasses.fields(BenchReport)}
        values["concurrent"] = tuple(Throughput(**one) for one in body["concurrent"])
        values["results"] = tuple(map(_result, body["results"]))
        values["memory"] = tuple(MemoryUse(**use) for use in body["memory"])
        return BenchReport(**values)
    except (KeyError, TypeError, AttributeError, InternalError) as error:
        raise ArtifactError(f"{path} is incomplete ({error})", fix=again) from error


def _result(value: dict[str, Any]) -> Result:
    timing = value["timing"]
    return Result(**{**value, "timing": None if timing is None else Timing(**timing)})


def print_report(report: BenchReport, console: Console | None = None) -> None:
    """Print the table to stdout, or to the console given."""
    from rich.console import Console

    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(width=160, highlight=False)
    height, width = report.options["height_width"]
    console.print(
        f"{report.model['name']} ({report.model['source']}), {report.artifact['precision']}, {height}x{width}; "
        f"{report.machine['cpu']}, {report.options['threads']} threads",
        markup=False,
    )
    console.print(_table(report))
    if report.concurrent:
        console.print("mlpdeploy, called by several threads at once")
        console.print(_concurrent_table(report))
    for line in not_measured(report):
        console.print(line, markup=False)
    for use in report.memory:
        if use.reason:
            console.print(f"memory of {LABELS.get(use.name, use.name)}, batch {use.batch}: {use.reason}", markup=False)


def not_measured(report: BenchReport) -> list[str]:
    """Return one sentence per candidate and reason that kept it from being timed."""
    batches: dict[tuple[str, Status, str], list[str]] = {}
    for result in report.results:
        if result.timing is None:
            batches.setdefault((result.name, result.status, result.reason), []).append(str(result.batch))
    return [
        f"{LABELS.get(name, name)} at batch {', '.join(sizes)}: {status}: {reason}"
        for (name, status, reason), sizes in batches.items()
    ]


def digits(value: float) -> str:
    """Return milliseconds or images/s with as many digits as they deserve."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def times(ratio: float) -> str:
    """Return a ratio with as many digits as it deserves."""
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


def _table(report: BenchReport) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("batch", justify="right")
    table.add_column("candidate")
    for title in ("images/s", "p50 ms", "p95 ms", "p99 ms", "runs", "mlpdeploy is", "output error"):
        table.add_column(title, justify="right", no_wrap=True)
    on_gpu = any(result.gpu_ms is not None for result in report.results)
    if on_gpu:
        table.add_column("GPU ms", justify="right", no_wrap=True)
    if report.memory:
        for title in ("load ms", "peak MB"):
            table.add_column(title, justify="right", no_wrap=True)
    for batch in report.options["batches"]:
        for result in report.at_batch(batch):
            cells = [str(batch), LABELS.get(result.name, result.name), *_cells(result)]
            if on_gpu:
                cells.append("" if result.gpu_ms is None else digits(result.gpu_ms))
            if report.memory:
                cells += _memory_cells(report.memory_of(result.name, batch))
            table.add_row(*cells, style="bold" if result.name == OURS else None)
        table.add_section()
    return table


def _concurrent_table(report: BenchReport) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("batch", "callers", "images/s", "lowest", "highest", "p50 ms", "p95 ms", "p99 ms", "runs"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in report.concurrent:
        rates = (one.images_per_s, one.lowest_images_per_s, one.highest_images_per_s)
        cells = map(digits, (*rates, one.p50_ms, one.p95_ms, one.p99_ms))
        table.add_row(str(one.batch), str(one.callers), *cells, str(one.runs))
    return table


def _cells(result: Result) -> list[str]:
    timing = result.timing
    error = "" if result.output_error is None else f"{result.output_error:.1e}"
    if timing is None:
        return [result.status, "", "", "", "", "", error]
    ours = result.name == OURS
    return [
        *map(digits, (timing.images_per_s, timing.p50_ms, timing.p95_ms, timing.p99_ms)),
        str(timing.runs),
        "" if ours else f"{times(timing.time_over_baseline)} as fast",
        "" if ours else error,
    ]


def _memory_cells(use: MemoryUse | None) -> list[str]:
    if use is None or use.load_ms is None:
        return ["", ""]
    peak = "" if use.peak_rss_bytes is None else f"{use.peak_rss_bytes / 1e6:.0f}"
    return [f"{use.load_ms:.0f}", peak]
