"""The contract of the axial shift: reference, ONNX function and formula agree."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from mlpdeploy.errors import UsageError
from mlpdeploy.ops.axial_shift import (
    DOMAIN,
    NAME,
    PADDINGS,
    ShiftSpec,
    attributes,
    axial_shift_function,
    axial_shift_ref,
)

NUMPY_PAD = {"zero": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}


def by_formula(x: np.ndarray, spec: ShiftSpec) -> tuple[np.ndarray, np.ndarray]:
    """Index by index, as the contract in ops/axial_shift.py is written."""
    _, channels, height, width = x.shape
    reach = spec.reach
    wide = np.pad(x, ((0, 0), (0, 0), (0, 0), (reach, reach)), mode=NUMPY_PAD[spec.padding])
    tall = np.pad(x, ((0, 0), (0, 0), (reach, reach), (0, 0)), mode=NUMPY_PAD[spec.padding])
    along_w, along_h = np.empty_like(x), np.empty_like(x)
    for c in range(channels):
        group = c // int(np.ceil(channels / spec.shift_size))
        move = (group - spec.shift_size // 2) * spec.dilation
        for w in range(width):
            along_w[:, c, :, w] = wide[:, c, :, w - move + reach]
        for h in range(height):
            along_h[:, c, h, :] = tall[:, c, h - move + reach, :]
    return along_w, along_h


@st.composite
def cases(draw: st.DrawFn) -> tuple[ShiftSpec, tuple[int, int, int, int], int]:
    spec = ShiftSpec(draw(st.sampled_from([1, 3, 5, 7])), draw(st.integers(1, 3)), draw(st.sampled_from(PADDINGS)))
    smallest = {"zero": 1, "replicate": 1, "circular": spec.reach, "reflect": spec.reach + 1}[spec.padding]
    size = st.integers(max(1, smallest), smallest + 9)
    return (
        spec,
        (draw(st.integers(1, 3)), draw(st.integers(1, 23)), draw(size), draw(size)),
        draw(st.integers(0, 2**31)),
    )


def model_of(spec: ShiftSpec, shape: tuple[int, ...]) -> onnx.ModelProto:
    node = helper.make_node(NAME, ["X"], ["Y_w", "Y_h"], domain=DOMAIN, **attributes(spec, shape[1]))
    axes = ["n", shape[1], "h", "w"]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in ("X", "Y_w", "Y_h")]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    functions = [axial_shift_function(spec.padding, 21)]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@settings(max_examples=150, deadline=None)
@given(cases())
def test_reference_equals_the_formula(case: tuple) -> None:
    spec, shape, seed = case
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    for got, wanted in zip(axial_shift_ref(torch.from_numpy(x), spec), by_formula(x, spec), strict=True):
        np.testing.assert_array_equal(got.numpy(), wanted)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_onnx_function_equals_the_formula_in_onnx_runtime(case: tuple) -> None:
    spec, shape, seed = case
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    session = ort.InferenceSession(model_of(spec, shape).SerializeToString(), providers=["CPUExecutionProvider"])
    for got, wanted in zip(session.run(None, {"X": x}), by_formula(x, spec), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("padding", PADDINGS)
def test_onnx_function_equals_the_formula_in_the_onnx_reference(padding: str) -> None:
    spec = ShiftSpec(5, 2, padding)
    x = np.random.default_rng(0).standard_normal((2, 7, 9, 11)).astype(np.float32)
    results = ReferenceEvaluator(model_of(spec, x.shape)).run(None, {"X": x})
    for got, wanted in zip(results, by_formula(x, spec), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_strided_and_integer_inputs() -> None:
    x = torch.arange(2 * 10 * 6 * 8, dtype=torch.int8).reshape(2, 6, 8, 10).permute(0, 3, 1, 2)
    for got, wanted in zip(axial_shift_ref(x, ShiftSpec()), by_formula(x.numpy(), ShiftSpec()), strict=True):
        np.testing.assert_array_equal(got.numpy(), wanted)


def test_published_group_sizes() -> None:
    assert ShiftSpec(5).group_sizes(96) == [20, 20, 20, 20, 16]
    assert ShiftSpec(5).group_sizes(6) == [2, 2, 2, 0, 0]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((4,), "shift_size is 4"),
        ((-1,), "shift_size"),
        ((5, 0), "dilation is 0"),
        ((5, 1, "mirror"), "padding is 'mirror'"),
    ],
)
def test_attributes_outside_of_their_range(values: tuple, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        ShiftSpec(*values)


def test_circular_below_opset_19_is_refused() -> None:
    with pytest.raises(UsageError, match="opset 19"):
        axial_shift_function("circular", 18)
