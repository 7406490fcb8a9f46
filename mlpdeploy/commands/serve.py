"""`mlpdeploy serve`."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from mlpdeploy.commands.options import BACKEND, DEVICE, PRECISION, THREADS
from mlpdeploy.env import closest
from mlpdeploy.errors import UsageError

if TYPE_CHECKING:
    from mlpdeploy.distributed.serving import RayModels
    from mlpdeploy.serving.repository import Reloaded
    from mlpdeploy.serving.server import Addresses

FILE = click.Path(path_type=Path)
ENGINES = ("local", "ray")


@click.command(
    epilog="Examples: mlpdeploy serve asmlp_s; mlpdeploy serve digits=demo/asmlp_digits --http-port 0 --json; "
    "mlpdeploy serve asmlp_s --engine ray --ray-address auto --min-replicas 2 --max-replicas 8"
)
@click.argument("directories", nargs=-1, required=True, metavar="DIR...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one.")
@click.option("--http-port", default=8000, show_default=True, help="For REST and the web page; 0 takes a free one.")
@click.option("--grpc-port", default=8001, show_default=True, help="For gRPC; 0 takes a free one.")
@click.option("--max-batch", type=int, help="Rows computed at once.  [default: the model's, or 32]")
@click.option("--max-delay-ms", default=2.0, show_default=True, help="How long a batch may wait for more rows.")
@click.option("--instances", type=int, help="Processes for each model.  [default: 1; more for small ones on a CPU]")
@click.option("--queue-limit", default=256, show_default=True, help="Rows that may wait; more are refused (429).")
@click.option("--timeout-ms", default=10_000.0, show_default=True, help="Until a request is given up (504).")
@click.option("--drain-seconds", default=30.0, show_default=True, help="For open requests when told to stop.")
@click.option("--watch-seconds", default=0.0, help="Look for new versions so often.  [default: at SIGHUP only]")
@click.option("--api-key-file", type=FILE, help="Keys, one a line, of which requests must show one.")
@click.option("--tls-cert", type=FILE, help="PEM certificate chain, for REST and gRPC.")
@click.option("--tls-key", type=FILE, help="Its key.")
@click.option("--shared-memory", is_flag=True, help="Let clients on this machine leave tensors in shared memory.")
@click.option("--access-log", type=FILE, help="Append a JSON line for each request.  [default: stderr]")
@click.option("--no-access-log", is_flag=True, help="Write no line for each request.")
@BACKEND
@DEVICE
@THREADS
@PRECISION
@click.option("--engine", default="local", show_default=True, help="local, or ray: replicas on Ray Serve.")
@click.option("--replicas", type=int, help="Of --engine ray: processes for each model, on --threads processors.")
@click.option("--min-replicas", type=int, help="Of --engine ray, with --max-replicas: as many as requests need.")
@click.option("--max-replicas", type=int, help="See --min-replicas.")
@click.option(
    "--gpus-per-replica", type=float, help="Of --engine ray with --device cuda; 0.5 shares one.  [default: 1]"
)
@click.option("--ray-address", metavar="ADDRESS", help="Of a Ray cluster, or auto.  [default: this machine]")
@click.option("--json", "as_json", is_flag=True, help="Print the addresses, and reloads, as JSON lines to stdout.")
def serve(
    directories: tuple[str, ...],
    host: str,
    http_port: int,
    grpc_port: int,
    max_batch: int | None,
    max_delay_ms: float,
    instances: int | None,
    queue_limit: int,
    timeout_ms: float,
    drain_seconds: float,
    watch_seconds: float,
    api_key_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    shared_memory: bool,
    access_log: Path | None,
    no_access_log: bool,
    backend: str | None,
    device: str | None,
    threads: int | None,
    precision: str | None,
    engine: str,
    replicas: int | None,
    min_replicas: int | None,
    max_replicas: int | None,
    gpus_per_replica: float | None,
    ray_address: str | None,
    as_json: bool,
) -> None:
    """Serve artifacts by REST and gRPC (Open Inference Protocol v2), pictures too, with dynamic batching.

    DIR is an artifact folder, or a folder of version folders 1, 2, ...; NAME=DIR gives it another name. SIGHUP loads
    what is new, SIGTERM answers what is open and stops.
    """
    from mlpdeploy.serving.options import ServeOptions
    from mlpdeploy.serving.server import Server
    from mlpdeploy.serving.server import serve as run

    if access_log is not None and no_access_log:
        raise UsageError("--access-log and --no-access-log", "one of them")
    if not 0 <= watch_seconds < float("inf"):
        raise UsageError(f"watch-seconds is {watch_seconds}", "0 or more")
    spread = {
        "--replicas": replicas,
        "--min-replicas": min_replicas,
        "--max-replicas": max_replicas,
        "--gpus-per-replica": gpus_per_replica,
        "--ray-address": ray_address,
    }
    models = models_of(engine, spread, instances, device)
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
        shared_memory=shared_memory,
    )
    with contextlib.ExitStack() as stack:
        log = None if no_access_log else sys.stderr
        if access_log is not None:
            try:
                log = access_log.open("a", encoding="utf-8")
            except OSError as error:
                raise UsageError(f"{access_log} cannot be written ({error.strerror})", "a file") from error
            stack.callback(close_log, log)

        def make() -> Server:
            server = Server(directories, options, log, watch_seconds, models)
            if models is not None:
                stack.enter_context(models)  # takes seconds: after all that can be checked without it
            return server

        run(
            make,
            lambda addresses: print_ready(addresses, as_json),
            lambda results: print_reloaded(results, as_json),
        )


def close_log(log: TextIO) -> None:
    """Close the access log; that it cannot be written has been said."""
    with contextlib.suppress(OSError):
        log.close()


def models_of(engine: str, spread: dict[str, Any], instances: int | None, device: str | None) -> RayModels | None:
    """Return who starts models on Ray Serve, or None for this machine's processes.

    Raises:
        UsageError: unknown engine, or an option of another one.
    """
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}", fix=closest(engine, ENGINES))
    given = {name: value for name, value in spread.items() if value is not None}
    if engine == "local":
        if given:
            raise UsageError(f"{' and '.join(given)} without --engine ray", fix="add --engine ray, or leave it out")
        return None
    if instances is not None:
        raise UsageError("--instances with --engine ray", "--replicas")
    if "--replicas" in given and given.keys() & {"--min-replicas", "--max-replicas"}:
        raise UsageError("--replicas with --min-replicas or --max-replicas", "a number, or its limits")
    if len(given.keys() & {"--min-replicas", "--max-replicas"}) == 1:
        raise UsageError("only one of --min-replicas and --max-replicas", "both, or --replicas")
    if "--gpus-per-replica" in given and not (device or "").startswith("cuda"):
        raise UsageError("--gpus-per-replica without a GPU", fix="add --device cuda, or leave it out")
    from mlpdeploy.distributed.serving import RayModels, RayServeOptions

    count = given.get("--replicas", 1)
    return RayModels(
        RayServeOptions(
            address=given.get("--ray-address"),
            min_replicas=given.get("--min-replicas", count),
            max_replicas=given.get("--max-replicas", count),
            gpus=given.get("--gpus-per-replica", 1.0),
        )
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
