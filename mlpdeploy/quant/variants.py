"""What int8 costs when only some blocks are quantized: variants of one model, run on the same images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from mlpdeploy.env import cpu_count, exact_sums, require
from mlpdeploy.errors import UsageError
from mlpdeploy.quant.blocks import blocks_of
from mlpdeploy.quant.calibration import Calibration
from mlpdeploy.quant.int8_blocks import quantize_int8
from mlpdeploy.quant.recipe import Recipe
from mlpdeploy.quant.search import Cost, Keep
from mlpdeploy.quant.source import Source

_NO_NOISE = 1e-20  # of the signal's power: 200 dB stand for equal logits
TARGET = "cpu"  # the form that runs on any machine; another target's ranges are the same


class Variants:
    """Measures the cost of quantizing all blocks but some.

    Attributes:
        macs: {block: multiply-adds of its products that can be quantized, per image}.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        calibration: Calibration,
        images: Sequence[np.ndarray],
        count: int,
        labels: np.ndarray | None = None,
        threads: int | None = None,
    ) -> None:
        """Run the float32 model, which everything is compared with.

        Args:
            source: the artifact.
            recipe: of precision int8; its `keep` holds for every variant.
            calibration: the ranges.
            images: (n, C, H, W) float32 batches, all of the rows that the model takes at once.
            count: N, the images that count; what fills up the last batch comes behind them.
            labels: (N,) class indices; None counts the images whose class changes.
            threads: of ONNX Runtime.
        """
        if source.manifest.outputs[0].layout != "NK":
            raise UsageError("a sensitivity analysis of feature maps", "a classifier that gives logits")
        self._recipe, self._calibration, self._labels = recipe, calibration, labels
        self._images, self._count = images, count
        self._threads = threads or cpu_count()
        self._model, _ = source.lowered(TARGET, expand_gelu=False, blocks=True)
        ir.external_data.load_to_model(self._model)
        macs = quantize_int8(self._model.clone(), TARGET, calibration, recipe).quantized
        self.macs: dict[str, int] = {}
        for node, block in blocks_of(macs).items():
            self.macs[block] = self.macs.get(block, 0) + macs[node]
        self._exact = self._run(self._model)

    def __call__(self, keep: Keep) -> Cost:
        """Return the cost of quantizing every block but those in `keep`."""
        recipe = dataclasses.replace(self._recipe, keep=(*self._recipe.keep, *sorted(keep)))
        model = self._model.clone()
        quantize_int8(model, TARGET, self._calibration, recipe)
        logits = self._run(model)
        noise = float(np.mean((logits - self._exact) ** 2))
        signal = float(np.mean(self._exact**2))
        return Cost(-10 * math.log10(max(noise / signal, _NO_NOISE)), self._drop(logits))

    def _drop(self, logits: np.ndarray) -> float:
        """Return the points of top-1 lost, or the percent of images that changed their class."""
        before, after = self._exact.argmax(1), logits.argmax(1)
        if self._labels is None:
            return 100 * float(np.mean(before != after))
        return 100 * float(np.mean(before == self._labels) - np.mean(after == self._labels))

    def _run(self, model: ir.Model) -> np.ndarray:
        """Return the logits of all images: (N, K) float64."""
        ort = require("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        for option in exact_sums().items():
            options.add_session_config_entry(*option)
        proto = ir.to_proto(model).SerializeToString()
        session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        rows = [session.run(None, {name: batch})[0] for batch in self._images]
        return np.concatenate(rows)[: self._count].astype(np.float64)
