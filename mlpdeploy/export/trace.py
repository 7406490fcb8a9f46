"""From a torch module to canonical ONNX: `mlpdeploy::` nodes backed by functions, weights under their own names."""

from __future__ import annotations

import ast
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import torch

from mlpdeploy.env import package_version
from mlpdeploy.errors import UsageError
from mlpdeploy.manifest import TRANSPOSED
from mlpdeploy.models.asmlp import AsMlpConfig
from mlpdeploy.models.build import Model, model_from_config
from mlpdeploy.models.vip import VipConfig, one_grid_error
from mlpdeploy.ops import axial_shift, cycle_mlp, group_norm, permute_mlp
from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.tracing import canonical_tracing

DEFAULT_OPSET = 21
OPSETS = range(18, 24)
INPUT_NAME = "input"
_SIZE_AXES = ("", "", "height", "width")  # of planes (N, C, H, W)
_EXPORTERS_SYMBOL = re.compile(r"\bs\d+\b")


@dataclass(frozen=True)
class ExportShape:
    """Which axes stay open.

    Attributes:
        batch: rows, or None for any number.
        dynamic_size: whether height and width stay open, as multiples of the model's `size_divisor`.
    """

    batch: int | None = None
    dynamic_size: bool = False


def onnx_from_model(model: Model, shape: ExportShape, opset: int = DEFAULT_OPSET) -> ir.Model:
    """Return the canonical ONNX model of a model in eval mode.

    Raises:
        UsageError: an opset that is not supported, or dynamic sizes of a model with a fixed grid.
    """
    if opset not in OPSETS:
        raise UsageError(f"opset {opset}", f"{OPSETS.start} to {OPSETS.stop - 1}", f"leave it out for {DEFAULT_OPSET}")
    config = model.config
    if isinstance(config, AsMlpConfig) and config.shift.padding == "circular" and opset < axial_shift.WRAP_OPSET:
        raise UsageError(f"circular padding at opset {opset}", f"opset {axial_shift.WRAP_OPSET} or newer")
    height, width = config.image_size
    batch = shape.batch or 2
    axes: dict[int, object] = {}
    if shape.batch is None:
        axes[0] = torch.export.Dim("batch", min=1)
    if shape.dynamic_size:
        divisor = _dynamic_divisor(model)
        axes |= {axis: divisor * torch.export.Dim(name, min=1) for axis, name in enumerate(_SIZE_AXES) if name}
        height, width = max(height, 2 * divisor), max(width, 2 * divisor)
    output_names = output_names_of(model)
    with canonical_tracing(), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _with_distinct_weights(model),
            (torch.zeros(batch, config.in_chans, height, width, dtype=torch.float32),),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=(axes,) if axes else None,
            input_names=[INPUT_NAME],
            output_names=output_names,
            verbose=False,
        )
    assert program is not None
    exported = program.model
    _rename(exported)
    if shape.dynamic_size:
        _name_sizes(exported)
    _put_weights(exported, model)
    _strip_metadata(exported)
    _attach_functions(exported, config, opset)
    exported.producer_name, exported.producer_version = "mlpdeploy", package_version()
    return exported


def output_names_of(model: Model) -> list[str]:
    """Return the names of the outputs: `logits`, or `stage0`, `stage1`, ... for feature maps."""
    if getattr(model.config, "features", False):
        return [f"stage{index}" for index in range(len(model.config.depths))]
    return ["logits"]


def _dynamic_divisor(model: Model) -> int:
    config = model.config
    if isinstance(config, VipConfig):
        raise one_grid_error(config, "dynamic")
    if isinstance(config, AsMlpConfig) and config.pad_odd_sizes:
        raise UsageError(
            "a dynamic image size together with padding of odd sizes",
            "one of them",
            f"dynamic takes every multiple of {config.size_divisor}: pad the images to it before the model",
        )
    height, width = config.image_size
    if height % config.size_divisor or width % config.size_divisor:
        raise UsageError(
            f"a dynamic image size of a model that is made for {height}x{width}",
            f"one that is made for multiples of {config.size_divisor}",
            "pass such an image_size to create_model; verification and preprocessing take it",
        )
    return config.size_divisor


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about optional packages from the user's terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def _with_distinct_weights(model: Model) -> Model:
    """Return such a model to trace: the exporter makes one of weights that are equal, as those of a new model are."""
    traced = model_from_config(model.config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in traced.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return traced.eval()


def _put_weights(exported: ir.Model, model: Model) -> None:
    """Give every weight its value, under its own name or, transposed, under that of a linear layer's constant."""
    initializers = exported.graph.initializers
    for name, tensor in model.state_dict().items():
        values = tensor.detach().numpy()
        value = initializers.get(name)
        if value is None:
            value, values = initializers[name + TRANSPOSED], np.ascontiguousarray(values.T)
        value.const_value = ir.tensor(values, name=value.name)


def _rename(model: ir.Model) -> None:
    """Name every node after the module it comes from (`layers.0.blocks.0.mlp.fc1/Conv`) and its values after it."""
    seen: Counter[str] = Counter()
    fixed = {*model.graph.inputs, *model.graph.outputs}
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['', '']"))
        scope = scopes[-2] if len(scopes) > 1 else ""
        base = f"{scope}/{node.op_type}" if scope else node.op_type
        seen[base] += 1
        node.name = base if seen[base] == 1 else f"{base}_{seen[base]}"
        for index, output in enumerate(node.outputs):
            if output not in fixed:
                output.name = f"{node.name}:{index}"
    _rename_constants(model)


def _rename_constants(model: ir.Model) -> None:
    """Name a linear layer's transposed weight after the layer (`head.weight.T`), and number the other constants."""
    made = 0
    for name, value in list(model.graph.initializers.items()):
        if not name.startswith("val_"):
            continue
        user = next(iter(value.uses())).node
        del model.graph.initializers[name]
        if user.op_type == "MatMul" and value.shape is not None and len(value.shape) == 2:
            value.name = f"{str(user.name).rpartition('/')[0]}.weight{TRANSPOSED}"
        else:
            value.name = f"constant_{made}"
            made += 1
        model.graph.register_initializer(value)


def _name_sizes(model: ir.Model) -> None:
    """Call the open sizes of all values as the input's are called: `2*height`, and not `2*s89`.

    The stem's output has them as planes (N, C, H, W): from there the exporter's symbols are known, wherever they stand.
    """
    stem = next(iter(model.graph.inputs[0].uses())).node.outputs[0]
    assert stem.shape is not None
    names = {
        symbol: name
        for size, name in zip(stem.shape, _SIZE_AXES, strict=True)
        if name
        for symbol in _EXPORTERS_SYMBOL.findall(str(size))
    }
    for node in model.graph:
        for value in node.outputs:
            for axis, size in enumerate(value.shape or ()):
                if not isinstance(size, int):
                    assert value.shape is not None
                    value.shape[axis] = _EXPORTERS_SYMBOL.sub(lambda found: names.get(found[0], found[0]), str(size))


def _strip_metadata(model: ir.Model) -> None:
    """Remove stack traces and other notes: they hold paths of the machine that exported."""
    model.metadata_props.clear()
    model.doc_string = None
    graph = model.graph
    graph.name, graph.doc_string = "main", None
    graph.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()


def _attach_functions(model: ir.Model, config: object, opset: int) -> None:
    """Put the bodies of our operators into the model, for whoever does not know them."""
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    protos: list[onnx.FunctionProto] = []
    if axial_shift.NAME in used:
        assert isinstance(config, AsMlpConfig)
        protos.append(axial_shift.axial_shift_function(config.shift.padding, opset))
    if group_norm.NAME in used:
        protos.append(group_norm.group_norm1_function(opset))
    if permute_mlp.NAME in used:
        protos.append(permute_mlp.weighted_permute_mlp_function(opset))
    if cycle_mlp.NAME in used:
        protos.append(cycle_mlp.weighted_cycle_mlp_function(opset))
    for proto in protos:
        function = ir.serde.deserialize_function(proto)
        model.functions[function.identifier()] = function
