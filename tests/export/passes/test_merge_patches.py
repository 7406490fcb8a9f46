from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from mlpdeploy.export.passes.merge_patches import merge_patches
from mlpdeploy.export.passes.rewrite import array_of, remove_unused


def test_slices_and_concat_become_one_strided_convolution(canonical: ir.Model, same_result: Callable) -> None:
    report = merge_patches(canonical)
    remove_unused(canonical)
    assert report.changed == ["layers.0.downsample/Concat"]
    assert not {"Slice", "Concat"} & {node.op_type for node in canonical.graph}
    conv = next(node for node in canonical.graph if node.attributes.get_ints("strides", ()) == (2, 2))
    assert array_of(conv.inputs[1]).shape == (42, 21, 2, 2)
    same_result(canonical)


def test_a_concat_of_something_else_is_refused_by_name(canonical: ir.Model, same_result: Callable) -> None:
    concat = next(node for node in canonical.graph if node.op_type == "Concat")
    concat.replace_input_with(0, concat.inputs[1])
    report = merge_patches(canonical)
    assert report.changed == []
    assert report.refused == {concat.name: "its inputs are not the four corners, each once"}


def test_an_odd_size_is_refused(canonical: ir.Model) -> None:
    concat = next(node for node in canonical.graph if node.op_type == "Concat")
    source = concat.inputs[0]
    while source.producer().op_type == "Slice":
        source = source.producer().inputs[0]
    source.shape = ir.Shape([None, 21, 7, 8])
    report = merge_patches(canonical)
    assert "odd" in report.refused[concat.name]


def test_the_order_of_the_corners_matters(canonical: ir.Model, same_result: Callable) -> None:
    """The fault this test is for: rows and columns exchanged give another kernel."""
    merge_patches(canonical)
    conv = next(node for node in canonical.graph if node.attributes.get_ints("strides", ()) == (2, 2))
    kernel = array_of(conv.inputs[1])
    assert not np.array_equal(kernel, kernel.transpose(0, 1, 3, 2))
