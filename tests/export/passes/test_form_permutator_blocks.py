"""A block of Vision Permutator becomes one node where it is the published one, and stays as it is everywhere else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tiny import tiny_vip

from mlpdeploy.export.lower import TARGETS, lower
from mlpdeploy.export.passes.form_permutator_blocks import form_permutator_blocks
from mlpdeploy.export.passes.rewrite import array_of
from mlpdeploy.export.trace import ExportShape, onnx_from_model
from mlpdeploy.ops import permute_mlp
from mlpdeploy.ops.permutator_block import NAME

IMAGE = np.random.default_rng(3).standard_normal((3, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module", params=[2, 32], ids=["narrow segments", "wide segments"])
def traced(request: pytest.FixtureRequest) -> bytes:
    """A model whose segments have 2 and 8, or 32 and 128 channels: both ways of the function along the width."""
    model = tiny_vip(widths=(8 * request.param, 16 * request.param))
    return bytes(ir.to_proto(onnx_from_model(model, ExportShape())).SerializeToString())


@pytest.fixture
def canonical(traced: bytes) -> ir.Model:
    return fresh(traced)


def fresh(traced: bytes) -> ir.Model:
    return ir.from_proto(onnx.load_from_string(traced))


def run(model: ir.Model, optimize: bool = True) -> np.ndarray:
    options = ort.SessionOptions()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, {"input": IMAGE})[0]


def blocks_of(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == NAME]


def mixer_of(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == permute_mlp.NAME)


def named(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def test_blocks_are_formed(canonical: ir.Model, traced: bytes) -> None:
    report = form_permutator_blocks(canonical)
    assert report.changed == ["network.0.0/Add_2", "network.2.0/Add_2"]
    assert not report.refused
    assert [str(node.outputs[0].name) for node in blocks_of(canonical)] == [
        "network.0.0/Add_2:0",
        "network.2.0/Add_2:0",
    ]
    wanted = run(fresh(traced), optimize=False)
    np.testing.assert_allclose(run(canonical, optimize=False), wanted, rtol=0, atol=1e-5 * wanted.std())


def test_a_runtime_without_the_kernel_computes_the_same_bits(traced: bytes) -> None:
    """The function is what the other passes make of the nodes."""
    plain, formed = fresh(traced), fresh(traced)
    lower(plain, TARGETS["cpu"], "conv")
    lower(formed, TARGETS["cpu"], "conv", blocks=True)
    assert len(blocks_of(formed)) == 2 and not blocks_of(plain)
    assert np.array_equal(run(plain), run(formed))


def test_a_block_has_the_canonical_weights(canonical: ir.Model) -> None:
    form_permutator_blocks(canonical)
    weights = [str(value.name) for value in blocks_of(canonical)[0].inputs[1:]]  # type: ignore[union-attr]
    assert all(name.startswith("network.0.0.") for name in weights)
    assert weights[2] == "network.0.0.attn.mlp_h.weight" and weights[9] == "network.0.0.attn.proj.weight.T"


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_only_for_the_cpu(canonical: ir.Model, target: str) -> None:
    names = [report.name for report in lower(canonical, TARGETS[target], TARGETS[target].shift, blocks=True)]
    assert "form_permutator_blocks" not in names
    assert not blocks_of(canonical)


def other_epsilon(model: ir.Model) -> None:
    named(model, "network.0.0.norm2/LayerNormalization").attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-6)


def tanh_gelu(model: ir.Model) -> None:
    named(model, "network.0.0.mlp/Gelu").attributes["approximate"] = ir.AttrString("approximate", "tanh")


def other_axis(model: ir.Model) -> None:
    named(model, "network.0.0.norm1/LayerNormalization").attributes["axis"] = ir.AttrInt64("axis", 2)


def other_grid(model: ir.Model) -> None:
    mixer_of(model).attributes["height"] = ir.AttrInt64("height", 4)


def no_residual(model: ir.Model) -> None:
    named(model, "network.0.0/Add").replace_input_with(0, model.graph.initializers["network.0.0.attn.proj.bias"])


def no_second_residual(model: ir.Model) -> None:
    named(model, "network.0.0/Add_2").replace_input_with(0, model.graph.initializers["network.0.0.mlp.fc2.bias"])


def value_inside_is_used_twice(model: ir.Model) -> None:
    named(model, "network.0.0/Add").replace_input_with(1, named(model, "network.0.0.attn.proj/MatMul").outputs[0])


def value_inside_is_an_output(model: ir.Model) -> None:
    model.graph.outputs.append(named(model, "network.0.0/Add").outputs[0])


def weight_is_an_input(model: ir.Model) -> None:
    weight = mixer_of(model).inputs[3]
    assert weight is not None and array_of(weight) is not None
    model.graph.inputs.append(weight)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_epsilon, "its norms differ in epsilon"),
        (tanh_gelu, "its GELU is the tanh approximation"),
        (other_axis, "a norm of it is over more than the last axis"),
        (other_grid, "its grid has not as many rows and columns as it has segments"),
        (no_residual, "the input of a part of it is not added to its result"),
        (no_second_residual, "no norm and MLP follow it"),
        (value_inside_is_used_twice, "a value inside of the block is used elsewhere"),
        (value_inside_is_an_output, "no norm and MLP follow it"),
        (weight_is_an_input, "its weights are not constant float32"),
    ],
)
def test_what_is_unlike_is_refused(canonical: ir.Model, change: Callable[[ir.Model], None], reason: str) -> None:
    change(canonical)
    report = form_permutator_blocks(canonical)
    assert report.refused == {"network.0.0.attn/WeightedPermuteMlp": reason}
    assert report.changed == ["network.2.0/Add_2"]
