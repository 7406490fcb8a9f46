"""The ASGI application: which address is answered by what, and what surrounds every answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mlpdeploy.errors import UsageError
from mlpdeploy.serving.failures import UnavailableError
from mlpdeploy.serving.protocol.classify import Decoder, classifier, classify, picture_in
from mlpdeploy.serving.protocol.connection import CONNECTION
from mlpdeploy.serving.protocol.http import Answer, ClientGoneError, Receive, Request, Scope, Send, json_answer
from mlpdeploy.serving.protocol.inference import (
    configuration,
    infer,
    metadata,
    repository_index,
    statistics,
)
from mlpdeploy.serving.protocol.limits import RefusedError
from mlpdeploy.serving.protocol.openapi import openapi
from mlpdeploy.serving.protocol.rest import parse_json, parse_request, write_answer
from mlpdeploy.serving.protocol.state import ServerState
from mlpdeploy.serving.protocol.status import RETRY_AFTER_SECONDS, failure_of

PAGE = Path(__file__).parent / "page"
FILES = {"": "index.html", "page.js": "page.js", "page.css": "page.css", "docs": "docs.html", "docs.js": "docs.js"}
MAX_TOP = 1000
CLIENT_GONE = 499  # in the log only
# The page needs nothing from elsewhere, and must not be shown inside of another.
_PAGE_HEADERS = [
    ("content-security-policy", "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-cache"),
]
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}


@dataclass(frozen=True)
class Call:
    """A request with what its address says.

    Attributes:
        model, version, region: from the address, empty where it has none.
    """

    request: Request
    model: str = ""
    version: str = ""
    region: str = ""


Handler = Callable[["Application", Call], Awaitable[Answer]]


class Application:
    """Answers HTTP. Runs on any ASGI server; on ours a client that goes away stops its request."""

    def __init__(self, state: ServerState, decoder: Decoder) -> None:
        self.state, self.decoder = state, decoder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        request = Request(scope, receive, self.state.budget)
        request_id = self.state.next_id()
        connection = scope.get("state", {}).pop(CONNECTION, None)
        if connection is not None:
            connection.task = asyncio.current_task()
        route, answer = "none", None
        try:
            route, handler, call = self._route(request)
            if (request.path[0], *request.path[1:2]) not in OPEN:
                self.state.keys.check_if_needed(request.headers)
            answer = await handler(self, call)
        except (asyncio.CancelledError, ClientGoneError):
            if connection is None or connection.lost:
                self._finish(request, route, CLIENT_GONE, time.perf_counter() - started, 0, request_id)
                return
            answer = failed(UnavailableError("this server is being stopped", fix="try again in a moment"), request_id)
        except Exception as error:  # noqa: BLE001 - told to the client, ours to the log too
            answer = failed(error, request_id)
        finally:
            request.release()
            if connection is not None:
                connection.task = None
        seconds = time.perf_counter() - started
        try:
            await answer.send(send, request.method == "HEAD")
        finally:  # the client need not wait for its line in the log
            self._finish(request, route, answer.status, seconds, answer.bytes_out, request_id)

    def _finish(
        self, request: Request, route: str, status: int, seconds: float, bytes_out: int, request_id: str
    ) -> None:
        """Count and log one request."""
        self.state.metrics.answered("http", route, status, seconds)
        if self.state.access_log is not None:
            self.state.access_log.write(
                protocol="http", client=request.client, method=request.method, path="/" + "/".join(request.path),
                status=status, seconds=seconds, bytes_in=request.bytes_in, bytes_out=bytes_out, request_id=request_id,
            )  # fmt: skip

    def _route(self, request: Request) -> tuple[str, Handler, Call]:
        """Return (name of the route, handler, call).

        Raises:
            RefusedError: no such address (404), or another method (405).
        """
        call, path = Call(request), request.path
        if path[:2] == ("v2", "models") and len(path) > 2 and path != ("v2", "models", "stats"):
            call, path = replace(call, model=path[2]), ("v2", "models", "*", *path[3:])
            if path[3:4] == ("versions",) and len(path) > 4:
                call, path = replace(call, version=path[4]), ("v2", "models", "*", *path[5:])
        elif len(path) == 5 and path[2] in ("region", "models"):
            call, path = replace(call, region=path[3]), (*path[:3], "*", path[4])
        methods = None if any("/" in part for part in path) else ROUTES.get("/".join(path))
        if methods is None:
            raise RefusedError(404, "no such address", fix="see /docs")
        method = "GET" if request.method == "HEAD" else request.method
        if method not in methods:
            raise RefusedError(405, f"method {request.method[:20]}", " or ".join(methods))
        return f"{method} /{'/'.join(path)}", methods[method], call

    # The protocol

    async def live(self, call: Call) -> Answer:
        """Whether the process answers."""
        return json_answer({"live": True})

    async def ready(self, call: Call) -> Answer:
        """Whether every model is warm, and the server is not about to stop."""
        if not self.state.ready:
            raise UnavailableError("this server is not ready")
        return json_answer({"ready": True})

    async def server_metadata(self, call: Call) -> Answer:
        """Name, version and extensions."""
        return json_answer(
            {"name": self.state.name, "version": self.state.version, "extensions": self.state.extensions}
        )

    async def model_ready(self, call: Call) -> Answer:
        """Whether one model is warm."""
        model = self.state.model(call.model, call.version)
        if not (self.state.ready_to_answer and model.ready):
            raise UnavailableError(f"model {model.name} is not ready")
        return json_answer({"name": model.name, "ready": True})

    async def model_metadata(self, call: Call) -> Answer:
        """Inputs and outputs."""
        return json_answer(metadata(self.state.repository, self.state.model(call.model, call.version)))

    async def model_config(self, call: Call) -> Answer:
        """What Triton's clients read of a configuration."""
        return json_answer(configuration(self.state.model(call.model, call.version)))

    async def model_statistics(self, call: Call) -> Answer:
        """Counts of one model."""
        return json_answer({"model_stats": [statistics(self.state.model(call.model, call.version))]})

    async def all_statistics(self, call: Call) -> Answer:
        """Counts of all models."""
        return json_answer({"model_stats": [statistics(model) for model in self.state.repository.models()]})

    async def index(self, call: Call) -> Answer:
        """The models with their state."""
        body = await call.request.body()
        asked = parse_json(body) if len(body) else {}
        ready_only = asked.get("ready") is True if isinstance(asked, dict) else False
        return json_answer(repository_index(self.state.repository, ready_only))

    async def infer(self, call: Call) -> Answer:
        """Inference."""
        model = self.state.model(call.model, call.version)
        headers = call.request.headers
        body = await call.request.body()
        request = parse_request(body, headers.get("inference-header-content-length"), self.state.regions)
        started = time.perf_counter()
        answers = await infer(model, request)
        self.state.metrics.inferred(model.name, time.perf_counter() - started)
        parts, json_length = write_answer(model, request.id, answers)
        answer = Answer(parts=parts)
        if json_length is not None:
            answer.content_type = "application/octet-stream"
            answer.headers.append(("inference-header-content-length", str(json_length)))
        answer.compress(headers.get("accept-encoding", ""))
        return answer

    async def register_region(self, call: Call) -> Answer:
        """Take a region of shared memory."""
        asked = parse_json(await call.request.body())
        if not isinstance(asked, dict):
            raise UsageError("the body is no object", '{"key": "/name", "offset": 0, "byte_size": 1024}')
        self.state.regions.register(call.region, asked.get("key"), asked.get("offset", 0), asked.get("byte_size"))
        return json_answer({})

    async def region_status(self, call: Call) -> Answer:
        """The regions, or one of them."""
        return json_answer(self.state.regions.status(call.region))

    async def unregister_region(self, call: Call) -> Answer:
        """Forget a region, or all."""
        self.state.regions.unregister(call.region)
        return json_answer({})

    async def nothing(self, call: Call) -> Answer:
        """There is nothing to list, and nothing to take back."""
        return json_answer([])

    async def settings(self, call: Call) -> Answer:
        """There are no settings."""
        return json_answer({})

    async def refused(self, call: Call) -> Answer:
        """Refuse what would change the server, or have it map a GPU's memory."""
        raise UsageError(
            "this server loads no model, maps no memory of a GPU and changes no setting because of a request",
            fix="models are reloaded by who runs it, with SIGHUP",
        )

    # Pictures, people and Prometheus

    async def classify(self, call: Call) -> Answer:
        """Labels of a picture."""
        query = call.request.query(("top", "model"))
        top = query.get("top", "5")
        if not (top.isascii() and top.isdigit() and len(top) < 6 and 1 <= int(top) <= MAX_TOP):
            raise UsageError(f"top is {top[:40]!r}", f"1 to {MAX_TOP}")
        if not self.state.started:
            raise UnavailableError("the models are being loaded", fix="try again in a moment")
        model = classifier(self.state.repository, query.get("model"))
        body = await call.request.body()
        picture = picture_in(body, call.request.headers.get("content-type", ""))
        started = time.perf_counter()
        result = await classify(model, self.decoder, picture, int(top))
        seconds = time.perf_counter() - started
        self.state.metrics.inferred(model.name, seconds)
        return json_answer({**result, "ms": round(1000 * seconds, 3)})

    async def recent(self, call: Call) -> Answer:
        """Latencies of the last minute, for the page."""
        models = [
            {"name": model.name, "version": model.version, "ready": model.ready, "queued_rows": model.stats.queued_rows}
            for model in (self.state.repository.models() if self.state.started else ())
        ]
        return json_answer({"models": models, "points": self.state.metrics.recent.points()})

    async def prometheus(self, call: Call) -> Answer:
        """Metrics as text."""
        return Answer(parts=[self.state.metrics.text()], content_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, call: Call) -> Answer:
        """The description of this interface."""
        return json_answer(openapi(self.state.version))

    async def page(self, call: Call) -> Answer:
        """A file of the web page."""
        name = FILES[call.request.path[0]]
        return Answer(parts=[(PAGE / name).read_bytes()], content_type=_TYPES[Path(name).suffix], headers=_PAGE_HEADERS)


def failed(error: Exception, request_id: str) -> Answer:
    """Return the answer to a request that failed."""
    failure = failure_of(error, request_id)
    headers = [("x-request-id", request_id)]
    if failure.status in (429, 503):
        headers.append(("retry-after", str(RETRY_AFTER_SECONDS)))
    if failure.status == 401:
        headers.append(("www-authenticate", "Bearer"))
    if failure.status == 405 and isinstance(error, RefusedError):
        headers.append(("allow", error.wanted.replace(" or ", ", ")))
    if failure.status == 408:
        headers.append(("connection", "close"))
    return Answer(failure.status, [json.dumps({"error": failure.text}).encode()], headers=headers)


A = Application


def _region_routes(kind: str, status: Handler, register: Handler, unregister: Handler) -> dict[str, dict[str, Handler]]:
    """Return the addresses of one kind of shared memory."""
    return {
        f"v2/{kind}sharedmemory/status": {"GET": status},
        f"v2/{kind}sharedmemory/region/*/status": {"GET": status},
        f"v2/{kind}sharedmemory/region/*/register": {"POST": register},
        f"v2/{kind}sharedmemory/region/*/unregister": {"POST": unregister},
        f"v2/{kind}sharedmemory/unregister": {"POST": unregister},
    }


# Address -> method -> handler; `*` is the name of a model or of a region. `versions/V` behind a model is left out.
ROUTES: dict[str, dict[str, Handler]] = {
    **{name: {"GET": A.page} for name in FILES},
    "openapi.json": {"GET": A.openapi},
    "metrics": {"GET": A.prometheus},
    "v1/classify": {"POST": A.classify},
    "v1/recent": {"GET": A.recent},
    "v2": {"GET": A.server_metadata},
    "v2/health/live": {"GET": A.live},
    "v2/health/ready": {"GET": A.ready},
    "v2/models/stats": {"GET": A.all_statistics},
    "v2/models/*": {"GET": A.model_metadata},
    "v2/models/*/ready": {"GET": A.model_ready},
    "v2/models/*/config": {"GET": A.model_config},
    "v2/models/*/stats": {"GET": A.model_statistics},
    "v2/models/*/infer": {"POST": A.infer},
    "v2/models/*/trace/setting": {"GET": A.settings, "POST": A.refused},
    "v2/trace/setting": {"GET": A.settings, "POST": A.refused},
    "v2/logging": {"GET": A.settings, "POST": A.refused},
    "v2/repository/index": {"POST": A.index},
    "v2/repository/models/*/load": {"POST": A.refused},
    "v2/repository/models/*/unload": {"POST": A.refused},
    **_region_routes("system", A.region_status, A.register_region, A.unregister_region),
    **_region_routes("cuda", A.nothing, A.refused, A.nothing),
}
# Answered without a key: health, and what holds no secret.
OPEN = {("v2", "health"), ("openapi.json",), *((name,) for name in FILES)}
