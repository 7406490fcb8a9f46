"""Sums of 8-bit products must not saturate, which they do by default on processors without VNNI."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlpdeploy import env
from mlpdeploy.manifest import Manifest, read_manifest
from mlpdeploy.runtime import auto, openvino
from mlpdeploy.runtime.onnxruntime import inference_session
from mlpdeploy.runtime.session import LoadOptions

DEPTH, COLUMNS = 64, 16


def largest_product(path: Path) -> None:
    """Write a product of uint8 activations and int8 weights, whose ranges begin and end where bytes do."""
    constants = {
        "step": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
        "weight": np.full((DEPTH, COLUMNS), 127, np.int8),
        "steps": np.ones(COLUMNS, np.float32),
        "zeros": np.zeros(COLUMNS, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "step", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weight", "steps", "zeros"], ["weights"], axis=1),
        helper.make_node("MatMul", ["values", "weights"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", DEPTH))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", COLUMNS))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def test_the_largest_sum_is_exact(tmp_path: Path) -> None:
    largest_product(tmp_path / "product.onnx")
    session = inference_session(tmp_path / "product.onnx")
    (found,) = session.run(None, {"x": np.full((3, DEPTH), 255, np.float32)})
    np.testing.assert_array_equal(found, np.full((3, COLUMNS), DEPTH * 255 * 127, np.float32))


@pytest.mark.parametrize(
    ("features", "saturates"),
    [(["avx2"], True), (["avx2", "avx512f"], True), (["avx2", "avx_vnni"], False), ([], False)],
)
def test_which_processors_saturate(features: list[str], saturates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "cpu_features", lambda: features)
    assert env.sums_of_int8_saturate() is saturates
    assert bool(env.exact_sums()) is saturates  # where none saturates, the option would only cost time


def in_int8(directory: Path) -> Manifest:
    return dataclasses.replace(read_manifest(directory), precision="int8")


@pytest.mark.parametrize("saturates", [True, False])
def test_openvino_is_chosen_by_name_only(
    exported_for_all: Path, monkeypatch: pytest.MonkeyPatch, saturates: bool
) -> None:
    if env.installed_version("openvino") is None:
        pytest.skip("openvino is not installed: pip install 'mlpdeploy[openvino]'")
    for module in (auto, openvino):
        monkeypatch.setattr(module, "sums_of_int8_saturate", lambda: saturates)
    manifest, options = in_int8(exported_for_all), LoadOptions(device="cpu", threads=1)
    assert ("openvino" in auto._able(manifest, options)) is not saturates
    assert "openvino" in auto._able(read_manifest(exported_for_all), options)
    narrow = dataclasses.replace(manifest, quantization={"recipe": {"weight_bits": 7}})
    assert "openvino" in auto._able(narrow, options)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        openvino.BackendSession(exported_for_all, manifest, options).close()
        openvino.BackendSession(exported_for_all, narrow, options).close()
    assert ["no VNNI" in str(warning.message) for warning in told] == [True] * saturates
