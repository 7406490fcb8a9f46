"""What a server may be asked for, and what the process that takes requests loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy.errors import UsageError
from mlpdeploy.serving import options
from mlpdeploy.serving.options import SMALL_MACS, ServeOptions


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"max_batch": 0}, "max_batch is 0; wanted at least 1"),
        ({"instances": 0}, "instances is 0"),
        ({"threads": -1}, "threads is -1"),
        ({"queue_limit": 0}, "queue_limit is 0"),
        ({"http_port": 65536}, "http_port is 65536"),
        ({"grpc_port": -1}, "grpc_port is -1"),
        ({"max_delay_ms": -1.0}, "max_delay_ms is -1"),
        ({"drain_seconds": float("inf")}, "drain_seconds is inf"),
        ({"timeout_ms": float("nan")}, "timeout_ms is nan"),
        ({"timeout_ms": 0.0}, "timeout_ms is 0; wanted more than 0"),
        ({"tls_cert": Path("cert.pem")}, "only one of tls_cert and tls_key"),
        ({"shared_memory": True, "host": "0.0.0.0"}, r"whoever reaches 0\.0\.0\.0; wanted callers with a key"),
        ({"shared_memory": True, "host": "server.example"}, "whoever reaches server.example"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        ServeOptions(**values)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_shared_memory_on_this_machine_alone_needs_no_key(host: str) -> None:
    assert ServeOptions(shared_memory=True, host=host).shared_memory
    assert ServeOptions(shared_memory=True, host="0.0.0.0", api_key_file=Path("keys")).shared_memory


def test_instances_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "cpu_count", lambda: 6)
    for macs in (None, 10 * SMALL_MACS):
        assert ServeOptions().workers_for(macs) == (1, None)
        assert ServeOptions(instances=2).workers_for(macs) == (2, 3)
        assert ServeOptions(instances=60).workers_for(macs) == (60, 1)
        assert ServeOptions(instances=2, threads=3).workers_for(macs) == (2, 3)


@pytest.mark.parametrize(("processors", "wanted"), [(1, (1, None)), (2, (2, 1)), (6, (6, 1)), (64, (8, 8))])
def test_small_models_get_several_workers(
    processors: int, wanted: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "cpu_count", lambda: processors)
    assert ServeOptions().workers_for(SMALL_MACS) == wanted
    assert ServeOptions(instances=1).workers_for(SMALL_MACS) == (1, None)
    assert ServeOptions(threads=3).workers_for(SMALL_MACS) == (1, 3)
    assert ServeOptions(backend="auto").workers_for(SMALL_MACS) == (1, None)  # it may find an engine


def test_on_a_gpu_no_threads_are_shared_out() -> None:
    """A backend that has none refuses a number of them."""
    for options_ in (ServeOptions(device="cuda"), ServeOptions(backend="onnxruntime-tensorrt")):
        assert options_.workers_for(SMALL_MACS) == (1, None)
    assert ServeOptions(backend="tensorrt", instances=3).workers_for(SMALL_MACS) == (3, None)


def test_the_process_that_takes_requests_loads_no_runtime() -> None:
    code = "import sys, mlpdeploy.serving.repository; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"onnxruntime", "openvino", "torch", "onnx", "PIL", "click", "rich"} & set(loaded)
