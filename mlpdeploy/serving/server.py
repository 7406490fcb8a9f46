"""A server from its start to its end: ports, warm-up, signals, reload, drain."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpdeploy.env import require
from mlpdeploy.errors import MlpDeployError, UsageError
from mlpdeploy.serving.interface import Start
from mlpdeploy.serving.options import ServeOptions
from mlpdeploy.serving.protocol.keys import read_keys
from mlpdeploy.serving.protocol.limits import HEADER_SECONDS, KEEP_ALIVE_SECONDS
from mlpdeploy.serving.protocol.listener import Listener
from mlpdeploy.serving.repository import ModelRepository, Reloaded

BACKLOG = 512


@dataclass(frozen=True)
class Addresses:
    """Where a server can be reached."""

    http: str
    grpc: str


class Server:
    """REST and gRPC over a repository of models; `run` returns when it has been told to stop, and has drained."""

    def __init__(
        self,
        folders: Sequence[str | Path],
        options: ServeOptions,
        access_log: Any = None,
        watch_seconds: float = 0.0,
        start_model: Start | None = None,
    ) -> None:
        """Check everything that can be checked without a port.

        Args:
            folders: see `ModelRepository`.
            options: of the server.
            access_log: an open text file for one line a request; None writes none.
            watch_seconds: how often the folders are looked at for a new version; 0 looks at SIGHUP only.
            start_model: see `ModelRepository`.

        Raises:
            UsageError, ArtifactError: see `ModelRepository` and `read_keys`.
            MissingDependencyError: a package of the extra is not installed.
        """
        for package in ("uvicorn", "httptools", "grpc", "google.protobuf", "prometheus_client", "python_multipart"):
            require(package)
        from mlpdeploy.serving.metrics import Metrics
        from mlpdeploy.serving.protocol.regions import MEMORY
        from mlpdeploy.serving.protocol.state import AccessLog, ServerState

        if options.shared_memory and not MEMORY.is_dir():
            raise UsageError(f"shared memory where there is no {MEMORY}", "Linux", "leave --shared-memory out")
        self.options, self.watch_seconds = options, watch_seconds
        self.repository = ModelRepository(folders, options, start_model)
        self.state = ServerState(
            self.repository,
            read_keys(options.api_key_file),
            Metrics(self.repository),
            AccessLog(access_log) if access_log is not None else None,
            options.shared_memory,
        )
        self._check_certificate()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    def _check_certificate(self) -> None:
        """Raise UsageError if the certificate and its key cannot be used."""
        import ssl

        if self.options.tls_cert is None or self.options.tls_key is None:
            return
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                self.options.tls_cert, self.options.tls_key
            )
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"{self.options.tls_cert} and {self.options.tls_key} cannot be used ({error})",
                "a PEM certificate chain and its key without a password",
            ) from error

    def stop(self) -> None:
        """Take no more requests, answer those that are here, and let `run` return."""
        self.state.draining = True
        self._stop.set()

    async def run(self, on_ready: Callable[[Addresses], None], on_reload: Callable[[list[Reloaded]], None]) -> None:
        """Serve until told to stop.

        Args:
            on_ready: called once when every model is warm.
            on_reload: called after each reload that changed or refused something.

        Raises:
            MlpDeployError: a port is taken, or a model cannot be loaded.
        """
        signals = contextlib.ExitStack()
        signals.enter_context(self._signals(on_reload))
        with signals:
            await self._run(on_ready, on_reload, signals)

    async def _run(
        self,
        on_ready: Callable[[Addresses], None],
        on_reload: Callable[[list[Reloaded]], None],
        signals: contextlib.ExitStack,
    ) -> None:
        """Serve; `signals` is closed before the end, so that a second Ctrl-C does not wait for it."""
        from mlpdeploy.serving.app import Application
        from mlpdeploy.serving.protocol.classify import Decoder
        from mlpdeploy.serving.protocol.grpc_service import make_server

        options = self.options
        decoder = Decoder(options.queue_limit)
        # gRPC says in many words on stderr that a port is taken; it is looked at before.
        listen(options.host, options.grpc_port, "--grpc-port").close()
        listener = listen(options.host, options.http_port, "--http-port")
        tls = None if options.tls_cert is None or options.tls_key is None else (options.tls_cert, options.tls_key)
        try:
            grpc_server, grpc_port = make_server(self.state, options.host, options.grpc_port, tls)
        except MlpDeployError:
            listener.close()
            raise
        http = _http_server(Application(self.state, decoder), self.state.budget, options)
        await grpc_server.start()
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        try:
            if await self._start():
                gc.collect()
                gc.freeze()  # what the server is made of is not looked through again while it answers
                host = f"[{options.host}]" if ":" in options.host else options.host
                scheme = "http" if tls is None else "https"
                http_url = f"{scheme}://{host}:{listener.getsockname()[1]}"
                on_ready(Addresses(http_url, f"{host}:{grpc_port}"))
                if self.watch_seconds:
                    self._spawn(self._watch(on_reload))
                await self._stop.wait()
        finally:
            signals.close()
            self.state.draining = True
            for task in self._tasks:
                task.cancel()
            http.should_exit = True
            await asyncio.gather(serving, grpc_server.stop(options.drain_seconds), return_exceptions=True)
            await self.repository.close(options.drain_seconds)
            decoder.close()

    async def _start(self) -> bool:
        """Load the models; return False if the server was told to stop meanwhile."""
        loading = asyncio.create_task(self.repository.start())
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait((loading, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not loading.done():
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            return False
        loading.result()
        self.state.started = True
        return not self._stop.is_set()

    async def reload(self, on_reload: Callable[[list[Reloaded]], None], all_of_them: bool = True) -> None:
        """Look for new artifacts, and tell what was found.

        Args:
            on_reload: is told.
            all_of_them: tell of unchanged models too, and try again what was refused, even if its files are the same.
        """
        results = await self.repository.reload(again=all_of_them)
        for result in results:
            outcome = "refused" if result.error else "changed" if result.changed else "unchanged"
            if all_of_them or outcome != "unchanged":
                self.state.metrics.reloads.labels(outcome).inc()
        told = [result for result in results if all_of_them or result.changed or result.error]
        if told:
            on_reload(told)

    async def _watch(self, on_reload: Callable[[list[Reloaded]], None]) -> None:
        while True:
            await asyncio.sleep(self.watch_seconds)
            await self.reload(on_reload, all_of_them=False)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @contextlib.contextmanager
    def _signals(self, on_reload: Callable[[list[Reloaded]], None]) -> Iterator[None]:
        """SIGTERM and SIGINT stop, SIGHUP reloads, where this is the main thread of a system that has them."""
        loop = asyncio.get_running_loop()
        handlers: dict[str, Callable[[], None]] = {
            "SIGTERM": self.stop,
            "SIGINT": self.stop,
            "SIGHUP": lambda: self._spawn(self.reload(on_reload)) if self.state.started else None,
        }
        set_up = []
        for name, handler in handlers.items():
            if hasattr(signal, name):
                with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                    loop.add_signal_handler(getattr(signal, name), handler)
                    set_up.append(getattr(signal, name))
        try:
            yield
        finally:
            for number in set_up:
                loop.remove_signal_handler(number)


def listen(host: str, port: int, option: str) -> Listener:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        MlpDeployError: the port is taken, or the host is no address of this machine.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = Listener(family, kind, number)
    except OSError as error:
        raise MlpDeployError(f"{host} is no address ({error.strerror})", fix="see --host") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        fix = f"stop what listens there, or give another one: {option}"
        if error.errno == errno.EADDRNOTAVAIL:
            fix = "give an address of this machine: --host"
        raise MlpDeployError(f"port {port} on {host} cannot be used ({error.strerror})", fix=fix) from error
    listener.setblocking(False)
    return listener


def _http_server(app: Any, budget: Any, options: ServeOptions) -> Any:
    """Return uvicorn's server, which leaves signals to us."""
    import uvicorn

    from mlpdeploy.serving.protocol.connection import connection_class

    connection = connection_class(budget)

    class HttpServer(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Listen. uvicorn has no limit for a client that opens a connection and says nothing of TLS."""
            loop, seconds = asyncio.get_running_loop(), HEADER_SECONDS if config.ssl else None
            make = functools.partial(connection, config, self.server_state, {})
            self.servers = [
                await loop.create_server(
                    make, sock=listener, ssl=config.ssl, backlog=config.backlog, ssl_handshake_timeout=seconds
                )
                for listener in sockets or ()
            ]
            self.started = True

    config = uvicorn.Config(
        app,
        http=connection,
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(KEEP_ALIVE_SECONDS),
        timeout_graceful_shutdown=max(1, int(options.drain_seconds)),
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
    )
    return HttpServer(config)


def serve(server_of: Callable[[], Server], *callbacks: Any) -> None:
    """Run a server until it is told to stop; `server_of` is called inside of the event loop."""

    async def main() -> None:
        await server_of().run(*callbacks)

    asyncio.run(main())
    sys.stdout.flush()
