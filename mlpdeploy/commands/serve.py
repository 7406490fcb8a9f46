"""`mlpdeploy serve`."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlpdeploy.commands.options import BACKEND, DEVICE, PRECISION, THREADS

if TYPE_CHECKING:
    from mlpdeploy.serving.repository import Reloaded
    from mlpdeploy.serving.server import Addresses

FILE = click.Path(path_type=Path)


@click.command(
    epilog="Examples: mlpdeploy serve asmlp_s; mlpdeploy serve digits=examples/asmlp_digits --http-port 0 --json"
)
@click.argument("directories", nargs=-1, required=True, metavar="DIR...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one.")
@click.option("--http-port", default=8000, show_default=True, help="For REST and the web page; 0 takes a free one.")
@click.option("--grpc-port", default=8001, show_default=True, help="For gRPC; 0 takes a free one.")
@click.option("--max-batch", type=int, help="Rows computed at once.  [default: the model's, or 32]")
@click.option("--max-delay-ms", default=2.0, show_default=True, help="How long a batch may wait for more rows.")
@click.option("--instances", default=1, show_default=True, help="Processes for each model.")
@click.option("--queue-limit", default=256, show_default=True, help="Rows that may wait; more are refused (429).")
@click.option("--timeout-ms", default=10_000.0, show_default=True, help="Until a request is given up (504).")
@click.option("--drain-seconds", default=30.0, show_default=True, help="For open requests when told to stop.")
@click.option("--watch-seconds", default=0.0, help="Look for new versions so often.  [default: at SIGHUP only]")
@click.option("--api-key-file", type=FILE, help="Keys, one a line, of which requests must show one.")
@click.option("--tls-cert", type=FILE, help="PEM certificate chain, for REST and gRPC.")
@click.option("--tls-key", type=FILE, help="Its key.")
@click.option("--access-log", type=FILE, help="Append a JSON line for each request.  [default: stderr]")
@click.option("--no-access-log", is_flag=True, help="Write no line for each request.")
@BACKEND
@DEVICE
@THREADS
@PRECISION
@click.option("--json", "as_json", is_flag=True, help="Print the addresses, and reloads, as JSON lines to stdout.")
def serve(
    directories: tuple[str, ...],
    host: str,
    http_port: int,
    grpc_port: int,
    max_batch: int | None,
    max_delay_ms: float,
    instances: int,
    queue_limit: int,
    timeout_ms: float,
    drain_seconds: float,
    watch_seconds: float,
    api_key_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    access_log: Path | None,
    no_access_log: bool,
    backend: str | None,
    device: str | None,
    threads: int | None,
    precision: str | None,
    as_json: bool,
) -> None:
    """Serve artifacts by REST and gRPC (Open Inference Protocol v2), pictures too, with dynamic batching.

    DIR is an artifact folder, or a folder of version folders 1, 2, ...; NAME=DIR gives it another name. SIGHUP loads
    what is new, SIGTERM answers what is open and stops.
    """
    from mlpdeploy.errors import UsageError
    from mlpdeploy.serving.options import ServeOptions
    from mlpdeploy.serving.server import Server
    from mlpdeploy.serving.server import serve as run

    if access_log is not None and no_access_log:
        raise UsageError("--access-log and --no-access-log", "one of them")
    if not 0 <= watch_seconds < float("inf"):
        raise UsageError(f"watch-seconds is {watch_seconds}", "0 or more")
    options = ServeOptions(
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        max_batch=max_batch,
        max_delay_ms=max_delay_ms,
        instances=instances,
        threads=threads,
        queue_limit=queue_limit,
        timeout_ms=timeout_ms,
        backend=backend,
        device=device,
        precision=precision,
        api_key_file=api_key_file,
        tls_cert=tls_cert,
        tls_key=tls_key,
        drain_seconds=drain_seconds,
    )
    with contextlib.ExitStack() as stack:
        log = None if no_access_log else sys.stderr
        if access_log is not None:
            try:
                log = stack.enter_context(access_log.open("a", encoding="utf-8"))
            except OSError as error:
                raise UsageError(f"{access_log} cannot be written ({error.strerror})", "a file") from error
        run(
            lambda: Server(directories, options, log, watch_seconds),
            lambda addresses: print_ready(addresses, as_json),
            lambda results: print_reloaded(results, as_json),
        )


def print_ready(addresses: Addresses, as_json: bool) -> None:
    """Say where the server is."""
    if as_json:
        click.echo(json.dumps({"ready": True, "http": addresses.http, "grpc": addresses.grpc}))
    else:
        click.echo(f"ready: {addresses.http} (REST, web page), {addresses.grpc} (gRPC)")
    sys.stdout.flush()


def print_reloaded(results: list[Reloaded], as_json: bool) -> None:
    """Say what a reload did."""
    for result in results:
        outcome = "refused" if result.error else "changed" if result.changed else "unchanged"
        if as_json:
            line = {"reload": outcome, "model": result.name, "version": result.version}
            click.echo(json.dumps({**line, "error": str(result.error)} if result.error else line))
        else:
            reason = f" ({result.error}; the old one serves on)" if result.error else ""
            click.echo(f"reload: {result.name} version {result.version} {outcome}{reason}")
    sys.stdout.flush()
