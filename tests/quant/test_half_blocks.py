"""bfloat16 inside of blocks: the graph, what it computes with and without kernels, and the artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from tiny import tiny, tiny_asmlp, tiny_cyclemlp

import mlpdeploy
from mlpdeploy.errors import UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.export.lower import TARGETS, lower
from mlpdeploy.export.passes.rewrite import constant
from mlpdeploy.export.trace import ExportShape, onnx_from_model
from mlpdeploy.manifest import read_manifest
from mlpdeploy.models.build import Model
from mlpdeploy.ops.axial_shift_block import BF16_NAME
from mlpdeploy.ops.cycle_block import BF16_NAME as CYCLE
from mlpdeploy.ops.downsample import BF16_NAME as DOWNSAMPLE
from mlpdeploy.ops.downsample import MERGING_BF16_NAME as MERGING
from mlpdeploy.ops.patch_embed import NAME, NORMALIZED_NAME
from mlpdeploy.ops.permutator_block import BF16_NAME as PERMUTATOR
from mlpdeploy.plugins import cpu
from mlpdeploy.quant.block_rows import embed_patches
from mlpdeploy.quant.half_blocks import half_blocks
from mlpdeploy.quant.quantize import quantize_artifact
from mlpdeploy.quant.recipe import Recipe

BF16 = Recipe("bf16")
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((3, 3, 32, 32)).astype(np.float32)


def blocks_of(model: Model, shape: ExportShape | None = None) -> ir.Model:
    graph = onnx_from_model(model, shape or ExportShape())
    lower(graph, TARGETS["cpu"], "conv", blocks=True)
    return graph


def operators(graph: ir.Model) -> list[str]:
    return [node.op_type for node in graph.graph if node.domain or node.op_type == "Transpose"]


def run(graph: ir.Model, images: np.ndarray = IMAGES) -> np.ndarray:
    """Return what ONNX Runtime makes of the functions."""
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images})[0]


def spread_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / wanted.std())


@pytest.mark.parametrize("channels", [32, 21])
def test_blocks_follow_each_other_on_rows(channels: int) -> None:
    """With 21 channels the patch merging is none for the kernel, and stays between two turns of the tensor."""
    model = tiny_asmlp(embed_dim=channels, depths=(2, 1))
    graph = blocks_of(model)
    before = run(graph)
    report = half_blocks(graph, BF16)
    first, *middle = (NORMALIZED_NAME, MERGING) if channels == 32 else ("Transpose", "Transpose", "Transpose")
    assert operators(graph) == [first, BF16_NAME, BF16_NAME, *middle, BF16_NAME, "Transpose"]
    assert len(report.changed) == (4 if channels == 32 else 3)
    assert 0.85 < report.macs_share < 1
    assert report.weights == sum(
        value.const_value.size
        for value in graph.graph.initializers.values()
        if value.const_value is not None and value.dtype == ir.DataType.BFLOAT16
    )
    assert 1e-4 < spread_error(run(graph), before) < 5e-2


def test_the_roundings_are_those_of_the_contract() -> None:
    """Against the module with rounded factors, in float64: what is left is float32's rounding."""
    model = tiny_asmlp(embed_dim=32)
    graph = blocks_of(model)
    half_blocks(graph, BF16)
    assert spread_error(run(graph), rounded(model)(torch.from_numpy(IMAGES).double()).numpy()) < 5e-3
    assert spread_error(run(graph), model.double()(torch.from_numpy(IMAGES).double()).detach().numpy()) > 5e-3


def rounded(model: Model) -> Model:
    """Return the model in float64, whose 1x1 convolutions inside of blocks and mergings round what they multiply."""
    import copy

    def keep(values: torch.Tensor) -> torch.Tensor:
        return values.to(torch.bfloat16).to(values.dtype)

    model = copy.deepcopy(model).double()
    fold(model)
    for name, module in model.named_modules():
        inside = name.startswith("layers.") and isinstance(module, torch.nn.Conv2d)
        if inside:
            module.weight.data = keep(module.weight.data)
            module.register_forward_pre_hook(lambda module, inputs: (keep(inputs[0]),))
    return model.requires_grad_(False)


def fold(model: Model) -> None:
    """Move each norm's scale and bias into the convolution behind it, where the export does."""
    for layer in model.layers:
        pairs = [(block.axial_shift.norm2, block.axial_shift.conv3) for block in layer.blocks]
        pairs += [(block.norm1, block.axial_shift.conv1) for block in layer.blocks]
        pairs += [(block.norm2, block.mlp.fc1) for block in layer.blocks]
        if layer.downsample is not None:
            pairs.append((layer.downsample.norm, layer.downsample.reduction))
        for norm, conv in pairs:
            weight = conv.weight.data
            shift = (weight[:, :, 0, 0] @ norm.bias.data).float().double()
            if conv.bias is None:
                conv.bias = torch.nn.Parameter(shift)
            else:
                conv.bias.data = (conv.bias.data + shift).float().double()
            conv.weight.data = (weight * norm.weight.data.reshape(1, -1, 1, 1)).float().double()
            norm.weight.data.fill_(1)
            norm.bias.data.zero_()


def test_open_sizes() -> None:
    model = tiny_asmlp(embed_dim=32)
    graph = blocks_of(model, ExportShape(None, True))
    before = run(graph, RNG.standard_normal((2, 3, 64, 32)).astype(np.float32))
    half_blocks(graph, BF16)
    assert operators(graph) == [NORMALIZED_NAME, BF16_NAME, MERGING, BF16_NAME, "Transpose"]
    assert run(graph, RNG.standard_normal((2, 3, 64, 32)).astype(np.float32)).shape == before.shape


def test_the_norm_behind_the_first_convolution_is_the_models() -> None:
    graph = blocks_of(tiny_asmlp(embed_dim=32))
    half_blocks(graph, BF16)
    first = next(iter(graph.graph))
    assert first.attributes.get_float("epsilon") == pytest.approx(1e-5)
    assert [value.name for value in first.inputs][1:3] == ["patch_embed.proj.weight", "patch_embed.proj.bias"]


@pytest.mark.parametrize(
    "nodes",
    [
        "planes = Conv <strides = [2, 2], pads = [0, 0, 1, 1]> (X, W, b)",
        """first = Conv (X, W, b)
           flat = Reshape (first, flat_shape)
           normal = InstanceNormalization (flat, one, zero)
           back = Reshape (normal, shape)
           planes = Conv (back, dense, b)""",
    ],
    ids=["padding on two sides", "a dense convolution behind the norm"],
)
def test_other_first_convolutions_are_left(nodes: str) -> None:
    model = ir.from_proto(
        onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[n, 3, 8, 8] X) => (float[n, p, q, 32] Y) {{ {nodes} Y = Transpose <perm = [0, 2, 3, 1]> (planes) }}""")
    )
    arrays = {"W": np.zeros((32, 3, 3, 3)), "b": np.zeros(32), "dense": np.zeros((32, 32, 1, 1))}
    arrays |= {"one": np.ones(1), "zero": np.zeros(1)}
    for name, array in {**arrays, "flat_shape": np.array([0, 1, -1]), "shape": np.array([0, 32, 6, 6])}.items():
        _put_constant(model, name, array if "shape" in name else array.astype(np.float32))
    before = [node.op_type for node in model.graph]
    embed_patches(model)
    assert [node.op_type for node in model.graph] == before


def _put_constant(model: ir.Model, name: str, array: np.ndarray) -> None:
    value = constant(model, name, array)
    for node in model.graph:
        for index, source in enumerate(node.inputs):
            if source is not None and source.name == name and source is not value:
                node.replace_input_with(index, value)


def test_what_is_kept_stays_float32() -> None:
    graph = blocks_of(tiny_asmlp(embed_dim=32, depths=(2, 1)))
    report = half_blocks(graph, Recipe("bf16", keep=("layers.0.blocks.1", "layers.0.downsample")))
    assert operators(graph) == [
        NORMALIZED_NAME,
        BF16_NAME,
        "Transpose",
        "AxialShiftBlock",
        "Transpose",
        BF16_NAME,
        "Transpose",
    ]
    assert set(report.refused.values()) == {"kept in float32 by request"}
    assert len(report.refused) == 2
    run(graph)
    with pytest.raises(UsageError, match=r"no node of the model is 'layers\.0\.block'"):
        half_blocks(blocks_of(tiny_asmlp()), Recipe("bf16", keep=("layers.0.block",)))


@pytest.mark.parametrize(
    ("family", "product"),
    [
        ("asmlp", "layers.0.blocks.0.mlp.fc1"),
        ("vip", "network.0.0.mlp.fc1"),
        ("cyclemlp", "network.0.0.attn/WeightedCycleMlp"),
    ],
)
def test_a_block_of_which_a_product_is_kept_stays_float32(family: str, product: str) -> None:
    report = half_blocks(blocks_of(tiny(family)), Recipe("bf16", keep=(product,)))
    assert len(report.refused) == 1
    assert report.changed


def test_a_recipe_that_keeps_everything_is_refused() -> None:
    with pytest.raises(UsageError, match="keeps every block in float32"):
        half_blocks(blocks_of(tiny_asmlp(embed_dim=32)), Recipe("bf16", keep=("layers",)))


def test_a_feature_map_stays_an_output() -> None:
    graph = blocks_of(tiny_asmlp(embed_dim=32, features=True))
    names = [value.name for value in graph.graph.outputs]
    before = run(graph)
    half_blocks(graph, BF16)
    assert [value.name for value in graph.graph.outputs] == names
    assert spread_error(run(graph), before) < 5e-2


def test_models_without_such_blocks_are_refused() -> None:
    with pytest.raises(UsageError, match="bf16 for the target cpu, of a model without blocks"):
        half_blocks(blocks_of(tiny_asmlp(branches="serial")), BF16)


@pytest.mark.parametrize(("family", "operator"), [("vip", PERMUTATOR), ("cyclemlp", CYCLE)])
def test_models_on_tokens(family: str, operator: str) -> None:
    graph = blocks_of(tiny(family))
    before = run(graph)
    report = half_blocks(graph, BF16)
    assert operators(graph) == [NAME, operator, DOWNSAMPLE, operator]
    assert len(report.changed) == 3
    assert report.macs_share > (0.75 if family == "vip" else 0.5)  # the 7x7 convolution is much of a small CycleMLP
    assert 1e-4 < spread_error(run(graph), before) < 5e-2


@pytest.mark.parametrize(("widths", "keep"), [((20, 44), ()), ((32, 64), ("network.1",))])
def test_what_the_kernels_do_not_take_or_is_kept_stays_a_convolution(
    widths: tuple[int, int], keep: tuple[str, ...]
) -> None:
    graph = blocks_of(tiny_cyclemlp(widths=widths, image_size=(32, 32)))
    report = half_blocks(graph, Recipe("bf16", keep=keep))
    assert operators(graph) == [NAME if keep else "Transpose", CYCLE, "Transpose", "Transpose", CYCLE]
    assert list(report.refused) == (["network.1.proj/Conv"] if keep else [])
    assert len(report.changed) == 2


def test_stages_of_odd_sizes_and_their_maps() -> None:
    """Maps of a backbone are outputs on planes, while the next stage goes on from rows."""
    model = tiny_cyclemlp(features=True, widths=(32, 64), image_size=(20, 36))
    graph = blocks_of(model)
    half_blocks(graph, BF16)
    assert operators(graph) == [NAME, CYCLE, "Transpose", DOWNSAMPLE, CYCLE, "Transpose"]
    images = RNG.standard_normal((2, 3, 20, 36)).astype(np.float32)
    session = ort.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    for found, wanted in zip(session.run(None, {"input": images}), model(torch.from_numpy(images)), strict=True):
        assert found.shape == wanted.shape
        assert spread_error(found, wanted.detach().numpy()) < 5e-2


@pytest.fixture(scope="module", params=["asmlp", "vip", "cyclemlp"])
def in_bf16(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two stages in bf16, verified; do not change it."""
    folder = tmp_path_factory.mktemp("bf16")
    export_model(tiny(request.param), folder / "float32", verify=False)
    quantize_artifact(folder / "float32", folder / "bf16", BF16, targets=("cpu",))
    return folder / "bf16"


def test_the_artifact(in_bf16: Path) -> None:
    manifest = read_manifest(in_bf16)
    assert manifest.precision == "bf16"
    assert manifest.quantization is not None
    assert manifest.quantization["targets"]["cpu"]["name"] == "half_blocks(bf16)"
    checks = manifest.verification["files"]["model.cpu.onnx"]["checks"]
    values = [check for check in checks if check["check"].startswith("values")]
    assert values and all(check["passed"] for check in checks)
    assert all(1e-4 < check["relative_error"] < 5e-2 for check in values)


def test_kernels_compute_what_the_functions_do(
    in_bf16: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = cpu.ensure_cpu_library()
    if library is None or cpu.kernels_of(library, "bf16") is None:
        pytest.skip("no kernels for bfloat16 on this processor")
    with mlpdeploy.load(in_bf16) as session:
        kernels = session.kernels
        assert kernels in cpu.BF16_SETS
        assert session.precision == "bf16"
        fast = session.run({"input": IMAGES})["logits"]
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(cpu.SWITCH_VARIABLE, "0")
    with mlpdeploy.load(in_bf16) as session:
        assert session.kernels == ""
        plain = session.run({"input": IMAGES})["logits"]
    assert "no CPU kernels for bf16 here" in capsys.readouterr().err
    with mlpdeploy.load(in_bf16, role="canonical"):  # has nothing for kernels
        assert capsys.readouterr().err == ""
    error = spread_error(fast, plain)
    assert error < 1e-2
    assert error > 0 or kernels == "avx512round"  # on floats the sums may be those of ONNX Runtime's own operators
