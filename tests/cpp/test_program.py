"""mlpdeploy-infer beside `mlpdeploy`: the same answers, fields and exit codes; frames from another process."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from native import ROOT
from PIL import Image
from tiny import tiny_asmlp

from mlpdeploy.bench.measure import Timing
from mlpdeploy.bench.plan import BenchPlan
from mlpdeploy.bench.plot import plot_png
from mlpdeploy.bench.report import BenchReport, Result, read_report
from mlpdeploy.env import machine
from mlpdeploy.export.export import export_model
from mlpdeploy.images import sample_photographs
from mlpdeploy.manifest import FileEntry
from mlpdeploy.prediction import predict

PHOTOGRAPHS = sample_photographs()
FILE_FIELDS = tuple(f.name for f in dataclasses.fields(FileEntry))


def infer(build: Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [build / "mlpdeploy-infer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def frame(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def digests(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("name", ["asmlp", "vip", "fixed"])
def test_photographs_get_pythons_classes(build: Path, artifacts: dict[str, Path], name: str) -> None:
    done = infer(build, "classify", artifacts[name], *PHOTOGRAPHS, "--json", "--top", 4, "--batch", 2)
    assert done.returncode == 0, done.stderr
    images = json.loads(done.stdout)["images"]
    for image, wanted in zip(images, predict(artifacts[name], PHOTOGRAPHS, top=4), strict=True):
        assert image["path"] == wanted.path and image["error"] is None
        assert [(s["index"], s["label"]) for s in image["top"]] == [(s.index, s.label) for s in wanted.top]
        probabilities = [score["probability"] for score in image["top"]]
        assert probabilities == pytest.approx([score.probability for score in wanted.top], rel=1e-12)


def test_one_logit_is_told_by_its_sigmoid(build: Path, tmp_path: Path) -> None:
    export_model(tiny_asmlp(num_classes=1), tmp_path / "one", verify=False)
    done = infer(build, "classify", tmp_path / "one", *PHOTOGRAPHS, "--json")
    assert done.returncode == 0, done.stderr
    found = [image["top"][0]["probability"] for image in json.loads(done.stdout)["images"]]
    wanted = [prediction.top[0].probability for prediction in predict(tmp_path / "one", PHOTOGRAPHS)]
    assert found == pytest.approx(wanted, rel=1e-12)
    assert all(0 < probability < 1 for probability in found)


def test_the_text_is_that_of_predict(build: Path, artifacts: dict[str, Path], tmp_path: Path) -> None:
    from click.testing import CliRunner

    from mlpdeploy.cli import main

    (tmp_path / "sub").mkdir()
    for target in (tmp_path / "b.jpg", tmp_path / "sub" / "a.jpeg", tmp_path / ".hidden.jpg"):
        target.write_bytes(PHOTOGRAPHS[0].read_bytes())
    (tmp_path / "bad.png").write_bytes(b"")
    words = [str(artifacts["asmlp"]), str(tmp_path), "--skip-bad", "--top", "2"]
    wanted = CliRunner().invoke(main, ["predict", *words])
    done = infer(build, "classify", *words)
    assert done.stdout == wanted.stdout
    assert done.stderr.startswith("note: random weights")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([], 2, "Usage"),
        (["nonsense"], 2, "no command nonsense"),
        (["classify"], 2, "0 operands"),
        (["classify", "{asmlp}", "none.jpg"], 2, "none.jpg does not exist"),
        (["classify", "{asmlp}", "{photo}", "--top", "0"], 2, "top is 0"),
        (["classify", "{asmlp}", "{photo}", "--top", "many"], 2, "--top many"),
        (["classify", "{asmlp}", "{photo}", "--colour"], 2, "unknown option --colour"),
        (["classify", "{asmlp}", "{photo}", "--batch", "0"], 2, "max_batch is 0"),
        (["classify", "{asmlp}", "{bad}"], 1, "is empty"),
        (["classify", "/nowhere", "{photo}"], 1, "/nowhere does not exist"),
        (["classify", "{features}", "{photo}"], 2, "feature maps"),
        (["bench", "{fixed}", "--batch", "2"], 2, "fixed"),
        (["bench", "{asmlp}", "--seconds", "-1"], 2, "--seconds"),
        (["serve", "{asmlp}"], 2, "neither --stdin nor --unix"),
        (["serve", "{asmlp}", "--unix", "/" + "x" * 200], 2, "too long"),
        (["serve", "{asmlp}", "--unix", "/nowhere/socket"], 2, "cannot be listened at"),
        (["serve", "{asmlp}", "--unix", ""], 2, "an empty path"),
        (["bench", "{features}", "--image-size", "-32x32"], 2, "--image-size -32x32; wanted sides of 1 to 32768"),
    ],
)
def test_failures_have_exit_codes_and_one_line(
    build: Path, artifacts: dict[str, Path], tmp_path: Path, words: list[str], code: int, text: str
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"")
    names = {**artifacts, "photo": PHOTOGRAPHS[0], "bad": tmp_path / "bad.jpg"}
    done = infer(build, *(word.format(**names) for word in words))
    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr
    assert not words or done.stderr.count("\n") == 1


def test_the_json_of_a_name_that_is_no_utf_8(build: Path, artifacts: dict[str, Path], tmp_path: Path) -> None:
    for name in (b"\xff\xc0\xaf.jpg", b"\xed\xa0\x80\xe2\x82.jpg", "\u00e9\u20ac\U0001f642.jpg".encode()):
        path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
        Path(path).symlink_to(PHOTOGRAPHS[0])
        command = [build / "mlpdeploy-infer", "classify", artifacts["asmlp"], path, "--json"]
        done = subprocess.run(command, capture_output=True, timeout=120)
        assert json.loads(done.stdout.decode())["images"][0]["path"] == path


# Has the system refuse threads after the first ones.
FEW_THREADS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
static atomic_int made;
typedef int (*Create)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
int pthread_create(pthread_t* thread, const pthread_attr_t* options, void* (*work)(void*), void* context) {
  if (atomic_fetch_add(&made, 1) >= atoi(getenv("THREADS_AT_MOST"))) return EAGAIN;
  return ((Create)dlsym(RTLD_NEXT, "pthread_create"))(thread, options, work, context);
}
"""


@pytest.fixture(scope="module")
def few_threads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library to preload, which lets a process make THREADS_AT_MOST threads."""
    folder = tmp_path_factory.mktemp("threads")
    (folder / "few.c").write_text(FEW_THREADS)
    command = ["g++", "-x", "c", "-shared", "-fPIC", "-o", folder / "few.so", folder / "few.c", "-ldl"]
    subprocess.run(command, check=True)
    return folder / "few.so"


def exit_codes(build: Path, few_threads: Path, *words: object) -> list[int]:
    """Return how a command with two threads ends where the system gives no thread, one, two and so on."""
    codes = []
    for most in range(10):
        environment = {**os.environ, "LD_PRELOAD": str(few_threads), "THREADS_AT_MOST": str(most)}
        done = infer(build, *words, "--threads", 2, env=environment, stdin=subprocess.DEVNULL)
        assert done.returncode == 0 or done.stderr.count("\n") == 1, done.stderr
        codes.append(done.returncode)
    return codes


def test_threads_that_the_system_refuses_are_a_failure(
    build: Path, artifacts: dict[str, Path], few_threads: Path
) -> None:
    for words in (("classify", artifacts["asmlp"], PHOTOGRAPHS[0]), ("serve", artifacts["asmlp"], "--stdin")):
        codes = exit_codes(build, few_threads, *words)
        enough = codes.index(0)
        assert codes == [1] * enough + [0] * (len(codes) - enough)


def test_a_connection_without_threads_leaves_the_others(
    build: Path, artifacts: dict[str, Path], few_threads: Path, tmp_path: Path
) -> None:
    # Enough for a stream on stdin: one of them for its answers.
    enough = exit_codes(build, few_threads, "serve", artifacts["asmlp"], "--stdin").index(0)
    for most in (enough - 1, enough):  # none for the connection, or none for its answers
        environment = {**os.environ, "LD_PRELOAD": str(few_threads), "THREADS_AT_MOST": str(most)}
        path = tmp_path / f"socket{most}"
        process = start_socket(build, artifacts["asmlp"], path, "--threads", "2", env=environment)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert client.recv(1 << 16) == b'{"error": "too many connections"}\n'
        process.terminate()
        assert process.wait(30) == 0


def test_help_is_printed_from_the_defaults(build: Path) -> None:
    for command in ("classify", "bench", "serve"):
        done = infer(build, command, "--help")
        assert done.returncode == 0 and f"mlpdeploy-infer {command}" in done.stdout
    assert "[default: 5]" in infer(build, "classify", "--help").stdout
    assert "serve" in infer(build, "--help").stdout


def test_a_full_device_is_a_failure(build: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([build / "mlpdeploy-infer", "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "cannot be written" in done.stderr


def test_bench_gives_the_fields_of_pythons_report(build: Path, artifacts: dict[str, Path], tmp_path: Path) -> None:
    done = infer(build, "bench", artifacts["asmlp"], "--seconds", 0.2, "--batch", 1, "--batch", 4, "--json")
    assert done.returncode == 0, done.stderr
    (tmp_path / "cpp.json").write_text(done.stdout)
    report = read_report(tmp_path / "cpp.json")
    document = json.loads(done.stdout)
    assert set(document) == {f.name for f in dataclasses.fields(BenchReport)} | {
        "format",
        "version",
        "baseline",
        "labels",
    }
    assert set(document["options"]) == {f.name for f in dataclasses.fields(BenchPlan)}
    assert set(document["machine"]) == set(machine()) - {"python"} | {"load_average_1min"}
    assert set(document["artifact"]) == {"precision", "opset", "file", "kernels", *FILE_FIELDS}
    assert set(document["results"][0]) == {f.name for f in dataclasses.fields(Result)}
    assert set(document["results"][0]["timing"]) == {f.name for f in dataclasses.fields(Timing)}
    for result, batch in zip(report.results, (1, 4), strict=True):
        timing = result.timing
        assert timing is not None and timing.batch == batch and timing.runs >= 10
        assert 0 < timing.min_ms <= timing.p50_ms <= timing.p95_ms <= timing.p99_ms
        assert timing.images_per_s == pytest.approx(batch * 1000 / timing.p50_ms)
    assert plot_png(report).startswith(b"\x89PNG")
    text = infer(build, "bench", artifacts["fixed"], "--seconds", 0.1).stdout
    assert text.splitlines()[-1].split()[0] == "3"


def answers_of(output: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["frame"] for line in lines] == list(range(len(lines)))
    return lines


def test_frames_on_stdin_are_answered_in_order(build: Path, artifacts: dict[str, Path], tmp_path: Path) -> None:
    generator = random.Random(0)
    pictures = [photograph.read_bytes() for photograph in PHOTOGRAPHS]
    Image.open(PHOTOGRAPHS[0]).resize((50, 40)).save(tmp_path / "small.png")
    pictures.append((tmp_path / "small.png").read_bytes())
    paths = [*PHOTOGRAPHS, tmp_path / "small.png"]
    wanted = [[score.index for score in p.top] for p in predict(artifacts["vip"], paths, top=3)]
    order = [generator.randrange(4) for _ in range(60)]  # 3 is no picture
    data = b"".join(frame([*pictures, b"no picture"][kind]) for kind in order) + frame(b"")
    command = [build / "mlpdeploy-infer", "serve", artifacts["vip"], "--stdin", "--top", "3"]
    done = subprocess.run(command, input=data, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answers = answers_of(done.stdout.decode())
    assert len(answers) == 61 and answers[60]["error"].startswith("frame 60 is empty")
    for index, kind in enumerate(order):
        if kind == 3:
            assert answers[index]["error"].startswith(f"frame {index} is not an image")
        else:
            assert [score["index"] for score in answers[index]["top"]] == wanted[kind]


@pytest.mark.parametrize(
    ("tail", "text"),
    [
        (b"\x10\x00", "ends inside of its length"),
        (struct.pack("<I", 100) + b"abc", "ends after 3 bytes; wanted 100"),
        (struct.pack("<I", 0xFFFFFFFF), "has 4294967295 bytes; wanted at most 1000000"),
    ],
)
def test_a_broken_stream_fails_after_its_good_frames(
    build: Path, artifacts: dict[str, Path], tail: bytes, text: str
) -> None:
    data = frame(PHOTOGRAPHS[0].read_bytes()) + tail
    command = [build / "mlpdeploy-infer", "serve", artifacts["asmlp"], "--stdin", "--max-frame-mb", "1"]
    done = subprocess.run(command, input=data, capture_output=True, timeout=120)
    good, broken = answers_of(done.stdout.decode())
    assert done.returncode == 1 and len(good["top"]) == 5 and text in broken["error"]


def start_socket(build: Path, folder: Path, path: Path, *words: str, **options: Any) -> subprocess.Popen[str]:
    command = [build / "mlpdeploy-infer", "serve", folder, "--unix", path, *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("listening")
    return process


def ask(path: Path, data: bytes) -> list[dict[str, Any]]:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return answers_of(b"".join(iter(lambda: client.recv(1 << 16), b"")).decode())


def test_a_socket_serves_several_clients_and_stops_cleanly(
    build: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    process = start_socket(build, artifacts["asmlp"], path)
    data = b"".join(frame(photograph.read_bytes()) for photograph in PHOTOGRAPHS)
    first = ask(path, data)
    assert len(first) == 2 and ask(path, data) == first
    with socket.socket(socket.AF_UNIX) as idle, socket.socket(socket.AF_UNIX) as rude:
        idle.connect(str(path))
        rude.connect(str(path))
        rude.sendall(data[:1000])
        rude.close()
        assert ask(path, data) == first
        refused = infer(build, "serve", artifacts["asmlp"], "--unix", path)
        assert refused.returncode == 2 and "in use" in refused.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not path.exists()


def test_a_client_that_takes_no_answers_does_not_keep_the_server(
    build: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    process = start_socket(build, artifacts["asmlp"], path, "--patience-ms", "300")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.settimeout(1)
        with pytest.raises(TimeoutError):  # its answers fill the socket, so that no more frames are read
            while True:
                client.sendall(frame(b"no picture") * 1000)
        began = time.monotonic()
        process.terminate()
        assert process.wait(30) == 0
        assert time.monotonic() - began < 5  # which it would be patient for if it was not told


def test_killed_it_leaves_the_artifact_as_it_was(build: Path, artifact: Path, tmp_path: Path) -> None:
    before = digests(artifact)
    data = frame(PHOTOGRAPHS[0].read_bytes()) * 50
    for delay in (0.01, 0.05, 0.2):
        command = [build / "mlpdeploy-infer", "serve", artifact, "--stdin"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert process.stdin is not None
        try:
            process.stdin.write(data)
            process.stdin.flush()
        except BrokenPipeError:
            pass
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdin.close()
    path = tmp_path / "socket"
    process = start_socket(build, artifact, path)
    process.kill()
    process.wait()
    assert path.exists()  # what a killed process leaves behind does not stop the next one
    process = start_socket(build, artifact, path)
    process.terminate()
    assert process.wait(30) == 0
    assert digests(artifact) == before
    assert os.listdir(artifact.parent) == [artifact.name]


@pytest.mark.parametrize("words", [("classify", *PHOTOGRAPHS), ("bench", "--seconds", "30")], ids=["classify", "bench"])
def test_killed_at_any_moment_it_leaves_the_artifact_as_it_was(
    build: Path, artifact: Path, words: tuple[object, ...]
) -> None:
    before = digests(artifact)
    generator = random.Random(0)
    for moment in range(12):
        command = [build / "mlpdeploy-infer", words[0], artifact, *map(str, words[1:])]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=artifact.parent)
        time.sleep(generator.uniform(0, 0.01 * (moment + 1)))  # while it starts, reads, loads and computes
        process.kill()
        process.wait()
    assert digests(artifact) == before
    assert os.listdir(artifact.parent) == [artifact.name]


def test_the_example_drives_it_from_python(build: Path, artifacts: dict[str, Path]) -> None:
    script = [sys.executable, ROOT / "examples" / "cpp_process.py", artifacts["vip"], *PHOTOGRAPHS]
    done = subprocess.run([*script, "--program", build / "mlpdeploy-infer"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{len(PHOTOGRAPHS)} of {len(PHOTOGRAPHS)} equal to Python's session"
