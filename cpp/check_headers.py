"""Compile the backend tensorrt with other versions' headers, and run its tests: python cpp/check_headers.py FOLDER...

    python cpp/check_headers.py ~/TensorRT-8.6.1.6/include ~/TensorRT-11.1.0/include --output headers.json

Each FOLDER holds one version's NvInferRuntime.h and its companions: the `include` of an archive of NVIDIA's or of the
branch of a release in the public repository NVIDIA/TensorRT. No package that the tests could install has any but
10.14's. Warnings are errors; the tests run on the simulated GPU, with a TensorRT made of the same headers. Needs what
`make cpp` needs, and CUDA's headers (CUDA_HOME, or /usr/local/cuda).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TESTS = "mlpdeploy-tensorrt-tests"


def version_of(include: Path) -> str:
    """Return the version that the headers name, or stop."""
    header = include / "NvInferVersion.h"
    if not header.is_file():
        sys.exit(f"{include} holds no NvInferVersion.h")
    text = header.read_text(errors="replace")
    numbers = [
        re.search(rf"define (?:TRT|NV_TENSORRT)_{part}(?:_ENTERPRISE)? +(\d+)", text)
        for part in ("MAJOR", "MINOR", "PATCH")
    ]
    if None in numbers:
        sys.exit(f"{header} names no version")
    return ".".join(number[1] for number in numbers if number)


def run(*command: object, **variables: str) -> str:
    """Return what a command prints, or stop with its last lines."""
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, **variables}, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def check(include: Path, version: str, artifacts: Path) -> dict[str, Any]:
    """Compile and test with one version's headers; return what ran."""
    build = ROOT / "build" / f"cpp-headers-{version}"
    run(
        *("cmake", "-S", ROOT / "cpp", "-B", build, f"-DONNXRUNTIME_ROOT={ROOT / 'build' / 'onnxruntime'}"),
        "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON",
        *("-DMLPDEPLOY_WITH_TENSORRT=ON", f"-DTENSORRT_INCLUDE_DIR={include.resolve()}"),
    )
    run("cmake", "--build", build, "--parallel", os.cpu_count(), "--target", TESTS)
    told = run(build / "tests" / TESTS, "--no-colors", MLPDEPLOY_TEST_ARTIFACTS=str(artifacts))
    counts = re.search(r"test cases: +(\d+) \| +(\d+) passed", told)
    assert counts is not None, told
    return {"tensorrt": version, "warnings": 0, "test_cases": int(counts[1]), "passed": int(counts[2])}


def main() -> None:
    """Check each folder, print a line for each and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", metavar="FOLDER", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    options = parser.parse_args()
    versions = {folder: version_of(folder) for folder in options.folders}
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        run(sys.executable, ROOT / "cpp" / "get_onnxruntime.py", ROOT / "build" / "onnxruntime")
        run(sys.executable, ROOT / "tests" / "cpp" / "artifacts.py", scratch)
        for folder, version in versions.items():
            results.append(check(folder, version, Path(scratch)))
            if options.output is not None:
                options.output.write_text(json.dumps({"headers": results}, indent=1) + "\n")
            print(
                "{tensorrt}: compiled without a warning, {passed} of {test_cases} tests pass".format(**results[-1]),
                flush=True,
            )


if __name__ == "__main__":
    main()
