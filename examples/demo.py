"""The whole path in one go: export, proof, two real photographs, speed, precision. Run by `make demo`.

Each step is a command that is shown before it runs, so that it can be typed again.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from digits.data import digits_split, write_folders

from mlpdeploy.images import sample_photographs
from mlpdeploy.quant.recipe import CALIBRATORS

OUT = Path("demo")
MODEL = "asmlp_s"
TRAINED = ("asmlp_digits", "vip_digits")  # of the three that are shipped: a third would take another minute
WEIGHTS = Path(__file__).parent / "digits"


def step(*arguments: object) -> None:
    """Show and run one `mlpdeploy` command; stop where it fails."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ mlpdeploy {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "mlpdeploy", *words]).returncode
    if code:
        sys.exit(code)


def precision(model: str, training: Path, test: Path) -> None:
    """Show what fp16, bf16 and INT8, by every calibrator, cost a trained model on digits that it has never seen."""
    artifact = OUT / model
    step("export", "--model", model, "--checkpoint", WEIGHTS / f"{model}.safetensors", "-o", artifact, "--force")
    data = ("--calibration-data", training, "--force")
    step("quantize", artifact, "--precision", "fp16", *data, "-o", OUT / f"{model}_fp16")
    step("quantize", artifact, "--precision", "bf16", "--target", "cpu", "-o", OUT / f"{model}_bf16", "--force")
    ranges = OUT / f"{model}.ranges.json"
    ranges.unlink(missing_ok=True)
    for name in CALIBRATORS:
        int8 = ("--precision", "int8", "--calibrator", name, "--cache", ranges)
        step("quantize", artifact, *int8, *data, "-o", OUT / f"{model}_int8_{name}")
    halves = [OUT / f"{model}_{name}" for name in ("fp16", "bf16")]
    all_of_them = [artifact, *halves, *(OUT / f"{model}_int8_{name}" for name in CALIBRATORS)]
    step("eval", *all_of_them, "--data", test, "--threads", 1, "--html", OUT / f"{model}.html")


def main() -> None:
    """Export AS-MLP-S (random weights: none are shipped), and do with it what a user does; then the trained models."""
    start = time.monotonic()
    OUT.mkdir(exist_ok=True)
    artifact = OUT / MODEL
    step("export", "--model", MODEL, "-o", artifact, "--force")
    photographs = [Path(shutil.copy(path, OUT)) for path in sample_photographs()]
    step("predict", artifact, *photographs, "--top", 3)
    results, plot = OUT / "speed.json", OUT / "speed.png"
    peers = ["--peer", "torch-eager", "--peer", "naive-legacy"]
    step("bench", artifact, *peers, "--batch", 1, "--seconds", 8, "-o", results, "--plot", plot)
    folders = (OUT / "digits" / "train", OUT / "digits" / "test")
    for digits, folder in zip(digits_split(), folders, strict=True):
        shutil.rmtree(folder, ignore_errors=True)
        write_folders(digits, folder)
    for model in TRAINED:
        precision(model, *folders)
    pages = " and ".join(str(OUT / f"{model}.html") for model in TRAINED)
    seconds = time.monotonic() - start
    print(f"\nDone in {seconds:.0f} s. Look at {plot}, {pages}; bring your weights with --checkpoint.")


if __name__ == "__main__":
    main()
