"""What TensorRT says: one logger for each of its packages and process, and who listens to it.

TensorRT keeps a pointer to the first logger that it is given and uses that for everything. So there is one, which is
never freed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal
from weakref import WeakSet

Severity = Literal["error", "warning", "info"]

_loggers: dict[Any, Any] = {}
_lock = threading.RLock()


class Complaints:
    """Keeps what TensorRT says is wrong; it calls from any thread."""

    def __init__(self) -> None:
        self._error = self._warning = ""

    def __call__(self, severity: Severity, message: str) -> None:
        if severity == "error":
            self._error = " ".join(message.split())
        elif severity == "warning":
            self._warning = " ".join(message.split())

    @property
    def heard(self) -> str:
        """The last error; without one the last warning, as which TensorRT tells that CUDA does not work; or empty."""
        return self._error or self._warning

    def last(self) -> str:
        """Return what was heard last, or that nothing was."""
        return self.heard or "it does not say why"


def logger_of(trt: Any, log: Callable[[Severity, str], None]) -> Any:
    """Return the logger of a package, which hands errors, warnings and information to `log` as long as that lives."""
    with _lock:
        if trt not in _loggers:
            _loggers[trt] = _new_logger(trt)
        _loggers[trt].listeners.add(log)
        return _loggers[trt]


def _new_logger(trt: Any) -> Any:
    severities: dict[Any, Severity] = {
        trt.ILogger.Severity.INTERNAL_ERROR: "error",
        trt.ILogger.Severity.ERROR: "error",
        trt.ILogger.Severity.WARNING: "warning",
        trt.ILogger.Severity.INFO: "info",
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.listeners: WeakSet[Callable[[Severity, str], None]] = WeakSet()

        def log(self, severity: Any, message: str) -> None:
            if severity in severities:
                with _lock:
                    listeners = list(self.listeners)
                for listener in listeners:
                    listener(severities[severity], message)

    return Logger()
