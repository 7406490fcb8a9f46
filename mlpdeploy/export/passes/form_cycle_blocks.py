"""Every block of CycleMLP as one `mlpdeploy::CycleBlock`, see `mixer_blocks`."""

from __future__ import annotations

import onnx_ir as ir

from mlpdeploy.export.passes.mixer_blocks import BlockKind, form_mixer_blocks
from mlpdeploy.export.passes.rewrite import PassReport
from mlpdeploy.ops import cycle_mlp
from mlpdeploy.ops.cycle_block import BRANCHES, NAME, cycle_block_function


def form_cycle_blocks(model: ir.Model) -> PassReport:
    """Form every block of the model that is the published one; exact."""
    kind = BlockKind(cycle_mlp.NAME, NAME, BRANCHES, _attributes, cycle_block_function)
    return form_mixer_blocks(model, kind, "form_cycle_blocks")


def _attributes(mixer: ir.Node, epsilon: float) -> dict[str, object]:
    return {"channels": mixer.attributes.get_int("channels", 0), "epsilon": epsilon}
