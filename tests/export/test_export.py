"""Canonical ONNX, the artifact folder, and every option of the export."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny import tiny_asmlp, tiny_cyclemlp, tiny_vip

import mlpdeploy
from mlpdeploy.errors import MlpDeployError, UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.export.labels import read_labels
from mlpdeploy.manifest import read_manifest
from mlpdeploy.runtime.torch import canonical_weights
from mlpdeploy.torch_operator import use_operator

VARIANTS = {
    "defaults": ({}, {}),
    "circular": ({"shift": {"padding": "circular"}}, {}),
    "reflect, dilated": ({"shift": {"padding": "reflect", "shift_size": 3, "dilation": 2}}, {}),
    "replicate, serial": ({"shift": {"padding": "replicate", "shift_size": 7}, "branches": "serial"}, {}),
    "shift of one": ({"shift": {"shift_size": 1}}, {}),
    "padded odd size": ({"pad_odd_sizes": True, "image_size": (27, 22)}, {}),
    "grey, fixed batch": ({"in_chans": 1}, {"batch": 3}),
    "five channels": ({"in_chans": 5}, {}),
    "features, dynamic": ({"features": True}, {"image_size": "dynamic"}),
    "features with norms": ({"features": True, "feature_norms": True}, {}),
    "dynamic, slices": ({}, {"image_size": "dynamic", "shift": "slice"}),
    "circular slices": ({"shift": {"padding": "circular"}}, {"shift": "slice"}),
    "opset 18": ({}, {"opset": 18}),
    "opset 23": ({}, {"opset": 23}),
    "tensorrt with conv": ({}, {"target": "tensorrt", "shift": "conv"}),
    "tensorrt with plugin": ({}, {"shift": "plugin"}),
}


def model_for(changes: dict[str, Any]) -> Any:
    from mlpdeploy.ops.axial_shift import ShiftSpec

    changes = dict(changes)
    if "shift" in changes:
        changes["shift"] = ShiftSpec(**changes["shift"])
    return tiny_asmlp(**changes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_option_exports_and_equals_pytorch(tmp_path: Path, variant: str) -> None:
    changes, options = VARIANTS[variant]
    manifest = export_model(model_for(changes), tmp_path / "out", **options)
    assert manifest.verification["passed"]
    assert manifest == read_manifest(tmp_path / "out")
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"), full_check=True)
    checked = [name for name, file in manifest.verification["files"].items() if file["checks"]]
    assert "model.onnx" in checked
    assert len(checked) == (1 if options.get("shift") == "plugin" else 2)


@pytest.mark.parametrize("opset", [18, 21])  # without and with a Gelu operator
def test_vision_permutator_exports_and_equals_pytorch(tmp_path: Path, opset: int) -> None:
    manifest = export_model(tiny_vip(), tmp_path / "out", opset=opset)
    assert manifest.verification["passed"]


def test_vision_permutator_has_blocks_for_the_cpu(tmp_path: Path) -> None:
    manifest = export_model(tiny_vip(), tmp_path / "out", target=("cpu", "openvino"))
    operators = {
        name: [node.op_type for node in onnx.load(tmp_path / "out" / name, load_external_data=False).graph.node]
        for name in manifest.models
    }
    assert operators["model.cpu.onnx"].count("PermutatorBlock") == 2
    assert "LayerNormalization" in operators["model.openvino.onnx"]
    assert "PermutatorBlock" not in operators["model.openvino.onnx"] + operators["model.onnx"]
    (report,) = [report for report in manifest.passes if report["name"] == "form_permutator_blocks"]
    assert (report["target"], report["changed"], report["refused"]) == ("cpu", 2, {})


def test_the_same_request_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_model(tiny_asmlp(), tmp_path / name, verify=False)
    for file in ("model.onnx", "model.cpu.onnx", "manifest.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_the_canonical_file_has_our_nodes_and_the_checkpoints_names(exported: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    ours = [node for node in model.graph.node if node.domain == "mlpdeploy"]
    assert {node.op_type for node in ours} == {"AxialShift", "GroupNorm1"}
    shift = next(node for node in ours if node.op_type == "AxialShift")
    values = {a.name: onnx.helper.get_attribute_value(a) for a in shift.attribute}
    assert values == {
        "shift_size": 5,
        "dilation": 1,
        "padding": b"zero",
        "channels": 21,
        "plugin_version": b"1",
        "plugin_namespace": b"mlpdeploy",
    }
    assert sorted(function.name for function in model.functions) == ["AxialShift", "GroupNorm1"]
    state = tiny_asmlp().state_dict()
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, tensor in state.items():
        np.testing.assert_array_equal(weights[name], tensor.numpy())


def test_no_path_of_the_exporting_machine_is_in_the_files(exported: Path) -> None:
    here = str(Path(mlpdeploy.__file__).parent.parent).encode()
    for file in exported.iterdir():
        assert here not in file.read_bytes(), file.name


def test_an_export_without_a_checkpoint_has_the_weights_of_create_model(tmp_path: Path) -> None:
    from mlpdeploy.runtime.torch import canonical_weights

    manifest = export_model("asmlp_digits", tmp_path / "out", verify=False)
    assert manifest.model["source"] == "random weights, seed 0"
    assert manifest.model["random_weights"]
    weights = canonical_weights(tmp_path / "out" / "model.onnx")
    for name, tensor in mlpdeploy.create_model("asmlp_digits").state_dict().items():
        np.testing.assert_array_equal(weights[name], tensor.numpy())


def test_the_plugin_form_keeps_the_node_and_drops_the_function(tmp_path: Path) -> None:
    export_model(tiny_asmlp(), tmp_path / "out", shift="plugin", verify=False)
    model = onnx.load(tmp_path / "out" / "model.tensorrt.onnx")
    assert [node.op_type for node in model.graph.node if node.domain] == ["AxialShift"] * 2
    assert not model.functions
    assert "GroupNormalization" not in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"opset": 12}, "opset 12"),
        ({"shift": "roll"}, "shift lowering 'roll'"),
        ({"shift": "plugin", "target": "cpu"}, "plugin for the target cpu"),
        ({"target": "tensortr"}, "did you mean tensorrt"),
        ({"batch": 0}, "batch is 0"),
        ({"labels": ["cat"]}, "1 labels for 7 classes"),
        ({"image_size": 64}, "image size"),
        ({"checkpoint": "x.pth"}, "checkpoint together with a model"),
    ],
)
def test_impossible_requests_leave_nothing_behind(tmp_path: Path, options: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        export_model(tiny_asmlp(), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_vision_permutator_has_one_size(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="grid"):
        export_model(tiny_vip(), tmp_path / "out", image_size="dynamic")


def test_a_vision_permutator_has_no_shift(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no axial shift"):
        export_model(tiny_vip(), tmp_path / "out", shift="slice")
    manifest = export_model(tiny_vip(), tmp_path / "out", target="tensorrt")
    assert {entry.shift for entry in manifest.files.values()} == {""}
    assert manifest.verification["files"]["model.tensorrt.onnx"]["checks"]


@pytest.mark.parametrize(
    ("opset", "features", "size"),
    [
        (21, False, None),
        (18, False, "dynamic"),
        (21, True, "dynamic"),
        (21, False, (21, 35)),
        (18, True, (21, 35)),
    ],
    ids=str,
)
def test_cyclemlp_exports_and_equals_pytorch(tmp_path: Path, opset: int, features: bool, size: Any) -> None:
    model = tiny_cyclemlp(features=features, image_size=size if isinstance(size, tuple) else (32, 40))
    manifest = export_model(model, tmp_path / "out", image_size=size, opset=opset, target=("cpu", "openvino"))
    assert manifest.verification["passed"]
    assert manifest.model["family"] == "cyclemlp"
    assert [spec.name for spec in manifest.outputs] == (["stage0", "stage1"] if features else ["logits"])
    if size == "dynamic":
        assert manifest.inputs[0].shape[2:] == ("8*height", "8*width")


def test_dynamic_sizes_exclude_padding(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="dynamic image size together with padding"):
        export_model(tiny_asmlp(pad_odd_sizes=True), tmp_path / "out", image_size="dynamic")


def test_dynamic_sizes_of_a_model_for_another_size_are_refused(tmp_path: Path) -> None:
    model = tiny_cyclemlp(image_size=(28, 32))
    with pytest.raises(UsageError, match="made for 28x32; wanted one that is made for multiples of 8"):
        export_model(model, tmp_path / "x", image_size="dynamic")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("tiny", [tiny_asmlp, tiny_vip, tiny_cyclemlp])
def test_weights_that_are_equal_stay_apart(tmp_path: Path, tiny: Callable[[], Any]) -> None:
    """As in a model that was not trained yet: the exporter would make one of them."""
    model = tiny()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim < 2 or name == "head.weight":
                tensor.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    manifest = export_model(model, tmp_path / "out")
    assert manifest.verification["passed"]
    weights = canonical_weights(tmp_path / "out" / "model.onnx")
    assert all(torch.equal(torch.from_numpy(weights[name]), tensor) for name, tensor in model.state_dict().items())


def test_a_weight_in_two_places_and_another_operator_are_exported(tmp_path: Path) -> None:
    model = use_operator(tiny_asmlp())
    block = model.layers[0].blocks[0]
    block.norm2.weight = block.norm1.weight
    assert export_model(model, tmp_path / "out").verification["passed"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torch_default_type_changes_nothing(tmp_path: Path, dtype: torch.dtype) -> None:
    export_model(tiny_asmlp(), tmp_path / "one", verify=False)
    torch.set_default_dtype(dtype)
    try:
        assert export_model(tiny_asmlp(), tmp_path / "two").verification["passed"]
    finally:
        torch.set_default_dtype(torch.float32)
    for name in ("model.onnx", "model.cpu.onnx", "model.cpu.weights"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_model_that_was_changed_is_refused(tmp_path: Path) -> None:
    replaced = tiny_asmlp(num_classes=1000)
    replaced.head = torch.nn.Linear(42, 5)
    for model, text in (
        (replaced, r"changed after it was made \(head\.weight\).*pass num_classes"),
        (tiny_asmlp().half(), "torch.float16 on cpu; wanted float32"),
        (tiny_asmlp().to("meta"), "torch.float32 on meta"),
    ):
        with pytest.raises(UsageError, match=text):
            export_model(model, tmp_path / "out", verify=False)
    assert list(tmp_path.iterdir()) == []


def test_open_sizes_of_outputs_are_named_as_the_inputs(tmp_path: Path) -> None:
    manifest = export_model(tiny_asmlp(features=True), tmp_path / "out", image_size="dynamic", verify=False)
    assert manifest.inputs[0].shape == ("batch", 3, "8*height", "8*width")
    sizes = [("batch", 21, "2*height", "2*width"), ("batch", 42, "height", "width")]
    assert [spec.shape for spec in manifest.outputs] == sizes
    for name in manifest.models:
        outputs = onnx.load(tmp_path / "out" / name, load_external_data=False).graph.output
        found = [tuple(d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim) for o in outputs]
        assert found == sizes


def test_a_byte_order_mark_is_no_part_of_a_label(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n", encoding="utf-8-sig")
    (tmp_path / "labels.json").write_text('["cat", "dog"]', encoding="utf-8-sig")
    assert read_labels(tmp_path / "labels.txt") == read_labels(tmp_path / "labels.json") == ["cat", "dog"]


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    model = tiny_asmlp()
    with torch.no_grad():
        model.head.weight[0, 0] = float("inf")
    with pytest.raises(UsageError, match=r"head\.weight has NaN or infinite"):
        export_model(model, tmp_path / "out")


def test_a_wrong_export_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed a fault in a pass: the convolution shifts the wrong way. Our own kernels do not compute by that weight."""
    from mlpdeploy.export.passes import form_axial_shift_blocks as module

    original = module.one_hot_kernel

    def mirrored(model: Any, spec: Any, channels: int, axis: str, dtype: Any) -> Any:
        weight = original(model, spec, channels, axis, dtype).const_value.numpy()
        return module.constant(model, f"flipped_{axis}_{channels}", weight[:, :, ::-1, ::-1])

    monkeypatch.setattr(module, "one_hot_kernel", mirrored)
    where = r"first node that diverges is layers\.0\.blocks\.0/"
    with pytest.raises(MlpDeployError, match=rf"values of logits, batch \d, 32x32.*{where}"):
        export_model(tiny_asmlp(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_config_round_trip(exported: Path) -> None:
    from mlpdeploy.models.build import config_from_dict

    model = read_manifest(exported).model
    config = config_from_dict(model["family"], model["config"])
    assert dataclasses.asdict(config) == dataclasses.asdict(tiny_asmlp().config)
