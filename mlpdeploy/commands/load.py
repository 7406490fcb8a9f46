"""`mlpdeploy load`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpdeploy.artifact import check_files, write_file
from mlpdeploy.commands.options import ARTIFACT, JSON, ImageSize
from mlpdeploy.console import plain_table, print_and_write, show, steps
from mlpdeploy.errors import UsageError

if TYPE_CHECKING:
    from mlpdeploy.loadgen.report import LoadReport
    from mlpdeploy.loadgen.step import Step


@click.command(
    epilog="Examples: mlpdeploy load localhost:8000; mlpdeploy load grpc://localhost:8001 --rate 50; "
    "mlpdeploy load localhost:8000 --ramp --plot load.png"
)
@click.argument("url")
@click.option("--model", default="", help="On the server.  [default: the only one there]")
@click.option("--model-version", "version", default="", help="Of the model.  [default: the server's choice]")
@click.option("--protocol", metavar="NAME", help="http or grpc, where the URL does not say.  [default: http]")
@click.option("--clients", type=int, help="Closed loop: clients that wait for their answers.  [default: 32]")
@click.option("--rate", type=float, help="Open loop: requests a second, whatever the server does.")
@click.option("--arrivals", help="Of --rate and --ramp: poisson or constant.  [default: poisson]")
@click.option("--duration", default=10.0, show_default=True, help="Seconds to measure; of each step with --ramp.")
@click.option("--warmup", default=1.0, show_default=True, help="Seconds before that, which do not count.")
@click.option("--rows", default=1, show_default=True, help="Of each request.")
@click.option("--image", type=ARTIFACT, help="Send this picture to /v1/classify instead of tensors.")
@click.option("--image-size", type=ImageSize(), help="Where the model leaves it open.  [default: 224]")
@click.option("--shared-memory", is_flag=True, help="Leave the tensors where a server on this machine finds them.")
@click.option("--timeout", default=30.0, show_default=True, help="Seconds after which a request has failed.")
@click.option("--connections", type=int, help="At most so many at once with --rate or --ramp.  [default: 512]")
@click.option("--ramp", is_flag=True, help="Raise the rate to the knee, beginning at --rate.")
@click.option("--p99-limit", type=float, metavar="MS", help="Of --ramp.  [default: ten medians of one client alone]")
@click.option("--error-limit", type=float, help="Share of failures that --ramp takes.  [default: 0.01]")
@click.option("--api-key-file", type=ARTIFACT, help="File with the key to send as Authorization: Bearer.")
@click.option("--ca-cert", type=ARTIFACT, help="Certificates to trust, as PEM.  [default: the system's]")
@click.option("--seed", default=0, show_default=True, help="Of the inputs and the arrivals.")
@click.option("-o", "--output", type=ARTIFACT, help="Write the results as JSON.")
@click.option("--plot", type=ARTIFACT, help="Write them as PNG.")
@JSON
def load(url: str, output: Path | None, plot: Path | None, as_json: bool, **asked: Any) -> None:
    """Send requests to a server that speaks the Open Inference Protocol v2, and measure its answers."""
    from mlpdeploy.loadgen.options import LoadOptions, RampOptions
    from mlpdeploy.loadgen.report import run_load

    is_ramp, rate = asked["ramp"], asked["rate"]
    if asked["clients"] is not None and (is_ramp or rate is not None):
        raise UsageError("--clients with --rate or --ramp", "a closed loop or an open one", "leave one out")
    for name in ("p99_limit", "error_limit"):
        if asked[name] is not None and not is_ramp:
            raise UsageError(f"--{name.replace('_', '-')} without --ramp", fix="add --ramp, or leave it out")
    for name in ("arrivals", "connections"):
        if asked[name] is not None and rate is None and not is_ramp:
            raise UsageError(f"--{name} without --rate or --ramp", fix="add one of them, or leave it out")
    size = asked["image_size"]
    if size == "dynamic":
        raise UsageError("image size dynamic for a request", "a size in pixels")
    given = {name: asked[name] for name in ("clients", "arrivals", "connections") if asked[name] is not None}
    options = LoadOptions(
        model=asked["model"],
        version=asked["version"],
        rate=rate,
        duration_s=asked["duration"],
        warmup_s=asked["warmup"],
        rows=asked["rows"],
        image=asked["image"],
        height_width=size or (224, 224),
        timeout_s=asked["timeout"],
        shared_memory=asked["shared_memory"],
        seed=asked["seed"],
        api_key=_read_key(asked["api_key_file"]),
        ca_file=asked["ca_cert"],
        **given,
    )
    limits = {"p99_limit_ms": asked["p99_limit"], "error_limit": asked["error_limit"]}
    limits = {name: value for name, value in limits.items() if value is not None}
    ramp = RampOptions(rate, **limits) if is_ramp else None
    check_files(output, plot)
    report = run_load(url, options, protocol=asked["protocol"], ramp=ramp, tell=steps())
    print_and_write(report.to_dict(), as_json, lambda: print_report(report), lambda: write_report(report, output, plot))


def _read_key(path: Path | None) -> str:
    """Return the first line of the file."""
    if path is None:
        return ""
    try:
        key = path.read_text().strip().partition("\n")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error})", "a file with a key in it") from error
    if not key or not key.isascii() or not key.isprintable():
        raise UsageError(f"{path} holds no key", "one line of printable ASCII")
    return key


def print_report(report: LoadReport) -> None:
    """Print a line per step, the knee, and what to know about the generator."""
    columns = ("load", "answers/s", "rows/s", "failed", "p50 ms", "p90", "p95", "p99", "p99.9", "max")
    table = plain_table(*columns, right=tuple(range(1, len(columns))))
    for step in report.steps:
        table.add_row(*_cells(step))
    show(table)
    for step in report.steps:
        for kind, number in step.errors.items():
            click.echo(f"{_name(step)}: {number} failed: {kind}")
    if report.ramp is not None:
        ramp = report.ramp
        knee = f"{ramp.knee:.1f} requests/s" if ramp.knee else "none, every rate was too much"
        click.echo(f"knee: {knee}; above it: {ramp.reason}")
    else:
        for step in report.steps:
            for note in step.notes:
                click.echo(f"note: {note}", err=True)


def _cells(step: Step) -> list[str]:
    times = [step.latency_ms.get(name) for name in ("p50", "p90", "p95", "p99", "p99.9", "max")]
    shown = ["-" if value is None else f"{value:.2f}" for value in times]
    return [_name(step), f"{step.throughput:.1f}", f"{step.rows_per_s:.1f}", str(step.failed), *shown]


def _name(step: Step) -> str:
    return f"{step.clients} clients" if step.rate is None else f"{step.rate:.1f}/s"


def write_report(report: LoadReport, output: Path | None, plot: Path | None) -> None:
    """Write the report as JSON to `output` and as PNG to `plot`, where they are given."""
    if output is not None:
        write_file(output, (json.dumps(report.to_dict(), indent=1) + "\n").encode())
    if plot is not None:
        from mlpdeploy.loadgen.chart import chart_png

        write_file(plot, chart_png(report))
