"""Run the fuzz targets for many inputs: python cpp/fuzz/run.py [--preset asan] [--inputs 10000000] [--output FILE]

Build them before: cd cpp && cmake --preset asan && cmake --build --preset asan. Each target runs in pieces with seeds
of their own, one process after another; a crash stops the run with the piece's command. The seeds are a small
artifact's manifest, a few frames and two small pictures, from tests/cpp/artifacts.py.
"""

from __future__ import annotations

import argparse
import json
import shlex
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PIECE = 500_000


def seeds(folder: Path) -> dict[str, list[Path]]:
    """Return the seed files of each target."""
    make = [sys.executable, ROOT / "tests" / "cpp" / "artifacts.py", folder]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    short = json.loads((folder / "asmlp" / "manifest.json").read_text())
    short["passes"], short["verification"] = short["passes"][:1], {}
    (folder / "manifest.json").write_text(json.dumps(short, ensure_ascii=False))
    parts = (b"", b"abc", bytes(500), b"")
    (folder / "frames").write_bytes(b"".join(struct.pack("<I", len(part)) + part for part in parts))
    return {
        "frames": [folder / "frames"],
        "manifest": [folder / "manifest.json"],
        "image": [folder / "small.jpg", folder / "small.png"],
    }


def main() -> None:
    """Run the targets and write what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="asan")
    parser.add_argument("--inputs", type=int, default=10_000_000, help="of each target")
    parser.add_argument("--target", action="append", choices=["frames", "manifest", "image"], help="[default: all]")
    parser.add_argument("--output", type=Path, help="write the counts as JSON")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for target, files in seeds(Path(scratch)).items():
            if options.target and target not in options.target:
                continue
            program = ROOT / "build" / f"cpp-{options.preset}" / "fuzz" / f"fuzz_{target}"
            start, done = time.monotonic(), 0
            while done < options.inputs:
                count = min(PIECE, options.inputs - done)
                command = [str(program), str(count), str(1 + done // PIECE), *map(str, files)]
                process = subprocess.run(command, capture_output=True, text=True)
                if process.returncode:
                    sys.exit(f"{shlex.join(command)} failed:\n{process.stderr[-4000:]}")
                done += count
            results[target] = {"inputs": done, "seconds": round(time.monotonic() - start, 1), "crashes": 0}
            print(target, results[target], flush=True)
    if options.output is not None:
        options.output.write_text(json.dumps({"preset": options.preset, "targets": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
