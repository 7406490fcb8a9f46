"""The axial shift's kernel on a GPU: equal to the reference, clean under compute-sanitizer, and how fast.

    python benchmarks/gpu/axial_shift.py [-o results.json]    # a short check, bandwidth, sanitizers, a long check
    python benchmarks/gpu/axial_shift.py --all                # every case and row, however long it takes
    python benchmarks/gpu/axial_shift.py --check              # the short check alone, as compute-sanitizer runs it

Without --all it is done in about nine minutes: what the time does not suffice for is counted as left out. The results
are written after every row. Needs torch with CUDA and nvcc; no network. It has never run on a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
GOAL = 0.85  # of the copy's bandwidth, where the data come from memory
SHAPES = (
    (2, 96, 56, 56),
    (3, 20, 14, 14),
    (1, 7, 7, 129),
    (2, 33, 9, 5),
    (5, 3, 4, 4),
    (1, 768, 7, 7),
    (1, 1, 5, 9),
)
SPECS = tuple(ShiftSpec(size, step, pad) for size, step, pad in itertools.product((1, 3, 5), (1, 2), PADDINGS))
SHORT_SHAPES, SHORT_SPECS = SHAPES[1:4], tuple(spec for spec in SPECS if (spec.shift_size, spec.dilation) == (5, 1))
# Shares of the time after which bandwidth and sanitizers have had theirs; the long check has the rest.
SECONDS, BANDWIDTH_UNTIL, SANITIZERS_UNTIL = 480, 0.2, 0.95  # two minutes for each sanitizer
COMPILE_SECONDS = 240
# Reused after four times the L2 cache, an input is no more in it. torch's calls are many kernels each: fewer of those.
CACHES, MOST_SETS, MOST_TORCH_SETS, LEAST_CALLS = 4, 4096, 32, 20
LAST_LINES = 5  # of a sanitizer that did not get to its summary
UNTOUCHED = 121  # what the outputs hold before: no value of an input
SANITIZERS = ("memcheck", "initcheck", "racecheck")
CLEAN, NO_SANITIZER = "clean", "not run: no compute-sanitizer on PATH or beside nvcc"
Pair = tuple[torch.Tensor, torch.Tensor]
Launch = Callable[[torch.Tensor, ShiftSpec, int, int, Pair], None]


def build(folder: Path) -> Path:
    """Return the library of the kernel, compiled for this GPU."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("no nvcc: put it on PATH")
    major, minor = torch.cuda.get_device_capability()
    library = folder / "libaxial_shift.so"
    op = CSRC / "axial_shift"
    sources = [Path(__file__).with_suffix(".cu"), op / "axial_shift.cu", op / "c_launcher.cpp"]
    command = [nvcc, "-std=c++17", "-O3", "-lineinfo", f"-arch=sm_{major}{minor}", "-shared", "-Xcompiler", "-fPIC"]
    subprocess.run([*command, "-I", op, *sources, "-o", library], check=True, timeout=COMPILE_SECONDS)
    return library


def launcher(library: ctypes.CDLL) -> Launch:
    """Return a function that launches the kernel on torch's stream.

    It takes x in memory order (n, ceil(c / block), h, w, block), the spec, c, block, and the outputs.
    """

    def launch(x: torch.Tensor, spec: ShiftSpec, channels: int, block: int, outputs: Pair) -> None:
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

    return launch


def check(
    launch: Launch, shapes: tuple[Any, ...], specs: tuple[ShiftSpec, ...], device: str, deadline: float = math.inf
) -> tuple[int, int]:
    """Compare with the reference on the CPU, bit by bit; return how many cases were equal, and how many left out."""
    generator = torch.Generator().manual_seed(0)
    equal = left_out = 0
    for shape, spec in itertools.product(shapes, specs):
        if min(shape[2:]) < spec.reach + 1:
            continue
        forms = list(_forms(shape[1]))
        if time.monotonic() > deadline:
            left_out += len(forms)
            continue
        # Numbers that every type holds exactly; the reference pads in float64.
        planar = torch.randint(-120, 121, shape, generator=generator)
        wanted = [moved.to(device) for moved in axial_shift_ref(planar.double(), spec)]
        planar = planar.to(device)
        for dtype, offset, block in forms:
            if not _equal(launch, planar, wanted, spec, dtype, offset, block):
                raise SystemExit(f"differs: {shape}, {dtype}, channel block {block}, offset {offset}, {spec}")
        equal += len(forms)
    return equal, left_out


def _forms(channels: int) -> Iterator[tuple[torch.dtype, int, int]]:
    """Yield (dtype, offset of the tensors from an aligned address in elements, channels in a block)."""
    blocks = sorted({1, channels, -(-channels // 8) * 8, -(-channels // 16) * 16, 32})
    return itertools.product(TYPES, (0, 1), blocks)


def _equal(
    launch: Launch,
    planar: torch.Tensor,
    wanted: list[torch.Tensor],
    spec: ShiftSpec,
    dtype: torch.dtype,
    offset: int,
    block: int,
) -> bool:
    x = blocked(planar, block).to(dtype)
    memory = [torch.full((x.numel() + offset,), UNTOUCHED, dtype=dtype, device=x.device)[offset:] for _ in range(3)]
    source, along_w, along_h = (part.view(x.shape) for part in memory)
    source.copy_(x)
    launch(source, spec, planar.shape[1], block, (along_w, along_h))
    return all(
        torch.equal(got, blocked(want, block).to(dtype)) for got, want in zip((along_w, along_h), wanted, strict=True)
    )


def blocked(planar: torch.Tensor, block: int) -> torch.Tensor:
    """Return (n, ceil(c / block), h, w, block), with zeros for the channels that fill a block up."""
    n, c, h, w = planar.shape
    full = torch.nn.functional.pad(planar, (0, 0, 0, 0, 0, -c % block))
    return full.reshape(n, -1, block, h, w).permute(0, 1, 3, 4, 2).contiguous()


def sanitize(library: Path, deadline: float) -> dict[str, str]:
    """Run the short check under compute-sanitizer; return {tool: what came of it}.

    torch's own cache of memory is off: within one large piece of it no access is out of bounds. The kernel has no
    shared memory, so racecheck has little to find.
    """
    nvcc = find_nvcc()
    beside = nvcc.resolve().with_name("compute-sanitizer") if nvcc else None
    sanitizer = shutil.which("compute-sanitizer") or (str(beside) if beside and beside.is_file() else None)
    if sanitizer is None:
        return dict.fromkeys(SANITIZERS, NO_SANITIZER)
    results = {}
    for index, tool in enumerate(SANITIZERS):
        # CUDA's calls that fail are no finding: torch asks for things that need not be there.
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no"]
        seconds = (deadline - time.monotonic()) / (len(SANITIZERS) - index)
        if seconds < 1:
            results[tool] = "not run: no time left"
            continue
        results[tool] = _sanitized(
            [*command, sys.executable, __file__, "--check", "--library", str(library)],
            None if math.isinf(seconds) else seconds,
        )
    return results


def _sanitized(command: list[str], seconds: float | None) -> str:
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    state = ""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the program under it, which would go on with the GPU
        output, _ = process.communicate()
        state = f"not run to the end: it was stopped after {seconds:.0f} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    lines = output.splitlines()
    summary = [line for line in lines if "SUMMARY" in line]
    if process.returncode == 0 and summary:
        return CLEAN
    return f"{state or f'exit {process.returncode}'}: {' '.join(summary or lines[-LAST_LINES:])}"


def unclean(results: dict[str, str]) -> dict[str, str]:
    """Return the tools that found something or did not get to the end; that there are none is no fault."""
    return {tool: result for tool, result in results.items() if result not in (CLEAN, NO_SANITIZER)}


def microseconds(calls: list[Callable[[], Any]], repeats: int) -> float:
    """Return the time of one call in a CUDA graph of all of them, so that launches on the host do not count."""
    calls = calls * -(-LEAST_CALLS // len(calls))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for run in calls[:3]:
            run()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for run in calls:
                run()
        graph.replay()
        times = []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1000 / len(calls))
    return statistics.median(times)


def sets_for(size_bytes: int, l2_bytes: int) -> int:
    """Return how many sets of buffers of this size are used in turns, so that none is found in the L2 cache again."""
    return min(max(2, -(-CACHES * l2_bytes // size_bytes)), MOST_SETS)


def measure(
    library: ctypes.CDLL, batch: int, channels: int, size: int, dtype: torch.dtype, last: bool
) -> dict[str, Any]:
    """Time the kernel, a copy that writes twice, and torch's pad, roll and cat on one shape, in turn."""
    spec, launch = ShiftSpec(5), launcher(library)
    block = channels if last else 1
    shape = (batch, channels // block, size, size, block)
    size_bytes = math.prod(shape) * dtype.itemsize
    l2_bytes = torch.cuda.get_device_properties().L2_cache_size
    sets = sets_for(3 * size_bytes, l2_bytes)
    # (sets, 3, ...): input and outputs of each call
    buffers = torch.empty((sets, 3, *shape), dtype=dtype, device="cuda").random_(0, 100)
    inputs = torch.empty((min(sets, MOST_TORCH_SETS), batch, channels, size, size), dtype=dtype, device="cuda")
    planar = [part.contiguous(memory_format=torch.channels_last) if last else part for part in inputs.random_(0, 100)]

    def shift(index: int) -> None:
        x, one, two = buffers[index]
        launch(x, spec, channels, block, (one, two))

    def copy(index: int) -> None:
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in buffers[index]]
        current = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        if library.mlpdeploy_copy_twice(*pointers, ctypes.c_int64(size_bytes), current):
            raise SystemExit("the copy kernel was not launched")

    candidates: dict[str, list[Callable[[], Any]]] = {
        "kernel": [lambda i=i: shift(i) for i in range(sets)],  # type: ignore[misc]
        "copy_twice": [lambda i=i: copy(i) for i in range(sets)],  # type: ignore[misc]
        "torch_pad_roll_cat": [lambda x=x: axial_shift_ref(x, spec) for x in planar],  # type: ignore[misc]
    }
    rounds = [{name: microseconds(calls, 8) for name, calls in candidates.items()} for _ in range(3)]
    median = {name: statistics.median(times[name] for times in rounds) for name in candidates}
    return {
        "batch": batch,
        "channels": channels,
        "size": size,
        "dtype": str(dtype).removeprefix("torch."),
        "layout": "NHWC" if last else "NCHW",
        "bytes_moved": 3 * size_bytes,
        "buffer_sets": sets,
        "above_l2": 3 * size_bytes > l2_bytes,
        "us": {name: round(value, 3) for name, value in median.items()},
        "gb_per_s": {name: round(3 * size_bytes / median[name] / 1e3, 1) for name in ("kernel", "copy_twice")},
        "share_of_copy": round(median["copy_twice"] / median["kernel"], 3),
        "times_torch": round(median["torch_pad_roll_cat"] / median["kernel"], 2),
    }


def goal_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many of the rows that are larger than the L2 cache reach the goal; smaller ones say nothing of it."""
    judged = [row for row in rows if row["above_l2"]]
    return {"share_of_copy": GOAL, "rows": len(judged), "reached": sum(r["share_of_copy"] >= GOAL for r in judged)}


def examine(path: Path, report: dict[str, Any], output: Path, seconds: float) -> None:
    """Check, measure, sanitize, check again; write the report after every step and row."""
    began = time.monotonic()
    library = ctypes.CDLL(str(path))
    report["short_check"] = check(launcher(library), SHORT_SHAPES, SHORT_SPECS, "cuda")[0]
    print(f"{report['short_check']} cases equal to the reference, bit by bit", flush=True)
    rows: list[dict[str, Any]] = []
    report |= {"measurements": rows, "rows_left_out": 0}
    for batch, (channels, size), dtype, last in itertools.product((128, 1), STAGES, TYPES, (False, True)):
        if time.monotonic() > began + BANDWIDTH_UNTIL * seconds:
            report["rows_left_out"] += 1
            continue
        rows.append(measure(library, batch, channels, size, dtype, last))
        torch.cuda.empty_cache()
        print(json.dumps(rows[-1]), flush=True)
        report["goal"] = goal_of(rows)
        write(report, output)
    report["sanitizer"] = sanitize(path, began + SANITIZERS_UNTIL * seconds)
    print(report["sanitizer"], flush=True)
    write(report, output)
    equal, left_out = check(launcher(library), SHAPES, SPECS, "cuda", began + seconds)
    report |= {"cases_equal_to_the_reference": equal, "cases_left_out": left_out}
    print(f"{equal} cases equal to the reference, bit by bit; {left_out} left out", flush=True)
    write(report, output)


def write(report: dict[str, Any], output: Path) -> None:
    """Write what there is so far."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    parser.add_argument("--all", action="store_true", help="every case and row, however long it takes")
    parser.add_argument("--check", action="store_true", help="the short check alone")
    parser.add_argument("--library", type=Path, help="compiled already")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU that torch can use")
    with tempfile.TemporaryDirectory() as folder:
        library = arguments.library or build(Path(folder))
        if arguments.check:
            equal, _ = check(launcher(ctypes.CDLL(str(library))), SHORT_SHAPES, SHORT_SPECS, "cuda")
            print(f"{equal} cases equal to the reference, bit by bit")
            return
        nvcc = find_nvcc()
        report: dict[str, Any] = {
            "gpu": torch.cuda.get_device_name(),
            "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "l2_bytes": torch.cuda.get_device_properties().L2_cache_size,
            "cuda": torch.version.cuda,
            "nvcc": nvcc_version(nvcc) if nvcc else None,
            "machine": machine(),
            "versions": tool_versions(("torch", "numpy")),
            "commit": git_commit(),
        }
        examine(library, report, arguments.output, math.inf if arguments.all else SECONDS)
    if problems := unclean(report["sanitizer"]):
        raise SystemExit(f"compute-sanitizer found something, or did not get to the end: {problems}")


if __name__ == "__main__":
    main()
