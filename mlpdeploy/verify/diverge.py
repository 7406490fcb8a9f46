"""Where a wrong model goes wrong: the first node whose result is not that of the torch module it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.env import require
from mlpdeploy.verify.tolerance import spread

# An error like this, relative to the spread of the value, is no rounding any more: far above a precision's usual ones.
SUSPICIOUS = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 4e-1, "int8": 1.0}

# Operators that stand for a whole torch module.
BLOCKS = tuple(
    f"{block}Block{form}" for block in ("AxialShift", "Permutator", "Cycle") for form in ("", "Bf16", "Int8")
)
# Operators on (N, H, W, C) that stand for torch modules on (N, C, H, W).
ON_ROWS = tuple(
    f"{name}{form}" for name in ("AxialShiftBlock", "Downsample", "PatchMerging") for form in ("Bf16", "Int8")
)


def first_divergence(path: Path, model: Any, image: np.ndarray, precision: str = "fp32") -> str | None:
    """Return a sentence about the first node of an ONNX file that diverges from the torch module, or None.

    Nodes are compared where they are the last of a torch module, or a whole block, and keep its value: names are
    `<module>/<operator>:0`. Values that a pass has changed (a norm without its affine part) have no such name.

    Args:
        model: the torch module, float32, in eval mode.
        image: (1, C, H, W) float32.
        precision: of the file, a key of `SUSPICIOUS`.
    """
    computed, order, blocks = _node_outputs(path, image)
    wanted = _module_outputs(model, image, blocks)
    last_good = "the input"
    for name in order:
        module = name.rpartition("/")[0]
        if module not in wanted or computed[name].shape != wanted[module].shape:
            continue
        error = float(np.abs(computed[name] - wanted[module]).max()) / spread(wanted[module])
        if not error <= SUSPICIOUS[precision]:
            node = name.rpartition(":")[0]
            return f"the first node that diverges is {node} (relative error {error:.1e}); {last_good} is right"
        last_good = name.rpartition(":")[0]
    return None


def _module_outputs(model: Any, image: np.ndarray, blocks: set[str]) -> dict[str, np.ndarray]:
    """Return {module name: its output} of every leaf module and of `blocks`, for one forward pass in float64."""
    import copy

    import torch

    found: dict[str, np.ndarray] = {}
    model = copy.deepcopy(model).double()

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            found[name] = output.numpy()

        return hook

    for name, module in model.named_modules():
        if name and (name in blocks or not list(module.children())):
            module.register_forward_hook(keep(name))
    with torch.inference_mode():
        model(torch.from_numpy(image).double())
    return found


def _node_outputs(path: Path, image: np.ndarray) -> tuple[dict[str, np.ndarray], list[str], set[str]]:
    """Return {value name: array} of an ONNX file's nodes, the names in the order of execution, and modules of blocks.

    A whole block may be one node: then its module is compared, and nothing inside of it.
    """
    import onnx

    ort = require("onnxruntime")
    model = onnx.load(path)
    graph = model.graph
    last: dict[str, str] = {}
    for node in graph.node:
        for output in node.output:
            if output.endswith(":0"):
                last[output.rpartition("/")[0]] = output
    order = [output for node in graph.node for output in node.output if output in last.values()]
    blocks = {node.output[0].rpartition("/")[0] for node in graph.node if node.op_type in BLOCKS}
    on_rows = {node.output[0] for node in graph.node if node.op_type in ON_ROWS}
    del graph.output[:]
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in order)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    results = session.run(order, {given.name: image.astype(np.float16 if "16" in given.type else np.float32)})
    computed = {name: result.astype(np.float64) for name, result in zip(order, results, strict=True)}
    computed |= {name: computed[name].transpose(0, 3, 1, 2) for name in on_rows & computed.keys()}
    return computed, order, blocks
