"""Command lines of NVIDIA's own tools for the same files, for users who want a second opinion."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlpdeploy.engines.options import BuildOptions, Shapes, SizeTriple, profiles_for
from mlpdeploy.engines.sidecar import FOLDER, Sidecar
from mlpdeploy.manifest import Manifest, usual_size

PLUGIN = "PLUGIN_LIBRARY"  # where a command needs the plugin: `mlpdeploy plugin info` tells the path


def outside_commands(directory: Path, manifest: Manifest, engines: list[Sidecar]) -> dict[str, str]:
    """Return {what for: command line} for an artifact's files for TensorRT.

    The flags are those of trtexec 10 and polygraphy 0.53. A model with our plugin names `PLUGIN_LIBRARY` in its place.
    It is `--dynamicPlugins`, which has TensorRT load the library; polygraphy, and trtexec with `--staticPlugins`, only
    open it, and then nobody knows the plugin.
    """
    commands = {}
    for engine in engines:
        mark, path = engine.fingerprint, directory / FOLDER / engine.file
        shapes = _shapes({name: triple[1] for name, triple in (*mark.profiles, {})[0].items()})
        program = "tensorrt_rtx" if mark.target == "tensorrt-rtx" else "trtexec"
        plugin = [f"--dynamicPlugins={PLUGIN}"] if mark.plugin_sha256 else []
        commands[f"time {engine.file}"] = shlex.join(
            [program, f"--loadEngine={path}", *([f"--shapes={shapes}"] if shapes else []), "--useCudaGraph", *plugin]
        )
    for name, entry in manifest.models.items():
        if entry.role == "tensorrt":
            commands |= _of_model(directory, name, _usual_profile(manifest), entry.shift == "plugin")
    return commands


def _usual_profile(manifest: Manifest) -> Mapping[str, Shapes]:
    """Return the default batches, with images of a usual size where the model leaves it open."""
    (spec,) = manifest.inputs
    open_sizes = any(isinstance(size, str) for size in spec.shape[2:])
    usual = (usual_size(spec.shape[2]), usual_size(spec.shape[3]))
    sizes: SizeTriple | None = (usual, usual, usual) if open_sizes else None
    profiles = profiles_for(manifest, BuildOptions("tensorrt", image_sizes=sizes))
    return profiles[0] if profiles else {}


def _of_model(directory: Path, name: str, profile: Mapping[str, Shapes], plugin: bool) -> dict[str, str]:
    """Return the commands that build a lowered model and compare it with ONNX Runtime."""
    path = directory / name
    least, usual, most = ({name: shapes[which] for name, shapes in profile.items()} for which in range(3))
    build = ["trtexec", f"--onnx={path}", "--stronglyTyped", "--noTF32"]
    compare = ["polygraphy", "run", str(path), "--trt", "--strongly-typed"]
    if profile:
        build += [f"--minShapes={_shapes(least)}", f"--optShapes={_shapes(usual)}", f"--maxShapes={_shapes(most)}"]
        compare += ["--input-shapes", *(f"{name}:[{','.join(map(str, shape))}]" for name, shape in usual.items())]
    if plugin:
        native = ["mlpdeploy", "lower", str(directory), "--target", "tensorrt", "--shift", "conv", "--force"]
        return {
            f"build {name}": shlex.join([*build, f"--dynamicPlugins={PLUGIN}"]),
            f"replace {name} by one in native layers, for polygraphy, which cannot load the plugin": shlex.join(native),
        }
    return {f"build {name}": shlex.join(build), f"compare {name}": shlex.join([*compare, "--onnxrt"])}


def _shapes(shapes: Mapping[str, Sequence[int]]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
