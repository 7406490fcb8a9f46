"""Steps of 8-bit numbers: what a weight becomes, and what the type of a scale does to it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from mlpdeploy.ops.int8 import Scale

# The types that an int8 model's other values may have; scales have the type of what they scale.
RESTS = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
# Bits of an int8 weight -> the largest number in it. With 7, 2 * 255 * 64 is less than 2^15.
MOST = {8: 127, 7: 64}
_MOST_BIAS = 1 << 30  # of an int32 bias; a weight scale is made larger where it would not fit


def quantized_weight(
    weight: np.ndarray, axis: int, bias: np.ndarray | None, input_step: float, rest: np.dtype[Any], most: int = MOST[8]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (int8 weight, float32 steps), symmetric, with a step per index of `axis`.

    Args:
        weight: float32.
        axis: of the output channels.
        bias: (D,) where it will be stored in int32 in steps of `input_step * step`: the steps are made as large as
            that needs.
        input_step: of the activations.
        rest: the steps are numbers of this type.
        most: the largest number in the result.
    """
    others = tuple(index for index in range(weight.ndim) if index != axis)
    steps = np.abs(weight).max(others).astype(np.float64) / most
    if bias is not None:
        steps = np.maximum(steps, np.abs(bias) / input_step / _MOST_BIAS)
    steps = as_scale(steps, rest)
    shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
    return np.clip(np.rint(weight / steps.reshape(shape)), -most, most).astype(np.int8), steps


def uint8_scale(low: float, high: float, rest: np.dtype[Any] = RESTS["fp32"]) -> Scale:
    """Return the scale of activations from `low` to `high`, which lie around zero; the step is a number of `rest`."""
    step = float(as_scale(np.asarray((high - low) / 255), rest))
    return Scale(step, int(np.clip(np.rint(-low / step), 0, 255)))


def as_scale(steps: np.ndarray, rest: np.dtype[Any]) -> np.ndarray:
    """Return float32 steps that are numbers of another type too, so that its scales divide and multiply by the same.

    Args:
        steps: 0 or more. A step that is 0, or below the type's smallest number, becomes 1 or that number.
        rest: the type that the scales will have.
    """
    rounded = steps.astype(rest).astype(np.float32)
    smallest = np.nextafter(rest.type(0), rest.type(1)).astype(np.float32)
    return np.where(steps == 0, np.float32(1), np.maximum(rounded, smallest)).astype(np.float32)
