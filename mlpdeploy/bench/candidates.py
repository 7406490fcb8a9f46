"""What takes part in a benchmark: names, callables, and the comparison of their outputs. Knows no framework."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpdeploy.bench.measure import Run
from mlpdeploy.env import closest
from mlpdeploy.errors import InternalError, MlpDeployError, UsageError

OURS = "mlpdeploy"
LABELS = {
    OURS: "mlpdeploy",
    "onnxruntime": "mlpdeploy on ONNX Runtime",
    "openvino": "mlpdeploy on OpenVINO",
    "no-kernels": "mlpdeploy (without its CPU kernels)",
    "canonical": "mlpdeploy (canonical file)",
    "torch-eager": "PyTorch eager",
    "torch-compile": "torch.compile",
    "naive-dynamo": "torch.onnx.export + ONNX Runtime",
    "naive-legacy": "legacy torch.onnx.export + ONNX Runtime",
    "naive-openvino": "torch.onnx.export + OpenVINO",
}
PEERS = tuple(name for name in LABELS if name != OURS)


class PeerUnavailableError(MlpDeployError):
    """A peer cannot take part here; the benchmark goes on without it and says why."""


@dataclass(frozen=True)
class Source:
    """From what a process can make a callable, by itself.

    Attributes:
        loader: a key of `peers.LOADERS`.
        path: what that loader takes: an artifact's folder or an ONNX file.
        dtype: of the input, numpy's name.
    """

    loader: str
    path: Path
    dtype: str = "float32"


@dataclass(frozen=True)
class Peer:
    """One thing to compare with.

    Attributes:
        name: a key of `LABELS`.
        run: takes a batch, gives the outputs.
        source: for the measurement of memory in a process of its own; None where that would not compare.
    """

    name: str
    run: Run
    source: Source | None = None


def check_peers(names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the peers' names in the order of `PEERS`; None means all of them.

    Raises:
        UsageError: an unknown name.
    """
    for name in names or ():
        if name not in PEERS:
            raise UsageError(f"unknown peer {name!r}", fix=closest(name, PEERS))
    return PEERS if names is None else tuple(name for name in PEERS if name in names)


def first_run(peer: Peer, batch: np.ndarray) -> list[np.ndarray]:
    """Return the peer's outputs; here is where `torch.compile` compiles.

    Raises:
        PeerUnavailableError: the peer cannot compute this batch.
    """
    with failures_of(peer.name):
        return list(peer.run(batch))


def output_error(outputs: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """Return the largest absolute difference of any output as a part of the reference's standard deviation.

    Infinite where numbers of outputs or shapes differ, or a value is not finite.
    """
    if [array.shape for array in outputs] != [array.shape for array in reference]:
        return float("inf")
    worst = 0.0
    for array, wanted in zip(outputs, reference, strict=True):
        exact = wanted.astype(np.float64)
        difference = float(np.abs(array.astype(np.float64) - exact).max())
        worst = max(worst, difference / (float(np.std(exact)) or 1.0)) if np.isfinite(difference) else float("inf")
    return worst


@contextmanager
def failures_of(name: str) -> Iterator[None]:
    """Turn whatever a peer's framework raises into one PeerUnavailableError, and keep its warnings off the screen.

    Errors of ours pass: a damaged artifact is not the peer's fault.
    """
    # PyTorch logs through loggers with handlers and levels of their own, so that only the switch for all reaches them.
    silenced = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (MlpDeployError, InternalError):
        raise
    except Exception as error:  # exporters and compilers raise what they like; raised again as one class
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise PeerUnavailableError(f"{LABELS.get(name, name)} failed ({type(error).__name__}: {first})") from error
    finally:
        logging.disable(silenced)
