"""The process that TensorRT runs in while it builds: a builder may abort, and that must not take the caller with it.

Run as `python -m mlpdeploy.engines.worker REQUEST.json FD`: it writes one JSON object a line to the file descriptor,
and the last one is `result` or `error`. When nobody reads any more, the build stops.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from mlpdeploy.artifact import disk_errors, write_file
from mlpdeploy.engines.embedded import register_embedded
from mlpdeploy.engines.layers import UnexpectedEngineError, read_engine
from mlpdeploy.engines.sidecar import BuildFacts
from mlpdeploy.engines.tensorrt_builder import (
    EngineFlags,
    create_builder,
    create_network,
    known_faults,
    parse_network,
    set_compute_capabilities,
    set_options,
    set_precision,
    watch_build,
)
from mlpdeploy.errors import MlpDeployError
from mlpdeploy.runtime.tensorrt_api import EngineError, TensorRt, load_tensorrt
from mlpdeploy.runtime.tensorrt_log import Complaints, Severity

KEPT_WARNINGS = 8


@dataclass(frozen=True)
class BuildRequest:
    """One build.

    Attributes:
        target: the flavour of TensorRT.
        network: the lowered ONNX file.
        output: where the engine goes.
        precision: what the artifact says that the graph is.
        profiles: {input name: (min, opt, max) shapes} for each profile.
        compute_capabilities: for TensorRT-RTX.
        flags: the builder's options.
        plugin_library: to load first; empty for none.
        embedded: the folder of the code that the engine is to carry as a plugin; empty for none.
        timing_cache: the file to begin with, where it is there; empty for no cache.
        cache_is_named: whether the user named that file; else it is the artifact's own.
        new_timing_cache: the file to write.
    """

    target: str
    network: str
    output: str
    precision: str
    profiles: tuple[dict[str, Any], ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    flags: EngineFlags = field(default_factory=EngineFlags)
    plugin_library: str = ""
    embedded: str = ""
    timing_cache: str = ""
    cache_is_named: bool = False
    new_timing_cache: str = ""


class Events:
    """Writes events as JSON lines; after the reader is gone, `open` is false and nothing is written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.open = stream, True

    def send(self, event: str, **values: Any) -> None:
        try:
            self._stream.write(json.dumps({"event": event, **values}) + "\n")
            self._stream.flush()
        except BrokenPipeError:
            self.open = False

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self.send("start", name=name, parent=parent, steps=steps)

    def step(self, name: str, done: int) -> bool:
        self.send("step", name=name, done=done)
        return self.open

    def finish(self, name: str) -> None:
        self.send("finish", name=name)


class Log(Complaints):
    """Keeps what TensorRT says: the last complaint for the message, the first warnings for the sidecar."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []

    def __call__(self, severity: Severity, message: str) -> None:
        super().__call__(severity, message)
        text = " ".join(message.split())
        if severity == "warning" and len(self.warnings) < KEPT_WARNINGS and text not in self.warnings:
            self.warnings.append(text)


def build_engine(request: BuildRequest, events: Events, log: Log) -> BuildFacts:
    """Parse, build and write one engine in this process.

    Args:
        request: what to build.
        events: is told how far it is.
        log: hears what TensorRT says.

    Raises:
        EngineError: TensorRT cannot.
        ArtifactError: the engine cannot be written.
    """
    api = load_tensorrt(request.target)
    log.warnings += known_faults(api, request.flags)
    logger = api.logger(log)
    if request.plugin_library:
        api.load_plugins(Path(request.plugin_library))
    problems = register_embedded(api, Path(request.embedded)) if request.embedded else []
    builder = create_builder(api, log)
    network = create_network(api, builder, embedded=bool(request.embedded))
    began = time.perf_counter()
    parser = parse_network(api, network, Path(request.network), logger)  # lives as long as the network
    parsed = time.perf_counter()
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    kinds = Counter(layer.type.name for layer in layers)
    types = Counter(layer.get_output(0).dtype.name for layer in layers)
    asked = {layer.get_output(0).name: layer.get_output(0).dtype.name for layer in layers}
    plugins = [layer.name for layer in layers if layer.type.name.startswith("PLUGIN")]
    _check_precision(request.precision, types)
    events.send("network", layers=network.num_layers)
    config = builder.create_builder_config()
    _configure(api, builder, config, request)
    set_precision(api, config, network, set(types))
    cache = _timing_cache(api, config, request, log)
    watch_build(api, config, events)
    plan = builder.build_serialized_network(network, config)
    if problems:
        raise problems[0]
    if plan is None:
        raise EngineError(f"{api.name} cannot build the engine: {log.last()}")
    built = time.perf_counter()
    timings = None if cache is None else cache.serialize()
    if timings is not None:  # first, so that the next build is a short one whatever comes
        write_file(Path(request.new_timing_cache), bytes(timings))
    output = Path(request.output)
    with disk_errors(output), output.open("wb") as file:
        file.write(plan)
        file.flush()
        os.fsync(file.fileno())
    inside, scratch_bytes = _read_back(api, plan, request, log, asked, plugins)
    del parser
    return BuildFacts(
        parse_seconds=round(parsed - began, 3),
        build_seconds=round(built - parsed, 3),
        network_layers=dict(sorted(kinds.items())),
        network_types=dict(sorted(types.items())),
        engine_layers=inside,
        scratch_bytes=scratch_bytes,
        warnings=tuple(log.warnings),
    )


def _read_back(
    api: TensorRt, plan: Any, request: BuildRequest, log: Log, asked: dict[str, str], plugins: list[str]
) -> tuple[dict[str, Any] | None, int | None]:
    """Return what an engine says about itself and its scratch memory; (None, None) and a warning where it cannot.

    An engine took minutes, and nobody promises that it can be asked: so what fails here does not lose it.

    Raises:
        UnexpectedEngineError: it says that it is another engine than was asked for.
    """
    if api.is_rtx:  # whose engines cannot be opened without a GPU
        return None, None
    if request.flags.strip:
        log.warnings.append("the engine was not read back: without its weights it does not run")
        return None, None
    optima = {name: tuple(shapes[1]) for name, shapes in request.profiles[0].items()} if request.profiles else {}
    try:
        text, scratch_bytes = api.engine_information(log, plan, request.flags.version_compatible, optima)
        inside = read_engine(text, asked, plugins, log.warnings if api.strongly_typed else None)
    except UnexpectedEngineError:
        raise
    except (EngineError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        name = "" if isinstance(error, EngineError) else f"{type(error).__name__}: "
        log.warnings.append(f"the engine was not read back: {name}{error}")
        return None, None
    if set(inside["types"]) == {"unknown"}:
        log.warnings.append("TensorRT does not tell the types in the engine, so that they were not compared")
    return inside, scratch_bytes


def _timing_cache(api: TensorRt, config: Any, request: BuildRequest, log: Log) -> Any:
    """Give the builder its cache of timings and return it, or None without one.

    The artifact's own file, where TensorRT refuses it, is begun anew with a warning: nobody chose it.

    Raises:
        EngineError: the file that the user named is of another GPU or version.
    """
    if not request.timing_cache:
        return None
    source = Path(request.timing_cache)
    kept = source.read_bytes() if source.exists() else b""
    for data in (kept, b""):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
        if request.cache_is_named or not data:
            break
        log.warnings.append(f"{api.name} refused the timing cache {source.name}: it begins with an empty one")
    raise EngineError(
        f"{api.name} refused the timing cache {source}", "one of this GPU and version", "name another file"
    )


def _check_precision(precision: str, types: dict[str, int]) -> None:
    """Raise EngineError where the artifact promises a precision of which its graph has no layer."""
    wanted = {"fp16": "HALF", "bf16": "BF16", "int8": "INT8"}.get(precision)
    if wanted is not None and wanted not in types:
        found = ", ".join(f"{count} {name}" for name, count in types.items())
        raise EngineError(
            f"the artifact is {precision}, but no layer of the parsed network is {wanted} ({found})",
            fix="quantize the artifact again",
        )


def _configure(api: TensorRt, builder: Any, config: Any, request: BuildRequest) -> None:
    """Set everything that the request decides."""
    for shapes in request.profiles:
        profile = builder.create_optimization_profile()
        for name, (low, middle, high) in shapes.items():
            profile.set_shape(name, tuple(low), tuple(middle), tuple(high))
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{api.name} refused the profile {shapes}")
    set_options(api, config, request.flags)
    if api.is_rtx:
        set_compute_capabilities(api, config, request.compute_capabilities)


def main(arguments: list[str]) -> int:
    """Run one request and return the exit status: 0 when the last event says everything, also about a failure."""
    path, descriptor = arguments
    body = json.loads(Path(path).read_text())
    request = BuildRequest(**{**body, "flags": EngineFlags(**body["flags"])})
    with os.fdopen(int(descriptor), "w", encoding="utf-8") as stream:
        events, log = Events(stream), Log()
        try:
            result = build_engine(request, events, log)
            events.send("result", **dataclasses.asdict(result))
        except MlpDeployError as error:
            _send_error(events, error)
        except Exception as error:  # noqa: BLE001  # of TensorRT's bindings, which say less than its log
            _send_error(events, _unexpected(error, log))
    return 0


def _send_error(events: Events, error: MlpDeployError) -> None:
    events.send("error", got=error.got, wanted=error.wanted, fix=error.fix, exit_code=error.exit_code)


def _unexpected(error: Exception, log: Log) -> EngineError:
    """Return what to tell of an error that nobody foresaw: what it is, where, and what TensorRT said before."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}, line {last.lineno}"
    said = f", and TensorRT said last: {log.heard}" if log.heard else ""
    return EngineError(
        f"the build ended with {type(error).__name__}: {error} ({place}){said}",
        fix="see: mlpdeploy doctor; if it finds nothing, report this with the artifact's manifest",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
