"""`--shift auto`: an engine with the plugin and one with native layers, both run on this GPU; the faster one stays."""

from __future__ import annotations

import dataclasses
import math
import statistics
from contextlib import ExitStack
from pathlib import Path

from mlpdeploy.artifact import write_file
from mlpdeploy.engines.options import BuildOptions
from mlpdeploy.engines.process import Progress
from mlpdeploy.engines.sidecar import Sidecar
from mlpdeploy.engines.single import Built, build_one, find_engine
from mlpdeploy.errors import MissingDependencyError
from mlpdeploy.manifest import Manifest
from mlpdeploy.runtime.session import LoadOptions
from mlpdeploy.runtime.tensorrt import BackendSession
from mlpdeploy.runtime.tensorrt_api import EngineError

ROUNDS, RUNS = 5, 10
_BUILD_SHARE = 0.45  # of the progress bar, for each of the two

# {form of the shift: {rows: GPU milliseconds}}
Times = dict[str, dict[str, float]]


def build_fastest(
    directory: Path, manifest: Manifest, options: BuildOptions, *, force: bool, progress: Progress | None
) -> Built:
    """Return the faster one of two engines; its sidecar says how fast both were.

    The slower one is removed, unless it was there before. Where nothing reaches CUDA from Python, neither can be run:
    then the one with the plugin stays, with a warning.

    Where TensorRT does not build the plugin's, the other one stays, with a warning, unless the plugin was asked for.

    Raises:
        As `build_artifact`.
    """
    tell = progress or (lambda done, text: None)
    forms = [dataclasses.replace(options, shift="plugin"), dataclasses.replace(options, shift="native", plugin=None)]
    warnings: tuple[str, ...] = ()
    for form in forms if not force else ():
        known = find_engine(directory, manifest, form)
        if known is not None and known.sidecar.measured_ms:
            return known
    built = []
    for number, form in enumerate(forms):

        def part(done: float, text: str, start: float = number * _BUILD_SHARE, shift: str = form.shift) -> None:
            tell(start + _BUILD_SHARE * done, f"{shift}: {text}")

        try:
            built.append(build_one(directory, manifest, form, force=force, progress=part))
        except EngineError as error:
            if form.shift == "native" or options.asks_for_plugin:
                raise
            warnings = (f"the shift is in native layers: {error}",)
    if len(built) == 1:
        return _settle(built[0], warnings=(*warnings, *built[0].sidecar.warnings))
    tell(2 * _BUILD_SHARE, "measuring both")
    try:
        times = measure(directory, manifest, [engine.sidecar for engine in built])
    except MissingDependencyError as error:
        warning = f"the two forms of the shift were not measured, so this is the plugin: {error}"
        return _settle(*built, warnings=(warning, *built[0].sidecar.warnings))
    speed = [math.prod(times[engine.sidecar.fingerprint.shift].values()) for engine in built]
    winner, loser = built if speed[0] <= speed[1] else reversed(built)
    return _settle(winner, loser, measured_ms=times)


def measure(directory: Path, manifest: Manifest, engines: list[Sidecar]) -> Times:
    """Return the GPU's median time of each engine, in turns, at the optimum of each of its profiles.

    Raises:
        MissingDependencyError: no package for CUDA is installed.
        EngineError, CudaError: an engine cannot be run.
    """
    times: Times = {}
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(BackendSession(directory, manifest, LoadOptions(), engine)) for engine in engines
        ]
        for rows, height_width in _optima(engines[0]):
            found: dict[str, list[float]] = {}
            for _ in range(ROUNDS):
                for session, engine in zip(sessions, engines, strict=True):
                    runs = session.gpu_ms(rows, RUNS, height_width)
                    found.setdefault(engine.fingerprint.shift, []).extend(runs)
            for form, runs in found.items():
                times.setdefault(form, {})[str(rows)] = round(statistics.median(runs), 4)
    return times


def _optima(engine: Sidecar) -> list[tuple[int, tuple[int, int] | None]]:
    """Return (rows, (height, width)) that each profile is made fastest for; one row for an engine without profiles."""
    found: dict[int, tuple[int, int] | None] = {}
    for profile in engine.fingerprint.profiles:
        rows, _, height, width = next(iter(profile.values()))[1]
        found.setdefault(rows, (height, width))
    return list(found.items()) or [(1, None)]


def _settle(winner: Built, loser: Built | None = None, **changes: object) -> Built:
    """Write what was found into the winner's sidecar, and remove the loser if it was built for this only."""
    sidecar = dataclasses.replace(winner.sidecar, **changes)  # type: ignore[arg-type]
    write_file(winner.path.with_suffix(".json"), sidecar.to_json().encode())
    if loser is not None and not loser.reused:
        loser.path.with_suffix(".json").unlink()
        loser.path.unlink()
    return Built(winner.path, sidecar, winner.reused)
