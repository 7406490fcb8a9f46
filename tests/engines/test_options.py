"""What an engine is asked for: contradictions are refused, profiles have the shapes that TensorRT is given."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mlpdeploy.engines.options import BuildOptions, parse_batches, parse_image_sizes, profiles_for
from mlpdeploy.engines.tensorrt_builder import EngineFlags
from mlpdeploy.errors import UsageError
from mlpdeploy.manifest import Manifest, TensorSpec, read_manifest

RTX = BuildOptions("tensorrt-rtx", compute_capabilities=("8.9",))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"target": "tensorrt-rxt"}, "did you mean tensorrt-rtx"),
        ({"compute_capabilities": ()}, "--compute-capability 8.9"),
        ({"compute_capabilities": ("8.9", "8.9")}, "each of them once"),
        ({"shift": "plugin"}, "it has no plugins"),
        ({"shift": "conv"}, "auto, plugin, native"),
        ({"batches": ((4, 2, 8),)}, "min <= opt <= max"),
        ({"batches": ((0, 2, 8),)}, "1 <= min"),
        ({"flags": EngineFlags(workspace_bytes=1 << 20)}, "--workspace for TensorRT-RTX"),
        ({"flags": EngineFlags(workspace_bytes=0)}, "at least 1 MB"),
        ({"flags": EngineFlags(optimization_level=6)}, "0 to 5"),
        ({"flags": EngineFlags(optimization_level=3)}, "--optimization-level for TensorRT-RTX"),
        ({"timing_cache": Path("cache")}, "--timing-cache for TensorRT-RTX"),
        ({"flags": EngineFlags(hardware_compatible=True)}, "--hardware-compatible for"),
        ({"flags": EngineFlags(version_compatible=True)}, "--version-compatible for"),
        ({"flags": EngineFlags(strip=True)}, "--strip for"),
        ({"flags": EngineFlags(refit=True)}, "--refit for"),
        ({"target": "tensorrt"}, "--target tensorrt-rtx"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        dataclasses.replace(RTX, **changes).check()  # type: ignore[arg-type]
    RTX.check()


@pytest.mark.parametrize("text", ["8", "1:8", "1:8:x", "8:4:16", "0:1:2", "1:2:3:4", "", "1:-2:4"])
def test_a_profile_is_three_rising_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="min"):
        parse_batches(text)


@pytest.mark.parametrize("text", ["224", "224:x224:256", "224x:224:224", "64:32:128", "64x64:64x32:64x64", "a:b:c"])
def test_image_sizes_are_three_rising_sizes(text: str) -> None:
    with pytest.raises(UsageError, match=r"min|number"):
        parse_image_sizes(text)


def test_what_is_parsed() -> None:
    assert parse_batches("1:8:64") == (1, 8, 64)
    assert parse_image_sizes("32:64x96:128X160") == ((32, 32), (64, 96), (128, 160))


def test_profiles_of_an_open_batch(exported: Path) -> None:
    manifest = read_manifest(exported)
    assert profiles_for(manifest, RTX) == ({"input": ((1, 3, 32, 32), (8, 3, 32, 32), (32, 3, 32, 32))},)
    two = dataclasses.replace(RTX, batches=((1, 1, 4), (5, 8, 16)))
    assert [profile["input"][2][0] for profile in profiles_for(manifest, two)] == [4, 16]
    with pytest.raises(UsageError, match="fixed image size"):
        profiles_for(manifest, dataclasses.replace(RTX, image_sizes=((32, 32), (32, 32), (64, 64))))


def with_input(manifest: Manifest, *shape: int | str) -> Manifest:
    return dataclasses.replace(manifest, inputs=(TensorSpec("input", shape, "float32", "NCHW"),))


def test_profiles_of_an_open_image_size(exported: Path) -> None:
    manifest = with_input(read_manifest(exported), "batch", 3, "32*height", "32*width")
    sizes = dataclasses.replace(RTX, image_sizes=((32, 64), (64, 64), (96, 128)))
    assert profiles_for(manifest, sizes)[0]["input"] == ((1, 3, 32, 64), (8, 3, 64, 64), (32, 3, 96, 128))
    with pytest.raises(UsageError, match="multiples of 32"):
        profiles_for(manifest, dataclasses.replace(RTX, image_sizes=((32, 40), (64, 64), (96, 128))))
    with pytest.raises(UsageError, match="--image-size min:opt:max"):
        profiles_for(manifest, RTX)


def test_a_fixed_batch_needs_no_profile(exported: Path) -> None:
    manifest = with_input(read_manifest(exported), 4, 3, 32, 32)
    assert profiles_for(manifest, RTX) == ()
    with pytest.raises(UsageError, match="fixed batch of 4"):
        profiles_for(manifest, dataclasses.replace(RTX, batches=((1, 2, 4),)))
