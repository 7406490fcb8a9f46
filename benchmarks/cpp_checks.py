"""The C++ tests under sanitizers, its fuzzed parsers, every model beside Python. Writes results/cpp_checks.json.

Run with: make cpp && python benchmarks/cpp_checks.py [--part sanitizers] [--part models] [--part fuzz]

`sanitizers` builds the presets asan and tsan, with the backend tensorrt where its headers are here, and runs every C++
test program; a report ends a program and this script. `models` exports every model (trained weights for the demo
models, random ones for the others) and compares outputs bit by bit and the classes of real photographs. `fuzz` gives
the parsers ten million inputs each. Parts that are not run keep what the file says about them, with their own dates
and machines.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mlpdeploy.artifact import write_file
from mlpdeploy.env import git_commit, machine, tool_versions
from mlpdeploy.export.export import export_model
from mlpdeploy.images import sample_photographs
from mlpdeploy.prediction import predict
from mlpdeploy.runtime.loading import load

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "benchmarks" / "results" / "cpp_checks.json"
sys.path.insert(0, str(ROOT / "tests" / "cpp"))
from native import NativeSession, tensorrt_options  # noqa: E402 (the tests' own view of the library)

BUILD = ROOT / "build" / "cpp-release"
MODELS = ("asmlp_digits", "vip_digits", "asmlp_t", "asmlp_s", "asmlp_b", "vip_s14", "vip_s7", "vip_m7", "vip_l7")
BATCHES = (1, 3)  # all threads together, and in streams with a rest

SANITIZERS = {
    "asan": "AddressSanitizer with leaks, UndefinedBehaviorSanitizer, at -O1",
    "tsan": "ThreadSanitizer, at -O1",
}
PROGRAMS = ("mlpdeploy-tests", "mlpdeploy-onnx-cuda-tests", "mlpdeploy-tensorrt-tests")


def run(*command: object, **variables: str) -> str:
    """Return what a command prints in the C++ folder, or stop with its last lines."""
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT / "cpp", env={**os.environ, **variables}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{(done.stdout + done.stderr)[-6000:]}")
    return done.stdout


def sanitized(preset: str, artifacts: Path) -> dict[str, Any]:
    """Build a preset and run its test programs; return the test cases of each that passed without a report."""
    options = tensorrt_options()
    programs = [name for name in PROGRAMS if "tensorrt" not in name or "-DMLPDEPLOY_WITH_TENSORRT=ON" in options]
    run("cmake", "--preset", preset, *options, "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1", "-DMLPDEPLOY_BUILD_FUZZERS=OFF")
    run("cmake", "--build", "--preset", preset, "--parallel", os.cpu_count(), "--target", *programs)
    passed = {}
    for name in programs:
        told = run(
            *(ROOT / "build" / f"cpp-{preset}" / "tests" / name, "--no-colors"),
            MLPDEPLOY_TEST_ARTIFACTS=str(artifacts),
            TSAN_OPTIONS=f"suppressions={ROOT / 'cpp' / 'tests' / 'tsan.supp'} halt_on_error=1",
        )
        counts = re.search(r"test cases: +(\d+) \| +(\d+) passed \| +0 failed", told)
        assert counts is not None and counts[1] == counts[2], told
        passed[name] = int(counts[2])
        print(f"{preset} {name}: {counts[2]} test cases passed", file=sys.stderr, flush=True)
    entry: dict[str, Any] = {"preset": preset, "sanitizers": SANITIZERS[preset], "passed": passed, "reports": 0}
    if preset == "tsan":
        entry["suppressed"] = (
            "races with a frame of ONNX Runtime or of the CPU kernels, which are not instrumented: cpp/tests/tsan.supp"
        )
    return entry


def fuzzed() -> list[dict[str, Any]]:
    """Fuzz the parsers of frames and manifests; a crash stops the run."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        words = ("--preset", "release", "--target", "frames", "--target", "manifest", "--output", out.name)
        run(sys.executable, ROOT / "cpp" / "fuzz" / "run.py", *words)
        found = json.loads(Path(out.name).read_text())["targets"]
    return [{"target": name, "preset": "release", **counts} for name, counts in found.items()]


def compared(name: str, folder: Path) -> dict[str, Any]:
    """Export a model and compare both sessions on tensors and photographs."""
    weights = ROOT / "examples" / "digits" / f"{name}.safetensors"
    export_model(name, folder, checkpoint=weights if weights.exists() else None, verify=False)
    native, equal = NativeSession(BUILD, folder, threads=2), True
    with load(folder, threads=2) as session:
        for batch in BATCHES:
            feeds = session.random_feeds(batch, seed=batch)
            wanted, got = session.run(feeds), native.run_like(feeds, session.outputs)
            equal = equal and all(wanted[output].tobytes() == got[output].tobytes() for output in wanted)
    native.close()
    photographs = sample_photographs()
    told = run(BUILD / "mlpdeploy-infer", "classify", folder, *photographs, "--json", "--top", 5, "--threads", 2)
    classes = [[score["index"] for score in image["top"]] for image in json.loads(told)["images"]]
    same = classes == [[score.index for score in one.top] for one in predict(folder, photographs, top=5, threads=2)]
    entry = {"model": name, "weights": "trained" if weights.exists() else "random", "batches": list(BATCHES)}
    entry |= {"equal_bits": equal, "photographs": len(photographs), "equal_top_5": same}
    print(entry, file=sys.stderr, flush=True)
    return entry


def models() -> list[dict[str, Any]]:
    """Compare every model, one after another; a difference stops the run."""
    entries = []
    for name in MODELS:
        with tempfile.TemporaryDirectory() as scratch:
            entries.append(compared(name, Path(scratch, name)))
        if not (entries[-1]["equal_bits"] and entries[-1]["equal_top_5"]):
            sys.exit(f"{name}: C++ and Python differ")
    return entries


def sanitizers() -> list[dict[str, Any]]:
    """Run all test programs under each sanitizer."""
    with tempfile.TemporaryDirectory() as scratch:
        run(sys.executable, ROOT / "tests" / "cpp" / "artifacts.py", scratch)
        return [sanitized(preset, Path(scratch)) for preset in SANITIZERS]


PARTS = {"sanitizers": sanitizers, "models": models, "fuzz": fuzzed}


def main() -> None:
    """Run the parts, print them and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=list(PARTS), help="repeat for several  [default: all]")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    result: dict[str, Any] = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    for name in options.part or PARTS:
        found = PARTS[name]()
        result[name] = {
            "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "git_commit": git_commit(),
            "machine": machine(),
            "tools": tool_versions(["onnxruntime"]),
            "compiler": run("g++", "--version").splitlines()[0],
            "results": found,
        }
        write_file(options.output, (json.dumps(result, indent=1) + "\n").encode())
        print(json.dumps({name: result[name]}, indent=1))


if __name__ == "__main__":
    main()
