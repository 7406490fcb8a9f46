"""Build every model with TensorRT-RTX, in fp32, fp16 and INT8 with fp16, which needs no GPU: how long, how large.

Also what the native form of the axial shift rests on: the same model with `conv` and with `slice`. Nothing is run: that
needs a GPU. Writes results/rtx_build.json. Run with: python benchmarks/rtx_build.py
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.artifact import write_file
from mlpdeploy.engines.build import build_artifact
from mlpdeploy.engines.network import lowered_network
from mlpdeploy.engines.options import BuildOptions, profiles_for
from mlpdeploy.engines.process import run_build
from mlpdeploy.engines.worker import BuildRequest
from mlpdeploy.env import git_commit, machine, tool_versions
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import read_manifest
from mlpdeploy.models.registry import MODELS
from mlpdeploy.quant.quantize import quantize_artifact
from mlpdeploy.quant.recipe import Recipe

PRECISIONS = ("fp32", "fp16", "int8")
BOTH = ("8.9", "12.0")
COMPARED = "asmlp_t"  # also built for each of the two alone, and with either form of the shift


def in_precision(precision: str, artifact: Path, scratch: Path) -> Path:
    """Return the artifact in another precision, calibrated on noise: the graph is what a user's would be."""
    if precision == "fp32":
        return artifact
    np.save(scratch / "images.npy", np.random.default_rng(0).standard_normal((16, 3, 224, 224)).astype(np.float32))
    recipe = Recipe("int8", rest="fp16") if precision == "int8" else Recipe("fp16")
    quantize_artifact(artifact, scratch / precision, recipe, images=scratch / "images.npy", verify=False)
    return scratch / precision


def build_model(name: str, precision: str, artifact: Path) -> list[dict[str, Any]]:
    """Return one row for each list of GPUs: batch 1 to 32."""
    rows = []
    for capabilities in (BOTH, ("8.9",), ("12.0",)) if (name, precision) == (COMPARED, "fp32") else (BOTH,):
        built = build_artifact(artifact, BuildOptions("tensorrt-rtx", compute_capabilities=capabilities)).sidecar
        rows.append(
            {
                "model": name,
                "precision": precision,
                "compute_capabilities": capabilities,
                "parse_seconds": built.parse_seconds,
                "build_seconds": built.build_seconds,
                "bytes": built.bytes,
                "layers": sum(built.network_layers.values()),
                "network_layers": built.network_layers,
                "network_types": built.network_types,
                "warnings": built.warnings,
            }
        )
        print(
            f"{name}, {precision}, for {', '.join(capabilities)}: "
            f"{built.build_seconds:.1f} s, {built.bytes / 1e6:.1f} MB, {built.network_types}",
            flush=True,
        )
    return rows


def shift_form(form: str, artifact: Path, scratch: Path) -> dict[str, Any]:
    """Return what comes of one form of the shift in native layers."""
    scratch.mkdir()
    manifest = read_manifest(artifact)
    options = BuildOptions("tensorrt-rtx", compute_capabilities=("8.9",))
    network = lowered_network(artifact, manifest, "tensorrt-rtx", form, scratch)
    request = BuildRequest(
        target="tensorrt-rtx",
        network=str(network.path),
        output=str(scratch / "engine"),
        precision=manifest.precision,
        profiles=profiles_for(manifest, options),
        compute_capabilities=options.compute_capabilities,
    )
    result = run_build(request, scratch)
    size = (scratch / "engine").stat().st_size
    layers = sum(result.network_layers.values())
    print(f"shift as {form}: {layers} layers, {result.build_seconds:.1f} s, {size / 1e6:.1f} MB", flush=True)
    return {
        "shift": form,
        "parse_seconds": round(result.parse_seconds, 3),
        "build_seconds": round(result.build_seconds, 3),
        "bytes": size,
        "layers": layers,
        "network_layers": result.network_layers,
    }


def main() -> None:
    """Build everything and write the results file."""
    names = [entry.name for entry in MODELS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=names, help="only these; the default is all")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "rtx_build.json")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="only these; the default is all")
    options = parser.parse_args()
    rows, forms = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model or names:
            artifact = Path(folder) / name
            export_model(name, artifact, target="tensorrt-rtx", verify=False)
            for precision in options.precision or PRECISIONS:
                with tempfile.TemporaryDirectory() as scratch:
                    rows += build_model(name, precision, in_precision(precision, artifact, Path(scratch)))
            if name == COMPARED:
                forms = [shift_form(form, artifact, Path(folder) / form) for form in ("conv", "slice")]
            shutil.rmtree(artifact)
    result = {
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "machine": machine(),
        "tools": tool_versions(["tensorrt_rtx", "onnx_ir", "torch"]),
        "note": "random weights, INT8 calibrated on noise, the rest of INT8 in fp16; engines were built, none was run",
        "profile": "1x3x224x224 : 8x3x224x224 : 32x3x224x224",
        "models": rows,
        f"shift_forms_{COMPARED}": forms,
    }
    write_file(options.output, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
