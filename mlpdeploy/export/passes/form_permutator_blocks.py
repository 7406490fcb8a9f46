"""Every block of Vision Permutator as one `mlpdeploy::PermutatorBlock`, see `mixer_blocks`."""

from __future__ import annotations

import onnx_ir as ir

from mlpdeploy.export.passes.lower_permute_mlp import moves_segments
from mlpdeploy.export.passes.matching import NoMatchError
from mlpdeploy.export.passes.mixer_blocks import BlockKind, form_mixer_blocks
from mlpdeploy.export.passes.rewrite import PassReport
from mlpdeploy.ops import permute_mlp
from mlpdeploy.ops.permutator_block import BRANCHES, NAME, permutator_block_function, width_attributes

_SIZES = ("segments", "height", "width", "channels")


def form_permutator_blocks(model: ir.Model) -> PassReport:
    """Form every block of the model that is the published one; exact."""
    kind = BlockKind(permute_mlp.NAME, NAME, BRANCHES, _attributes, permutator_block_function)
    return form_mixer_blocks(model, kind, "form_permutator_blocks")


def _attributes(mixer: ir.Node, epsilon: float) -> dict[str, object]:
    sizes = {name: mixer.attributes.get_int(name, 0) for name in _SIZES}
    if not sizes["segments"] == sizes["height"] == sizes["width"]:
        raise NoMatchError("its grid has not as many rows and columns as it has segments")
    wide = moves_segments(sizes["channels"] // sizes["segments"], sizes["height"])
    return {**sizes, "epsilon": epsilon, **width_attributes(wide)}
