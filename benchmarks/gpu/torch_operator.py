"""The torch operator on a GPU: equal to the reference bit by bit, in torch.compile, its gradient, and its time.

    python benchmarks/gpu/torch_operator.py [-o results.json]

Needs a torch with CUDA, and nvcc or the library of `mlpdeploy plugin build`: where that is not built, the kernel alone
is compiled for this GPU. Never run on a GPU yet. Exits with 1 when a check fails.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mlpdeploy.env import git_commit, tool_versions
from mlpdeploy.errors import PluginError
from mlpdeploy.models.create import create_model
from mlpdeploy.ops.axial_shift import PADDINGS, ShiftSpec, axial_shift_ref
from mlpdeploy.plugins.find import LIBRARY_VARIABLE, find_plugin_library
from mlpdeploy.torch_operator import DIFFERENTIABLE, ELEMENT_TYPES, axial_shift, use_operator

# Products in float32: by default torch rounds those of convolutions to ten bits.
torch.backends.cudnn.allow_tf32 = False
SHAPES = ((2, 96, 56, 56), (3, 20, 14, 17), (1, 7, 7, 129), (5, 3, 8, 8), (1, 768, 7, 7))


def provide_library(folder: Path) -> None:
    """Have a library with the kernel: the plugin's where it is built, else one of the kernel alone."""
    try:
        find_plugin_library()
    except PluginError:
        from axial_shift import build  # the script beside this one

        os.environ[LIBRARY_VARIABLE] = str(build(folder))


def check(device: str) -> dict[str, Any]:
    """Return what was compared, and `failed`: where it differs from the reference on the CPU."""
    failed: list[str] = []
    count = 0
    specs = [ShiftSpec(size, step, padding) for size, step, padding in itertools.product((1, 3, 5), (1, 2), PADDINGS)]
    for shape, spec, dtype, last in itertools.product(SHAPES, specs, ELEMENT_TYPES, (False, True)):
        if min(shape[2:]) < spec.reach + 1:
            continue
        x = torch.randint(-100, 100, shape).to(dtype)
        x = x.to(memory_format=torch.channels_last) if last else x
        results = axial_shift(x.to(device), spec)
        for got, wanted in zip(results, axial_shift_ref(x.double(), spec), strict=True):
            if not torch.equal(got.cpu().double(), wanted):
                failed.append(f"{shape}, {spec}, {dtype}, channels last: {last}")
        count += 1
    for padding in DIFFERENTIABLE:
        if not _same_gradient(ShiftSpec(5, 1, padding), device):  # type: ignore[arg-type]
            failed.append(f"gradient with {padding} padding")
    return {"cases": count, "failed": failed}


def _same_gradient(spec: ShiftSpec, device: str) -> bool:
    grads = []
    for function in (axial_shift, axial_shift_ref):
        x = torch.arange(2 * 11 * 7 * 9, dtype=torch.float32, device=device).reshape(2, 11, 7, 9).requires_grad_()
        along_w, along_h = function(x, spec)
        (along_w * 2 + along_h * 3).sum().backward()
        grads.append(x.grad)
    return torch.equal(*grads)


def compare_models(device: str, failed: list[str]) -> dict[str, float]:
    """Return milliseconds of AS-MLP-T at batch 8, by the reference and by the operator, compiled and not."""
    x = torch.randn(8, 3, 224, 224, device=device)
    model = create_model("asmlp_t").to(device).eval()
    with torch.inference_mode():
        wanted = model(x)
        times = {"reference": _milliseconds(lambda: model(x))}
        use_operator(model)
        times["operator"] = _milliseconds(lambda: model(x))
        if not torch.equal(model(x), wanted):
            failed.append("AS-MLP-T by the operator")
        try:
            compiled = torch.compile(model, fullgraph=True)
            if (compiled(x) - wanted).abs().max() > 1e-3 * wanted.std():
                failed.append("AS-MLP-T by the operator, compiled")
            times["operator, torch.compile"] = _milliseconds(lambda: compiled(x))
        except Exception as error:  # noqa: BLE001 - it needs a compiler of its own; what was found before must not be lost
            failed.append(f"torch.compile ({type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]})")
    return times


def _milliseconds(run: Callable[[], Any], runs: int = 20) -> float:
    for _ in range(5):
        run()
    times = []
    for _ in range(runs):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[runs // 2]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("no GPU that torch can use")
    with tempfile.TemporaryDirectory() as folder:
        provide_library(Path(folder))
        result = check("cuda")
        result["milliseconds"] = compare_models("cuda", result["failed"])
    result |= {
        "gpu": torch.cuda.get_device_name(), "git_commit": git_commit(), "tools": tool_versions(("torch", "numpy")),
    }  # fmt: skip
    text = json.dumps(result, indent=1) + "\n"
    if options.output:
        options.output.write_text(text)
    print(text if not options.output else f"{result['cases']} cases, {len(result['failed'])} failed")
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
