"""Run in a process with one version's real bindings: its own plugin class asks our functions, as TensorRT asks it.

The symbols are the bindings' own too; what TensorRT would work out from them is worked out here, in `Builder`.
Reads {ptx, eager, cases} from stdin and prints {fields, cases: [{forms, kernel, ...} or {error}]}.
With `old_numpy` attributes are read as numpy before 2.4 let TensorRT 10 read them.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mlpdeploy.engines.embedded import register_embedded
from mlpdeploy.errors import MlpDeployError
from mlpdeploy.runtime.tensorrt_api import load_tensorrt

request = json.load(sys.stdin)
api = load_tensorrt("tensorrt")
trt, trtp = api.module, api.plugin_module()
internals = sys.modules["tensorrt_bindings.plugin"]


class Number(trt.IDimensionExpr):  # type: ignore[misc, name-defined]
    """A dimension that is a number; pybind11's part of it is never made, and never looked at."""

    def is_constant(self) -> bool:
        return True

    def get_constant_value(self) -> int:
        return int(self.value)


def number(value: int) -> Number:
    made = Number.__new__(Number)
    made.value = value
    return made


class Builder:
    """What IExprBuilder does, at once."""

    def constant(self, value: int) -> Number:
        return number(value)

    def operation(self, operation: Any, first: Number, second: Number) -> Number:
        a, b, kinds = first.value, second.value, trt.DimensionOperation
        if operation == kinds.CEIL_DIV:
            return number(-(-a // b))
        return number({kinds.PROD: a * b, kinds.SUM: a + b}[operation])


def descriptions(case: dict[str, Any]) -> list[Any]:
    """Return DynamicPluginTensorDesc of x and both outputs."""
    found = []
    for _ in range(3):
        desc, dynamic = trt.PluginTensorDesc(), trt.DynamicPluginTensorDesc()
        desc.dims, desc.type, desc.scale = trt.Dims(case["shape"]), trt.DataType.__members__[case["dtype"]], 1.0
        desc.format = trt.TensorFormat.__members__[case["format"]]
        dynamic.desc = desc
        dynamic.min, dynamic.max, dynamic.opt = (trt.Dims(case[key]) for key in ("min", "max", "opt"))
        found.append(dynamic)
    return found


def creator() -> Any:
    """Return what the parser finds for our nodes, from the real registry where it is there."""
    if request["eager"]:
        return trt.get_plugin_registry().get_creator("AxialShift", "1", "mlpdeploy")
    known = internals._lib.QDP_REGISTRY[PLUGIN].input_attrs
    attributes = {name: (True, str if kind is str else int) for name, kind in known.items()}
    return internals._lib._TemplatePluginCreator("AxialShift", "mlpdeploy", attributes)


def answer(case: dict[str, Any]) -> dict[str, Any]:
    fields = []
    for name, value in case["attributes"].items():
        text = isinstance(value, str)
        data = value.encode() if text else np.array([value])
        kind = trt.PluginFieldType.CHAR if text else trt.PluginFieldType.INT64
        fields.append(trt.PluginField(name, data, kind))
    plugin = made.create_plugin(
        "AxialShift", "mlpdeploy", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.PREFER_AOT,
    )  # fmt: skip
    tensors, builder = descriptions(case), Builder()
    kind = tensors[0].desc.type
    types = plugin.get_output_data_types([kind], [4])
    plugin.get_output_shapes([[number(size) for size in case["opt"]]], [], builder)
    forms = plugin.get_supported_format_combinations(tensors, 1)
    plugin.configure_plugin(tensors[:1], tensors[1:])
    tactics = plugin.get_valid_tactics()
    plugin.set_tactic(0)
    launch, arguments = SimpleNamespace(), Setter()
    plugin.get_launch_params(None, tensors, 1, launch, arguments, builder)
    name, ptx = plugin.get_kernel([tensors[0].desc], [tensor.desc for tensor in tensors[1:]])
    return {
        "types": [kind.name for kind in types],
        "forms": [[form.type.name, form.format.name] for form in forms],
        "tactics": tactics,
        "kernel": name,
        "ptx_bytes": len(ptx),
        "launch": vars(launch),
        "arguments": [arguments.values[index] for index in range(arguments.nbSymExprs)],
    }


class Setter:
    """What ISymExprs is to the bindings' class."""

    def __init__(self) -> None:
        self.values: dict[int, int] = {}
        self.nbSymExprs = 0

    def __setitem__(self, index: int, value: int) -> None:
        self.values[index] = value


PLUGIN = "mlpdeploy::AxialShift"
real_expression = internals._tensor.SymExprImpl


def expression(symbol: Any) -> int:
    """Make what is handed to TensorRT, and return what it stands for."""
    real_expression(symbol)
    return int(symbol._expr.value)


class First(int):
    """An int of an array of one, as numpy before 2.4 gave it."""

    def __new__(cls, value: Any) -> First:
        return super().__new__(cls, np.asarray(value).reshape(()))


internals._tensor.SymExprImpl = expression
if not request["eager"]:  # without a registry that works
    trtp.register = functools.partial(trtp.register, lazy_register=True)
problems = register_embedded(api, Path(request["ptx"]))
if request["old_numpy"]:
    known = internals._lib.QDP_REGISTRY[PLUGIN].input_attrs
    known.update({name: First for name, kind in known.items() if kind is int})
made = creator()
answers = []
for case in request["cases"]:
    try:
        answers.append(answer(case))
    except TypeError as error:
        answers.append({"error": str(error), "told": False})
    except MlpDeployError as error:
        answers.append({"error": str(error), "told": problems[-1] is error})
fields = [[field.name, field.type.name] for field in made.field_names]
sys.stdout.write("\n" + json.dumps({"fields": fields, "cases": answers}) + "\n")
