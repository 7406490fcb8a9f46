"""The axial shift's kernel on a GPU: equal to the reference, clean under compute-sanitizer, and how fast.

    python benchmarks/gpu/axial_shift.py            # check, sanitize, measure
    python benchmarks/gpu/axial_shift.py --check    # the check alone, as compute-sanitizer runs it

Writes benchmarks/results/gpu_axial_shift.json. Needs torch with CUDA and nvcc; no network. It has never run on a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mlpdeploy.env import git_commit, machine, tool_versions  # noqa: E402 - the checkout itself, not what is installed
from mlpdeploy.ops.axial_shift import PADDINGS, ShiftSpec, axial_shift_ref  # noqa: E402
from mlpdeploy.plugins.toolchain import CSRC, find_nvcc, nvcc_version  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "gpu_axial_shift.json"
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
STAGES = ((96, 56), (192, 28), (384, 14), (768, 7))
Pair = tuple[torch.Tensor, torch.Tensor]


def build(folder: Path) -> ctypes.CDLL:
    """Compile the kernel for this GPU and load it."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("no nvcc: put it on PATH")
    major, minor = torch.cuda.get_device_capability()
    library = folder / "libaxial_shift.so"
    op = CSRC / "axial_shift"
    sources = [Path(__file__).with_suffix(".cu"), op / "axial_shift.cu", op / "c_launcher.cpp"]
    command = [nvcc, "-std=c++17", "-O3", "-lineinfo", f"-arch=sm_{major}{minor}", "-shared", "-Xcompiler", "-fPIC"]
    subprocess.run([*command, "-I", op, *sources, "-o", library], check=True)
    return ctypes.CDLL(str(library))


def kernel(library: ctypes.CDLL, x: torch.Tensor, spec: ShiftSpec, channels: int, block: int, outputs: Pair) -> None:
    """Launch the kernel on x in memory order (n, ceil(c / block), h, w, block), on torch's stream."""
    sizes = (x.shape[0], channels, x.shape[2], x.shape[3], block, spec.shift_size, spec.dilation)
    pointers = [tensor.data_ptr() for tensor in (x, *outputs)]
    status = library.mlpdeploy_axial_shift(
        *map(ctypes.c_int64, sizes),
        PADDINGS.index(spec.padding),
        TYPES[x.dtype],
        *map(ctypes.c_void_p, [*pointers, torch.cuda.current_stream().cuda_stream]),
    )
    if status:
        raise SystemExit(f"CUDA error {status} for {tuple(x.shape)}, {x.dtype}, {spec}")


def check(library: ctypes.CDLL, few: bool) -> int:
    """Compare with the reference on the CPU, bit by bit; return how many cases were equal."""
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (2, 96, 56, 56),
        (3, 20, 14, 14),
        (1, 7, 7, 129),
        (2, 33, 9, 5),
        (5, 3, 4, 4),
        (1, 768, 7, 7),
        (1, 1, 5, 9),
    ]
    specs = [ShiftSpec(size, step, pad) for size, step, pad in itertools.product((1, 3, 5), (1, 2), PADDINGS)]
    count = 0
    for shape, spec, dtype, offset in itertools.product(shapes[1:5] if few else shapes, specs, TYPES, (0, 1)):
        n, c, h, w = shape
        if min(h, w) < spec.reach + 1:
            continue
        # Numbers that every type holds exactly; the reference pads in float64.
        planar = torch.randint(-120, 121, shape, generator=generator)
        wanted = axial_shift_ref(planar.double(), spec)
        for block in sorted({1, c, -(-c // 8) * 8, -(-c // 16) * 16, 32}):
            blocks = -(-c // block)
            x = blocked(planar, block).to(dtype)
            memory = [torch.empty(x.numel() + offset, dtype=dtype, device="cuda")[offset:] for _ in range(3)]
            device = [part.view(n, blocks, h, w, block) for part in memory]
            device[0].copy_(x)
            kernel(library, device[0], spec, c, block, (device[1], device[2]))
            for got, want in zip(device[1:], wanted, strict=True):
                if not torch.equal(got.cpu(), blocked(want, block).to(dtype)):
                    raise SystemExit(f"differs: {shape}, {dtype}, channel block {block}, offset {offset}, {spec}")
            count += 1
    return count


def blocked(planar: torch.Tensor, block: int) -> torch.Tensor:
    """Return (n, ceil(c / block), h, w, block), with zeros for the channels that fill a block up."""
    n, c, h, w = planar.shape
    full = torch.nn.functional.pad(planar, (0, 0, 0, 0, 0, -c % block))
    return full.reshape(n, -1, block, h, w).permute(0, 1, 3, 4, 2).contiguous()


def sanitize() -> dict[str, str]:
    """Run the check under compute-sanitizer; return {tool: what came of it}."""
    if shutil.which("compute-sanitizer") is None:
        return dict.fromkeys(("memcheck", "racecheck"), "not run: no compute-sanitizer on PATH")
    results = {}
    for tool in ("memcheck", "racecheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, __file__, "--check"]
        done = subprocess.run([*command, "--few"], capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
        results[tool] = "clean" if done.returncode == 0 else f"exit {done.returncode}: {' '.join(lines)}"
    return results


def microseconds(run: Callable[[], Any], repeats: int) -> float:
    """Return the time of one call in a CUDA graph of 20, so that launches on the host do not count."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(20):
                run()
        graph.replay()
        times = []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1000 / 20)
    return statistics.median(times)


def measure(
    library: ctypes.CDLL, batch: int, channels: int, size: int, dtype: torch.dtype, last: bool
) -> dict[str, Any]:
    """Time the kernel, a copy that writes twice, and torch's pad, roll and cat on one shape, in turn."""
    spec = ShiftSpec(5)
    block = channels if last else 1
    shape = (batch, channels // block, size, size, block)
    x, one, two = (torch.empty(shape, dtype=dtype, device="cuda").random_(0, 100) for _ in range(3))
    size_bytes = x.numel() * x.element_size()
    stream = ctypes.c_void_p

    def copy() -> None:
        pointers = [stream(tensor.data_ptr()) for tensor in (x, one, two)]
        current = stream(torch.cuda.current_stream().cuda_stream)
        if library.mlpdeploy_copy_twice(*pointers, ctypes.c_int64(size_bytes), current):
            raise SystemExit("the copy kernel was not launched")

    planar = torch.empty((batch, channels, size, size), dtype=dtype, device="cuda").random_(0, 100)
    if last:
        planar = planar.to(memory_format=torch.channels_last)
    candidates: dict[str, Callable[[], Any]] = {
        "kernel": lambda: kernel(library, x, spec, channels, block, (one, two)),
        "copy_twice": copy,
        "torch_pad_roll_cat": lambda: axial_shift_ref(planar, spec),
    }
    rounds = [{name: microseconds(run, 20) for name, run in candidates.items()} for _ in range(3)]
    median = {name: statistics.median(times[name] for times in rounds) for name in candidates}
    return {
        "batch": batch,
        "channels": channels,
        "size": size,
        "dtype": str(dtype).removeprefix("torch."),
        "layout": "NHWC" if last else "NCHW",
        "bytes_moved": 3 * size_bytes,
        "us": {name: round(value, 3) for name, value in median.items()},
        "gb_per_s": {name: round(3 * size_bytes / median[name] / 1e3, 1) for name in ("kernel", "copy_twice")},
        "share_of_copy": round(median["copy_twice"] / median["kernel"], 3),
        "times_torch": round(median["torch_pad_roll_cat"] / median["kernel"], 2),
    }


def main() -> None:
    """Check, sanitize, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the reference and stop")
    parser.add_argument("--few", action="store_true", help="fewer shapes, for compute-sanitizer")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU that torch can use")
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        equal = check(library, arguments.few)
        print(f"{equal} cases equal to the reference, bit by bit")
        if arguments.check:
            return
        sanitizer = sanitize()
        print(sanitizer)
        rows = []
        for batch, (channels, size), dtype, last in itertools.product((1, 128), STAGES, TYPES, (False, True)):
            rows.append(measure(library, batch, channels, size, dtype, last))
            print(json.dumps(rows[-1]))
    nvcc = find_nvcc()
    report = {
        "gpu": torch.cuda.get_device_name(),
        "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "cuda": torch.version.cuda,
        "nvcc": nvcc_version(nvcc) if nvcc else None,
        "machine": machine(),
        "versions": tool_versions(("torch", "numpy")),
        "commit": git_commit(),
        "cases_equal_to_the_reference": equal,
        "sanitizer": sanitizer,
        "goal_share_of_copy": 0.85,
        "measurements": rows,
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    if any(result != "clean" and not result.startswith("not run") for result in sanitizer.values()):
        raise SystemExit(f"compute-sanitizer found something: {sanitizer}")


if __name__ == "__main__":
    main()
