"""The whole path in one go: export, proof, two real photographs, speed. Run by `make demo`.

Each step is a command that is shown before it runs, so that it can be typed again.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from mlpdeploy.images import sample_photographs

OUT = Path("demo")
MODEL = "asmlp_s"


def step(*arguments: object) -> None:
    """Show and run one `mlpdeploy` command; stop where it fails."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ mlpdeploy {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "mlpdeploy", *words]).returncode
    if code:
        sys.exit(code)


def main() -> None:
    """Export AS-MLP-S (random weights: none are shipped), and do with it what a user does."""
    start = time.monotonic()
    OUT.mkdir(exist_ok=True)
    artifact = OUT / MODEL
    step("export", "--model", MODEL, "-o", artifact, "--force")
    photographs = [Path(shutil.copy(path, OUT)) for path in sample_photographs()]
    step("predict", artifact, *photographs, "--top", 3)
    results, plot = OUT / "speed.json", OUT / "speed.png"
    peers = ["--peer", "torch-eager", "--peer", "naive-legacy"]
    step("bench", artifact, *peers, "--batch", 1, "--seconds", 8, "-o", results, "--plot", plot)
    print(f"\nDone in {time.monotonic() - start:.0f} s. Look at {plot}; bring your weights with --checkpoint.")


if __name__ == "__main__":
    main()
