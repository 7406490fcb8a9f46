"""Three branches added by gates: what the mixers of Vision Permutator and CycleMLP end with.

The gates are softmax over the branches of an MLP of their sum's mean over the image; output 3 c + k of its second layer
is branch k's logit for channel c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def gated_sum_ref(branches: tuple[torch.Tensor, ...], gate: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the sum.

    Args:
        branches: three of (N, H, W, C), any float dtype.
        gate: weight and bias of the first layer and of the second one, weights (out, in).
    """
    from torch.nn import functional as F

    first, second, third = branches
    channels = first.shape[3]
    hidden = F.gelu(F.linear((first + second + third).mean((1, 2)), gate[0], gate[1]))
    gates = F.linear(hidden, gate[2], gate[3]).reshape(-1, channels, 3).softmax(2)
    gate1, gate2, gate3 = (part.reshape(-1, 1, 1, channels) for part in gates.unbind(2))
    return first * gate1 + second * gate2 + third * gate3


def gated_sum_nodes(p: str, order: str, spatial: str, shape: str, y: str) -> str:
    """Return ONNX nodes that make the sum `y` of the branches `<p>_<letter>_branch`, the letters in the order given.

    Args:
        p: how inner names begin; `<p>_any`, `<p>_three` and `<p>_c` are lists of -1, 3 and the channels.
        order: three letters.
        spatial: the branches' axes of height and width.
        shape: of a gate that is multiplied with a branch, as names of lists.
        y: a name.
    """
    a, b, c = list(order)
    return f"""{p}_sum0 = Add ({p}_{a}_branch, {p}_{b}_branch)
      {p}_sum = Add ({p}_sum0, {p}_{c}_branch)
      {p}_spatial = Constant <value_ints = [{spatial}]> ()
      {p}_mean = ReduceMean <keepdims = 0> ({p}_sum, {p}_spatial)
      {p}_hidden = Gemm <transB = 1> ({p}_mean, F_1, b_1)
      {p}_root0 = Constant <value_floats = [1.4142135]> ()
      {p}_unit0 = Constant <value_floats = [1.0]> ()
      {p}_half0 = Constant <value_floats = [0.5]> ()
      {p}_root = CastLike ({p}_root0, X)
      {p}_unit = CastLike ({p}_unit0, X)
      {p}_half = CastLike ({p}_half0, X)
      {p}_scaled = Div ({p}_hidden, {p}_root)
      {p}_erf = Erf ({p}_scaled)
      {p}_shifted = Add ({p}_erf, {p}_unit)
      {p}_product = Mul ({p}_hidden, {p}_shifted)
      {p}_active = Mul ({p}_product, {p}_half)
      {p}_logits = Gemm <transB = 1> ({p}_active, F_2, b_2)
      {p}_gates_shape = Concat <axis = 0> ({p}_any, {p}_c, {p}_three)
      {p}_stacked = Reshape ({p}_logits, {p}_gates_shape)
      {p}_gates = Softmax <axis = 2> ({p}_stacked)
      {p}_gate_{a}0, {p}_gate_{b}0, {p}_gate_{c}0 = Split <axis = 2, num_outputs = 3> ({p}_gates)
      {p}_gate_shape = Concat <axis = 0> ({shape})
      {p}_gate_{a} = Reshape ({p}_gate_{a}0, {p}_gate_shape)
      {p}_gate_{b} = Reshape ({p}_gate_{b}0, {p}_gate_shape)
      {p}_gate_{c} = Reshape ({p}_gate_{c}0, {p}_gate_shape)
      {p}_part_{a} = Mul ({p}_{a}_branch, {p}_gate_{a})
      {p}_part_{b} = Mul ({p}_{b}_branch, {p}_gate_{b})
      {p}_part_{c} = Mul ({p}_{c}_branch, {p}_gate_{c})
      {p}_parts = Add ({p}_part_{a}, {p}_part_{b})
      {y} = Add ({p}_parts, {p}_part_{c})"""
