"""What a process has once of TensorRT: the logger that came first, the plugin registry; and the monitor of a build."""

from __future__ import annotations

import enum
import weakref
from typing import Any

from fakes.fake_cuda import FakeError, require

SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")


class ILogger:
    Severity = enum.Enum("Severity", SEVERITIES)

    def __init__(self) -> None:
        self._made = True

    def log(self, severity: Any, message: str) -> None:
        raise FakeError("ILogger.log was not overridden")


def kept_logger(trt: Any, logger: ILogger) -> ILogger:
    """Return the logger that the process uses: the first that TensorRT was given, of which it keeps a bare pointer."""
    require(getattr(logger, "_made", False), "the logger's __init__ was not called: pybind11 would raise")
    first = vars(trt).setdefault("_first_logger", weakref.ref(logger))()
    require(first is not None, "TensorRT's first logger was freed: it would crash")
    return first


class IProgressMonitor:
    def __init__(self) -> None:
        self._made = True


class Registry:
    """The plugin registry: one AxialShift creator for every library that can be loaded."""

    def __init__(self, works: bool) -> None:
        self._works, self._loaded = works, []  # type: ignore[var-annotated]
        self._quick: Any = None  # the plugin of fake_quick_plugin.py, once it is registered

    def load_library(self, plugin_path: str) -> object | None:
        require(isinstance(plugin_path, str), "load_library takes a str")
        require(plugin_path not in self._loaded, "a library that is loaded twice")
        if not self._works:
            return None
        self._loaded.append(plugin_path)
        return object()
