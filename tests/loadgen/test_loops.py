"""Load on a stub server with known delays, stalls and failures: what is reported is what happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from stub_v2 import MODEL, SIDE, Stub, serving

from mlpdeploy.cli import main
from mlpdeploy.errors import UsageError
from mlpdeploy.loadgen.chart import chart_png
from mlpdeploy.loadgen.options import LoadOptions, RampOptions
from mlpdeploy.loadgen.report import LoadReport, run_load
from mlpdeploy.loadgen.target import VARIANTS, LoadError

QUICK = {"duration_s": 0.4, "warmup_s": 0.05}


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving(Stub(), grpc=True) as server:
        yield server


def loaded(stub: Stub, protocol: str = "http", ramp: RampOptions | None = None, **changes: object) -> LoadReport:
    port = stub.http_port if protocol == "http" else stub.grpc_port
    options = LoadOptions(**{**QUICK, **changes})  # type: ignore[arg-type]
    return run_load(f"{protocol}://127.0.0.1:{port}", options, ramp=ramp)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_closed_loop(stub: Stub, protocol: str) -> None:
    stub.delay_s = 0.02
    report = loaded(stub, protocol, clients=3, rows=2)
    step = report.step
    assert step is not None
    assert report.target["model"] == MODEL
    assert report.target["inputs"] == {"input": ["FP32", -1, 3, SIDE, SIDE]}
    assert {len(feeds["input"]) for feeds in stub.seen} == {2}
    assert len({feeds["input"].tobytes() for feeds in stub.seen}) == VARIANTS
    assert abs(np.mean([feeds["input"].mean() for feeds in stub.seen])) < 0.2
    assert 20 <= step.latency_ms["p50"] < 60
    # Three clients that wait 20 ms for each answer cannot get more than 150 a second.
    assert 40 < step.throughput <= 155
    assert step.rows_per_s == pytest.approx(2 * step.throughput, abs=0.01)
    assert (step.failed, step.without_connection, report.ramp) == (0, 0, None)
    assert step.latency_ms["p50"] <= step.latency_ms["p99"] <= step.latency_ms["max"]


def test_a_stall_is_charged_with_every_request_that_it_kept_waiting(stub: Stub) -> None:
    """At 200 a second a server that stands still for 0.3 s delays sixty requests, and not as many as it has clients."""
    options = {"duration_s": 1.0, "warmup_s": 0.0}
    stub.stall = (0.3, 0.6)
    opened = loaded(stub, rate=200.0, arrivals="constant", **options).step
    stub.first = None
    closed = loaded(stub, clients=1, **options).step
    assert opened is not None and closed is not None
    assert opened.sent == 199
    # 60 of 199 requests waited, evenly from 0 to 300 ms: the median of all is fast, the 90th percentile had 200 ms.
    assert opened.latency_ms["p50"] < 50
    # Bounds from below only: a busy machine makes requests later, never earlier.
    assert opened.latency_ms["p90"] > 150
    assert opened.latency_ms["max"] > 240
    # One client that waits sees the stall once, and its percentiles know nothing of it.
    assert closed.latency_ms["p95"] < 50
    assert closed.latency_ms["max"] > 200


def test_a_stall_counts_even_where_no_connection_is_free(stub: Stub) -> None:
    stub.stall = (0.3, 0.6)
    step = loaded(stub, rate=200.0, arrivals="constant", connections=4, duration_s=1.0, warmup_s=0.0).step
    assert step is not None
    assert step.latency_ms["p90"] > 150
    assert step.without_connection >= 40
    assert any("found all connections in use" in note for note in step.notes)


def test_failures_are_counted_by_kind(stub: Stub) -> None:
    stub.fail_every = 4
    for protocol, kind in (("http", "HTTP 429"), ("grpc", "RESOURCE_EXHAUSTED")):
        stub.requests = 0
        step = loaded(stub, protocol, rate=200.0).step
        assert step is not None
        assert step.errors[kind] == pytest.approx(step.sent / 4, abs=2)
        assert step.answered + step.failed == step.sent


def test_timeouts(stub: Stub) -> None:
    options = {"clients": 2, "timeout_s": 0.1, "duration_s": 0.3, "warmup_s": 0.0}
    for protocol, kind in (("http", "timeout"), ("grpc", "DEADLINE_EXCEEDED")):
        stub.delay_s, stub.first, stub.stall = 0.0, None, (0.02, 60.0)
        step = loaded(stub, protocol, **options).step
        assert step is not None
        assert set(step.errors) == {kind}
        assert step.failed >= 4


@pytest.mark.parametrize("load", [{"clients": 16}, {"rate": 300.0, "arrivals": "constant"}])
def test_connections_that_are_reset_at_once_are_failures(stub: Stub, load: dict[str, object]) -> None:
    stub.reset_after = 30
    step = loaded(stub, duration_s=0.4, warmup_s=0.0, **load).step
    assert step is not None
    assert step.failed > 20
    assert "rate" not in load or step.sent == 119
    assert step.answered + step.failed == step.sent
    assert set(step.errors) <= {"connection closed", "connection reset by peer"}


@pytest.mark.parametrize("change", [{"chunked": True}, {"close_after": True}])
def test_other_ways_to_answer(stub: Stub, change: dict[str, bool]) -> None:
    vars(stub).update(change)
    step = loaded(stub, clients=2).step
    assert step is not None
    assert step.answered > 20
    assert step.failed == 0


def test_a_picture(stub: Stub, tmp_path: Path) -> None:
    picture = tmp_path / "photo.jpg"
    picture.write_bytes(bytes(range(200)))
    report = loaded(stub, image=picture, clients=2)
    assert report.step is not None and report.step.failed == 0
    assert stub.seen[0]["image"].tobytes() == picture.read_bytes()
    with pytest.raises(UsageError, match="over gRPC"):
        loaded(stub, "grpc", image=picture)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_api_key(stub: Stub, protocol: str) -> None:
    stub.api_key = "secret"
    with pytest.raises(LoadError, match=r"401|UNAUTHENTICATED"):
        loaded(stub, protocol, model=MODEL)
    report = loaded(stub, protocol, model=MODEL, api_key="secret")
    assert report.step is not None and report.step.answered > 0
    assert "secret" not in json.dumps(report.to_dict())


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_what_cannot_be_loaded(stub: Stub, protocol: str) -> None:
    with pytest.raises(LoadError, match=r"404|NOT_FOUND"):
        loaded(stub, protocol, model="other")
    stub.models = ("a", "b")
    with pytest.raises(UsageError, match="2 models: a, b; wanted one of them; name it with --model"):
        loaded(stub, protocol)
    stub.models, stub.rows = (MODEL,), 4
    with pytest.raises(UsageError, match="1 rows for input 'input'; wanted 4"):
        loaded(stub, protocol)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_no_server(protocol: str) -> None:
    with pytest.raises(LoadError, match=r"no answer from|UNAVAILABLE"):
        run_load(f"{protocol}://127.0.0.1:9", LoadOptions(model="m", timeout_s=2.0))


def test_the_knee_of_a_server_whose_capacity_is_known(stub: Stub) -> None:
    """Two requests at once, 20 ms each: it takes 100 a second and not one more."""
    stub.delay_s = 0.02
    stub.slots._value = 2  # type: ignore[attr-defined]
    ramp = RampOptions(start_rate=60.0, factor=1.5, p99_limit_ms=150.0, refinements=1)
    found = loaded(stub, ramp=ramp, arrivals="constant", duration_s=0.6).ramp
    assert found is not None
    assert found.knee is not None
    assert 50 <= found.knee <= 100
    assert [bool(text) for text in found.verdicts] == sorted(bool(text) for text in found.verdicts)
    assert [step.rate for step in found.steps] == sorted(step.rate or 0 for step in found.steps)
    assert found.reason


def test_what_is_too_late_for_a_ramp_is_not_waited_for(stub: Stub) -> None:
    """A step that the server never answers ends after a second, however long a request may take otherwise."""
    stub.stall = (1.1, 60.0)  # one client alone takes 1 s before
    began = time.monotonic()
    ramp = RampOptions(start_rate=30.0, p99_limit_ms=50.0, refinements=0)
    found = loaded(stub, ramp=ramp, duration_s=1.0, warmup_s=0.0, timeout_s=20.0).ramp
    assert found is not None and found.knee is None
    assert "failed (timeout)" in found.reason
    assert time.monotonic() - began < 12


def test_certificates_that_are_none(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for protocol in ("http", "grpc"):
        with pytest.raises(UsageError, match=r"ca\.pem cannot be used"):
            run_load(f"{protocol}s://127.0.0.1:{stub.grpc_port}", LoadOptions(ca_file=tmp_path / "ca.pem"))


def test_names_that_are_no_text_or_formulas(stub: Stub, tmp_path: Path) -> None:
    picture = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg"))
    picture.write_bytes(b"x")
    output = tmp_path / "load.json"
    arguments = ["--duration", "0.2", "--warmup", "0", "--image", str(picture), "-o", str(output)]
    done = CliRunner().invoke(main, ["load", f"127.0.0.1:{stub.http_port}", *arguments])
    assert done.exit_code == 0, done.output
    assert json.loads(output.read_text())["options"]["image"] == str(picture)
    report = loaded(stub, clients=2)
    report.target["model"] = "a$x_{$"
    assert chart_png(report).startswith(b"\x89PNG")


def test_command(stub: Stub, tmp_path: Path) -> None:
    url, output, plot = f"127.0.0.1:{stub.http_port}", tmp_path / "load.json", tmp_path / "load.png"
    quick = ["--duration", "0.3", "--warmup", "0"]
    done = CliRunner().invoke(main, ["load", url, *quick, "--clients", "2", "-o", str(output), "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    assert "2 clients" in done.stdout and "p99.9" in done.stdout
    assert json.loads(output.read_text())["step"]["clients"] == 2
    assert plot.read_bytes().startswith(b"\x89PNG")
    ramp = ["--ramp", "--rate", "100", "--p99-limit", "0.001"]  # nothing is that fast
    done = CliRunner().invoke(main, ["load", url, *quick, *ramp, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ramp"]["knee"] is None
    for bad, text in (
        (["--rate", "5", "--clients", "2"], "--clients with --rate"),
        (["--p99-limit", "5"], "without --ramp"),
        (["--rate", "5", "--error-limit", "0.5"], "--error-limit without --ramp"),
        (["--arrivals", "constant"], "without --rate or --ramp"),
        (["--connections", "5"], "without --rate or --ramp"),
        (["--protocol", "htpt"], "did you mean http"),
        (["--rate", "-1"], "above 0"),
        (["--ramp", "--rate", "1", "--duration", "2"], "at least 10 requests in a step"),
    ):
        done = CliRunner().invoke(main, ["load", url, *bad])
        assert (done.exit_code, text in done.output) == (2, True), done.output


def test_http_needs_no_package() -> None:
    """Neither gRPC nor a client library nor a Session is imported to send load over HTTP."""
    code = (
        "import sys, mlpdeploy.commands.load, mlpdeploy.loadgen.report, mlpdeploy.loadgen.http\n"
        "heavy = {'grpc', 'aiohttp', 'google', 'onnxruntime', 'torch', 'matplotlib', 'mlpdeploy.runtime'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("load", [[], ["--rate", "40"], ["--ramp"]], ids=["closed", "open", "ramp"])
def test_ctrl_c_reports_what_was_measured(stub: Stub, tmp_path: Path, load: list[str]) -> None:
    stub.delay_s = 0.005
    url = f"http://127.0.0.1:{stub.http_port}"
    seconds = "1" if "--ramp" in load else "60"
    command = [sys.executable, "-m", "mlpdeploy", "load", url, "--duration", seconds, "--warmup", "0.2", *load]
    with subprocess.Popen(
        [*command, "-o", str(tmp_path / "report.json")], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said: list[str] = []
        while not any(("requests/s:" if "--ramp" in load else "is ready") in line for line in said):
            said.append(process.stderr.readline())
            assert said[-1], said
        time.sleep(0.0 if "--ramp" in load else 2.0)
        process.send_signal(signal.SIGINT)
        said += process.stderr.readlines()
    assert process.returncode == 0, said
    assert any("stopping" in line for line in said) and not any("Traceback" in line for line in said)
    report = json.loads((tmp_path / "report.json").read_text())
    if "--ramp" in load:
        assert report["ramp"]["steps"] and report["ramp"]["knee"] is None
        assert "stopped" in report["ramp"]["reason"]
    else:
        assert 1.0 < report["step"]["seconds"] < 5.0
        assert report["step"]["answered"] > 20
        rate = report["step"]["answered"] / report["step"]["seconds"]
        assert report["step"]["throughput"] == pytest.approx(rate, rel=0.2)
