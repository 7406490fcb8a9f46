"""A connection to a Ray cluster, or a cluster of this process's own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlpdeploy.env import cpu_count, require
from mlpdeploy.errors import MlpDeployError, UsageError

DEFAULT_THREADS = 4  # of one process on the CPU: a core group


def default_threads() -> int:
    """Return the processors that a process of a cluster gets where nothing else is asked for."""
    return min(DEFAULT_THREADS, cpu_count())


def on_gpu(backend: str | None, device: str | None) -> bool:
    """Return whether a process needs a GPU; Ray shows one only to those for whom one is set aside."""
    return (device or "").startswith("cuda") or (backend or "").endswith("tensorrt")


def threads_for(backend: str | None, device: str | None, threads: int | None) -> int | None:
    """Return the threads of a process; None leaves them to `load`, as TensorRT wants it."""
    return threads if threads or on_gpu(backend, device) else default_threads()


def ray_module() -> Any:
    """Return the module `ray`, which reports no usage and starts no cluster of its own accord.

    It would, from a thread that outlives ours and asks for something.

    Raises:
        MissingDependencyError: it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # read when ray is imported
    return require("ray")


@contextmanager
def cluster(address: str | None, object_store_bytes: int) -> Iterator[Any]:
    """Yield the module `ray`, connected to `address`, to what this process is connected to, or to a cluster of its own.

    A cluster of its own lives in a temporary folder and ends with the block.

    Raises:
        UsageError: there is no cluster at the address.
        MlpDeployError: Ray does not start.
    """
    ray = ray_module()
    if ray.is_initialized():
        yield ray
        return
    quiet = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    with tempfile.TemporaryDirectory(prefix="mlpd-", ignore_cleanup_errors=True) as folder:
        if address is not None:
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UsageError(f"no Ray cluster at {address!r} ({error})", "host:port, or auto") from error
        else:
            try:
                ray.init(
                    num_cpus=cpu_count(),
                    include_dashboard=False,
                    _temp_dir=folder,
                    object_store_memory=object_store_bytes,
                    **quiet,
                )
            except Exception as error:
                raise MlpDeployError(
                    f"Ray does not start here ({error})", fix="try again, or see its documentation"
                ) from error
        try:
            yield ray
        finally:
            ray.shutdown()
