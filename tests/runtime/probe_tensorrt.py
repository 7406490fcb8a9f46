"""Run in a process with one version's real bindings: uses what works without TensorRT behind it, prints all names."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

from mlpdeploy.engines.tensorrt_builder import create_network, watch_build
from mlpdeploy.runtime.tensorrt_api import load_tensorrt

api = load_tensorrt("tensorrt")
heard: list[tuple[str, str]] = []
hear = lambda severity, text: heard.append((severity, text))  # noqa: E731 (the logger keeps no reference)
logger = api.logger(hear)
trt = api.module
for severity in trt.ILogger.Severity.__members__.values():
    logger.log(severity, str(severity).rpartition(".")[2])

steps: list[tuple[object, ...]] = []
monitor = SimpleNamespace(
    start=lambda name, parent, count: steps.append(("start", name, parent, count)),
    step=lambda name, done: not steps.append(("step", name, done)),
    finish=lambda name: steps.append(("finish", name)),
)
config = SimpleNamespace()
watched = watch_build(api, config, monitor)
if watched:
    config.progress_monitor.phase_start("one", None, 2)
    assert config.progress_monitor.step_complete("one", 0) is True
    config.progress_monitor.phase_finish("one")
flags: list[int] = []
create_network(api, SimpleNamespace(create_network=flags.append))
values = {name: value for name, value in vars(trt).items() if not name.startswith("_")}
if hasattr(trt, "QuickPluginCreationRequest"):
    quick = vars(api.plugin_module())
    values |= {f"plugin.{name}": value for name, value in quick.items() if not name.startswith("_")}
names = {
    name: [member for member in dir(value) if not member.startswith("_")] if isinstance(value, type) else []
    for name, value in values.items()
}
json.dump(
    {
        "version": api.version,
        "names": names,
        "heard": heard,
        "watched": watched,
        "steps": steps,
        "flags": flags,
        "typed": api.strongly_typed,
    },
    sys.stdout,
)
