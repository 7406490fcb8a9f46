"""How far a result may be from the float64 reference, in one table, with the reasons. See docs/numerics.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tolerance:
    """Bounds for one precision.

    Attributes:
        times_reference: allowed multiple of the error that PyTorch itself makes in this precision on the same input.
        floor: allowed in any case, as a part of the spread (standard deviation) of the reference's output: PyTorch's
            own error is sometimes small by chance.
        times_reference_rms: allowed multiple of the root mean square of PyTorch's errors, over all outputs of eight
            images; None where the largest error decides alone, as it does where there are fewer outputs than `ENOUGH`.
    """

    times_reference: float
    floor: float
    times_reference_rms: float | None = None


# fp32: another order of summation over the same terms. The largest of some thousand errors of this kind scatters by a
# factor of two to three from kernel to kernel, and folding a norm into a weight adds one rounding per weight.
#
# fp16, bf16: what PyTorch loses in the same type. The root mean square says it; the largest of some errors scatters
# from seed to seed by a factor of two against another largest. The floor is the rounding that nobody can avoid: that of
# an output of two spreads (a unit roundoff is 2**-11 in fp16, 2**-8 in bf16).
#
# int8: PyTorch is no yardstick, the grid is: some hundred roundings to one of 255 levels. Measured: 0.03 to 0.08 for
# the trained models, 0.3 for tiny ones with random weights; a wrong scale, zero point or shift gives 1 and more. What
# the roundings cost in accuracy, `mlpdeploy eval` says.
TOLERANCES = {
    "fp32": Tolerance(times_reference=8.0, floor=1e-5),
    "fp16": Tolerance(times_reference=2.0, floor=2.0**-10, times_reference_rms=1.2),
    "bf16": Tolerance(times_reference=2.0, floor=2.0**-7, times_reference_rms=1.2),
    "int8": Tolerance(times_reference=0.0, floor=0.5),
}

# Of the hundred thousands of errors of a feature map in int8 the largest is that of a value beyond the calibrated
# range, 0.6 with random weights, and may be twice a logit's. Their root mean square, 0.02 to 0.07, is bounded too.
INT8_MAPS = Tolerance(times_reference=0.0, floor=1.0)
INT8_MAPS_RMS = 0.125
_MAP_AXES = 4  # (N, C, H, W)

# Outputs of whose errors two root mean squares can be compared: seven classes of eight images. Of eight errors one is
# 1.2 times another by chance.
ENOUGH = 56

# Rows computed together against rows computed alone: the same kernel may cut its blocks elsewhere, never more. In half
# precision the float32 sums inside of a kernel then differ in their last bit, and a few of them round to the other
# side: no more than the floor above.
# In int8 such a last bit moves a value to the next level now and then.
ROW_IDENTITY = {"fp32": 2e-6, "fp16": 2.0**-10, "bf16": 2.0**-7, "int8": 2e-2}
# OpenVINO cuts a norm's sum over a whole image among the threads that share the image: alone a row has all of them, in
# a batch one. TensorRT has other kernels for another batch or profile. Both are other orders of summation: in fp32 with
# the bound that other orders have, in half precision with one rounding to the other side in each of the two results. In
# int8 a value that moves to the next level moves others behind it, up to the noise that all roundings make together;
# rows that are mixed up differ by the spread and more.
SPLIT_SUMS = ("openvino", "tensorrt")
_GPU = "cuda"  # whoever computes there: cuBLAS and cuDNN have other kernels for another batch too
SPLIT_ROW_IDENTITY = {"fp32": TOLERANCES["fp32"].floor, "fp16": 2.0**-9, "bf16": 2.0**-6, "int8": 0.25}

# Precisions in which every class must be the reference's. In half precision two classes closer than the rounding may
# change places, which random weights bring about; there the agreement is told, and the values decide.
SAME_CLASSES = frozenset({"fp32"})


def spread(reference: np.ndarray) -> float:
    """Return the standard deviation of the reference, the scale that errors are measured on."""
    return float(np.std(reference)) or 1.0


def row_identity(precision: str, backend: str, device: str = "cpu") -> float:
    """Return how far a row in a batch may be from the same row alone, as a part of the spread."""
    split = backend in SPLIT_SUMS or device.startswith(_GPU)
    return (SPLIT_ROW_IDENTITY if split else ROW_IDENTITY)[precision]


def allowed_error(precision: str, reference: np.ndarray, framework_error: float) -> float:
    """Return the largest absolute error that passes.

    Args:
        precision: a key of `TOLERANCES`.
        reference: float64 outputs.
        framework_error: largest absolute error of PyTorch in this precision.
    """
    bounds = INT8_MAPS if _is_map_in_int8(precision, reference) else TOLERANCES[precision]
    return max(bounds.times_reference * framework_error, bounds.floor * spread(reference))


def allowed_rms(precision: str, reference: np.ndarray, framework_rms: float) -> float | None:
    """Return the largest root mean square of errors that passes, or None where there is no such bound.

    Roundings are spread evenly, so the root mean square of unavoidable ones is about a quarter of the largest.
    """
    if _is_map_in_int8(precision, reference):
        return INT8_MAPS_RMS * spread(reference)
    bounds = TOLERANCES[precision]
    if bounds.times_reference_rms is None or reference.size < ENOUGH:
        return None
    return max(bounds.times_reference_rms * framework_rms, bounds.floor / 4 * spread(reference))


def _is_map_in_int8(precision: str, reference: np.ndarray) -> bool:
    return precision == "int8" and reference.ndim == _MAP_AXES


def rms(errors: np.ndarray) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(errors))))
