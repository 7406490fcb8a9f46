"""The models, as data: the published ones, and small ones of our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlpdeploy.env import closest
from mlpdeploy.errors import UsageError
from mlpdeploy.manifest import Preprocessing
from mlpdeploy.models.asmlp import AsMlpConfig
from mlpdeploy.models.cyclemlp import CycleMlpConfig
from mlpdeploy.models.vip import VipConfig

Config = AsMlpConfig | VipConfig | CycleMlpConfig


@dataclass(frozen=True)
class ModelEntry:
    """One row of the registry.

    Attributes:
        name: the short name, e.g. `asmlp_s`.
        aliases: other names, among them the official ones.
        config: the architecture.
        preprocessing: how the authors prepared the images that they evaluated on.
        top1_percent: published ImageNet-1k accuracy, for orientation; None for a model that was not published.
        labels: of the classes; empty where they follow from their number (1000 are ImageNet-1k's).
    """

    name: str
    aliases: tuple[str, ...]
    config: Config
    preprocessing: Preprocessing
    top1_percent: float | None = None
    labels: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """`asmlp`, `vip` or `cyclemlp`."""
        return self.config.family


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# AS-MLP's and CycleMLP's authors evaluate on the centre of images resized to int(256 / 224 * size), whatever their
# models' `default_cfg` says; Vision Permutator's take what timm reads there.
_CROP_PCT = {"asmlp": 0.875, "cyclemlp": 0.875, "vip": 0.9}


def _imagenet(crop_pct: float) -> Preprocessing:
    return Preprocessing((224, 224), crop_pct, "bicubic", IMAGENET_MEAN, IMAGENET_STD, "RGB")


def _asmlp(short: str, long: str, embed_dim: int, depths: tuple[int, ...], top1: float) -> ModelEntry:
    aliases = (f"asmlp_{long}", f"asmlp_{long}_patch4_shift5_224", f"as_mlp_{long}", f"as_mlp_{short}")
    return ModelEntry(f"asmlp_{short}", aliases, AsMlpConfig(embed_dim, depths), _imagenet(_CROP_PCT["asmlp"]), top1)


def _vip(name: str, long: str, config: VipConfig, top1: float, crop_pct: float = _CROP_PCT["vip"]) -> ModelEntry:
    size, patch = name.removeprefix("vip_")[0], name.removeprefix("vip_")[1:]
    aliases = (f"vip_{long}_{patch}", f"vip_{long}{patch}", f"vip_{size}_{patch}")
    return ModelEntry(name, aliases, config, _imagenet(crop_pct), top1)


def _cyclemlp(size: int, config: CycleMlpConfig, top1: float) -> ModelEntry:
    aliases = (f"cycle_mlp_b{size}", f"cycle_b{size}")
    return ModelEntry(f"cyclemlp_b{size}", aliases, config, _imagenet(_CROP_PCT["cyclemlp"]), top1)


_TRUE_FALSE = {first: (first == 0, first == 1, False, False) for first in (-1, 0, 1)}

# As the authors published them.
MODELS: tuple[ModelEntry, ...] = (
    _asmlp("t", "tiny", 96, (2, 2, 6, 2), 81.3),
    _asmlp("s", "small", 96, (2, 2, 18, 2), 83.1),
    _asmlp("b", "base", 128, (2, 2, 18, 2), 83.3),
    _vip("vip_s14", "small", VipConfig((4, 3, 8, 3), (384,) * 4, _TRUE_FALSE[-1], 14), 80.6),
    _vip("vip_s7", "small", VipConfig((4, 3, 8, 3), (192, 384, 384, 384), _TRUE_FALSE[0], 7), 81.5),
    _vip("vip_m7", "medium", VipConfig((4, 3, 14, 3), (256, 256, 512, 512), _TRUE_FALSE[1], 7), 82.7),
    _vip("vip_l7", "large", VipConfig((8, 8, 16, 4), (256, 512, 512, 512), _TRUE_FALSE[0], 7), 83.2, crop_pct=0.875),
    _cyclemlp(1, CycleMlpConfig((2, 2, 4, 2)), 78.9),
    _cyclemlp(2, CycleMlpConfig((2, 3, 10, 3)), 81.6),
    _cyclemlp(3, CycleMlpConfig((3, 4, 18, 3), mlp_ratios=(8, 8, 4, 4)), 82.4),
    _cyclemlp(4, CycleMlpConfig((3, 8, 27, 3), mlp_ratios=(8, 8, 4, 4)), 83.0),
    _cyclemlp(5, CycleMlpConfig((3, 4, 24, 3), widths=(96, 192, 384, 768)), 83.2),
)


# Variants of our own for grey handwritten digits of 28x28 pixels. examples/digits/ trains them and has their weights.
_DIGITS: dict[str, Any] = {"num_classes": 10, "image_size": (28, 28), "in_chans": 1}
# Mean and standard deviation of the 4,000 training images' pixels.
_DIGITS_IMAGES = Preprocessing((28, 28), 1.0, "bicubic", (0.1311,), (0.3083,), "L")
_DIGITS_LABELS = tuple(map(str, range(10)))

DEMO_MODELS: tuple[ModelEntry, ...] = (
    ModelEntry(
        "asmlp_digits",
        (),
        AsMlpConfig(32, (2, 4), patch_size=2, **_DIGITS),
        _DIGITS_IMAGES,
        labels=_DIGITS_LABELS,
    ),
    ModelEntry(
        "vip_digits",
        (),
        VipConfig((2, 2), (56, 84), (True, False), 2, native_size=28, **_DIGITS),
        _DIGITS_IMAGES,
        labels=_DIGITS_LABELS,
    ),
    ModelEntry(
        "cyclemlp_digits",
        (),
        CycleMlpConfig((2, 2), (48, 80), (4, 4), **_DIGITS),
        _DIGITS_IMAGES,
        labels=_DIGITS_LABELS,
    ),
)


def entry_of(name: str, config: Config) -> ModelEntry:
    """Return the registry's entry of a name; for a model with sizes of its own one with ImageNet's preparation."""
    return _BY_NAME.get(name) or ModelEntry(name, (), config, _imagenet(_CROP_PCT[config.family]))


def _index() -> dict[str, ModelEntry]:
    table: dict[str, ModelEntry] = {}
    for entry in (*MODELS, *DEMO_MODELS):
        for name in (entry.name, *entry.aliases):
            if name in table:
                raise ValueError(f"the model name {name} is registered twice")
            table[name] = entry
    return table


_BY_NAME = _index()


def resolve_model(name: str) -> ModelEntry:
    """Return the registry's entry for a name or an alias (case, `-` and `/` do not matter).

    Raises:
        UsageError: no such model; the message suggests the nearest.
    """
    entry = _BY_NAME.get(name.strip().lower().replace("-", "_").replace("/", ""))
    if entry is None:
        raise UsageError(f"unknown model {name!r}", fix=closest(name, _BY_NAME))
    return entry
