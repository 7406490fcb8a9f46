"""A stand-in for `tensorrt.plugin`: plugins described in Python, of which the engine carries the code.

It has the names that the package uses, and enforces what the real module enforces of signatures and of what the
functions return. tests/runtime/test_tensorrt_api.py compares the names with the real ones, and
tests/engines/test_embedded.py runs the same functions in the real module. Symbols here are numbers: a network is
compiled for the shapes of every profile.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
from fakes.fake_cuda import require
from fakes.trt.engine import runnable

from mlpdeploy.plugins.ptx import Ptx

FIXED = ("FLOAT", "HALF", "BF16", "INT8")


class ShapeExpr:
    """A number that may be combined as the real symbols: from the left only, with numbers and symbols."""

    def __init__(self, value: Any) -> None:
        self._value = value._value if isinstance(value, ShapeExpr) else value
        require(isinstance(self._value, int), "a symbol of something else than a number")

    def _with(self, other: Any, operation: Callable[[int, int], int]) -> ShapeExpr:
        return ShapeExpr(operation(self._value, ShapeExpr(other)._value))

    def __mul__(self, other: Any) -> ShapeExpr:
        return self._with(other, lambda a, b: a * b)


class SymInt32(ShapeExpr):
    pass


class SymIntExprs:
    def __init__(self, length: int) -> None:
        self._values: list[Any] = [None] * length

    def __setitem__(self, index: int, value: Any) -> None:
        self._values[index] = value


class KernelLaunchParams:
    def __init__(self) -> None:
        self.__dict__.update(grid_x=SymInt32(1), block_x=SymInt32(1))

    def __setattr__(self, name: str, value: Any) -> None:
        require(name in ("grid_x", "block_x"), f"KernelLaunchParams has no {name}")
        self.__dict__[name] = SymInt32(value)


class TensorDesc:
    """What a function sees of a tensor; its shape only where the real one shows it."""

    def __init__(self, dtype: Any, shapes: tuple[tuple[int, ...], ...], form: Any = None) -> None:
        low, middle, high = shapes
        self._dtype, self._format = dtype, form
        self._shape_expr = [ShapeExpr(size) for size in middle]
        dynamic = low != high
        shape = tuple(-1 if a != b else a for a, b in zip(low, high, strict=True))
        bounds = {"min": low, "max": high} if dynamic else {}
        self._shape = type("Shape", (tuple,), {"is_dynamic": dynamic, **bounds})(shape)

    dtype = property(lambda self: self._dtype)
    format = property(lambda self: self._format)
    shape = property(lambda self: self._shape)
    shape_expr = property(lambda self: self._shape_expr)

    def like(self) -> TensorDesc:
        return self


class AutoTuneCombination:
    def __init__(self, io_types: str, layouts: str) -> None:
        self._types = [part.strip() for part in io_types.split(",")]
        self._layouts = [part.strip() for part in layouts.split(",")]


@dataclass
class Quick:
    """One registered plugin: its three functions, checked as the real module checks them."""

    trt: Any
    attributes: dict[str, type]
    forms: Callable[..., Any] | None = None
    kernel: Callable[..., Any] | None = None

    def compiled(self, model: Any, types: dict[str, str], profiles: list[Any]) -> list[dict[str, Any]]:
        """Return what the engine carries for each node of ours: name, code and arguments for every profile."""
        require(self.forms and self.kernel, "a plugin without its functions")
        code = []
        for node in (node for node in model.graph.node if node.domain):
            given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            values = [given[name].decode() if kind is str else given[name] for name, kind in self.attributes.items()]
            for shapes in _shapes(model, node, profiles):
                dtype = self.trt.DataType[types[node.input[0]]]
                x = TensorDesc(dtype, shapes)
                (choice,) = self.forms(x, (x, x))  # type: ignore[misc]
                for layout in choice._layouts[0].split("|"):
                    x = TensorDesc(dtype, shapes, self.trt.TensorFormat[layout])
                    code.append(_checked(*self.kernel(x, *values, (x, x), 0)))  # type: ignore[misc]
        return code


def _shapes(model: Any, node: Any, profiles: Iterable[Any]) -> list[tuple[tuple[int, ...], ...]]:
    """Return (min, opt, max) of a node's input for each profile: N from the profile, the rest from the model."""
    inferred = onnx.shape_inference.infer_shapes(runnable(model), data_prop=True)
    known = {v.name: v for v in (*inferred.graph.value_info, *inferred.graph.input)}
    dims = [dim.dim_value for dim in known[node.input[0]].type.tensor_type.shape.dim]
    found = []
    for profile in profiles:
        batches = [shape[0] for shape in next(iter(profile._shapes.values()))]
        found.append(tuple((rows, *dims[1:]) for rows in batches))
    return found or [(tuple(dims),) * 3]


def _checked(name: Any, ptx: Any, launch: Any, arguments: Any) -> dict[str, Any]:
    """Return what goes into the plan, after comparing the arguments with what the code itself declares."""
    require(isinstance(name, str) and isinstance(ptx, str), "a kernel's name and its PTX are texts")
    require(isinstance(launch, KernelLaunchParams) and isinstance(arguments, SymIntExprs), "what aot_impl returns")
    entry = re.search(rf"\.visible \.entry {re.escape(name)}\((.*?)\)", ptx, re.DOTALL)
    require(entry, f"the PTX has no kernel {name}")
    declared = re.findall(r"\.param \.(\w+)", entry.group(1))  # type: ignore[union-attr]
    require(all(isinstance(value, SymInt32) for value in arguments._values), "arguments are SymInt32")
    require(declared == ["u64", *["u32"] * len(arguments._values), "u64", "u64"], f"arguments of {name}: {declared}")
    grid, block = launch.grid_x._value, launch.block_x._value
    total = arguments._values[0]._value
    require(grid * block * 16 // int(name[-1]) >= total, "threads for every element")
    return {"kernel": name, "grid": grid, "block": block, "arguments": [value._value for value in arguments._values]}


def make_quick_plugins(trt: Any) -> ModuleType:
    """Return a fake of `tensorrt.plugin` for one fake of `tensorrt`; it registers into that one's registry."""
    module = ModuleType("tensorrt.plugin")
    registry = trt.get_plugin_registry()

    def register(plugin_id: str) -> Callable[..., Any]:
        require(plugin_id == "mlpdeploy::AxialShift", "namespace::name, as the nodes say")
        require(registry._quick is None, "a plugin that is registered twice")

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            (first, *rest), result = _signature(function)
            require(first == ("x", TensorDesc), "tensors first, with their type")
            require(all(kind in (int, str) for _, kind in rest), "attributes with their types")
            require(result == (TensorDesc, TensorDesc), "a tuple of descriptions")
            registry._quick = Quick(trt, dict(rest))
            return function

        return decorate

    def autotune(plugin_id: str) -> Callable[..., Any]:
        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            arguments, result = _signature(function)
            require([name for name, _ in arguments] == ["x", "outputs"] and result == (AutoTuneCombination,), "forms")
            registry._quick.forms = function
            return function

        return decorate

    def aot_impl(plugin_id: str) -> Callable[..., Any]:
        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            arguments, result = _signature(function)
            wanted = ["x", *registry._quick.attributes, "outputs", "tactic"]
            require([name for name, _ in arguments] == wanted, "all attributes in their order")
            require(result == (str, str, KernelLaunchParams, SymExprs), "name, code, launch, arguments")
            registry._quick.kernel = function
            return function

        return decorate

    public = SimpleNamespace(
        register=register, autotune=autotune, aot_impl=aot_impl, TensorDesc=TensorDesc, ShapeExpr=ShapeExpr,
        SymInt32=SymInt32, SymIntExprs=SymIntExprs, SymExprs=SymExprs, KernelLaunchParams=KernelLaunchParams,
        AutoTuneCombination=AutoTuneCombination, cdiv=cdiv,
    )  # fmt: skip
    for name, value in vars(public).items():
        setattr(module, name, value)
    return module


class SymExprs:
    pass


def cdiv(first: Any, second: Any) -> ShapeExpr:
    require(isinstance(first, ShapeExpr) or isinstance(second, ShapeExpr), "both arguments cannot be ints")
    return ShapeExpr(first)._with(second, lambda a, b: -(-a // b))


def _signature(function: Callable[..., Any]) -> tuple[list[tuple[str, Any]], tuple[Any, ...]]:
    """Return [(argument, its type)] and the types in the returned tuple or list."""
    signature = inspect.signature(function)
    arguments = [(name, parameter.annotation) for name, parameter in signature.parameters.items()]
    require(typing.get_origin(signature.return_annotation) in (tuple, list), "an annotation of what is returned")
    return arguments, typing.get_args(signature.return_annotation)


def fake_ptx(folder: Path) -> Ptx:
    """Return a stand-in for the compiled kernel: the declarations alone."""
    for element_bytes in (1, 2, 4):
        words = ["u64", *["u32"] * 13, "u64", "u64"]
        text = ",\n".join(f".param .{kind} p{index}" for index, kind in enumerate(words))
        name = f"mlpdeploy_axial_shift_{element_bytes}"
        (folder / f"axial_shift_{element_bytes}.ptx").write_text(f".visible .entry {name}(\n{text}\n) {{ ret; }}")
    return Ptx(folder, "0" * 64, "13.0")
