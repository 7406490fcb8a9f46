"""The published models, as data: name, aliases, architecture, preprocessing."""

from __future__ import annotations

from dataclasses import dataclass

from mlpdeploy.env import closest
from mlpdeploy.errors import UsageError
from mlpdeploy.models.asmlp import AsMlpConfig
from mlpdeploy.models.vip import VipConfig

Config = AsMlpConfig | VipConfig


@dataclass(frozen=True)
class ModelEntry:
    """One row of the registry.

    Attributes:
        name: the short name, e.g. `asmlp_s`.
        family: `asmlp` or `vip`.
        aliases: other names, among them the official ones.
        config: the architecture.
        crop_pct: part of the resized image's side that the centre crop keeps, as the authors evaluated.
        top1_percent: published ImageNet-1k accuracy, for orientation.
    """

    name: str
    family: str
    aliases: tuple[str, ...]
    config: Config
    crop_pct: float
    top1_percent: float


def _asmlp(short: str, long: str, embed_dim: int, depths: tuple[int, ...], top1: float) -> ModelEntry:
    aliases = (f"asmlp_{long}", f"asmlp_{long}_patch4_shift5_224", f"as_mlp_{long}", f"as_mlp_{short}")
    return ModelEntry(f"asmlp_{short}", "asmlp", aliases, AsMlpConfig(embed_dim, depths), 0.9, top1)


def _vip(
    name: str,
    long: str,
    config: VipConfig,
    crop_pct: float,
    top1: float,
) -> ModelEntry:
    size, patch = name.removeprefix("vip_")[0], name.removeprefix("vip_")[1:]
    aliases = (f"vip_{long}_{patch}", f"vip_{long}{patch}", f"vip_{size}_{patch}")
    return ModelEntry(name, "vip", aliases, config, crop_pct, top1)


_TRUE_FALSE = {first: (first == 0, first == 1, False, False) for first in (-1, 0, 1)}

MODELS: tuple[ModelEntry, ...] = (
    _asmlp("t", "tiny", 96, (2, 2, 6, 2), 81.3),
    _asmlp("s", "small", 96, (2, 2, 18, 2), 83.1),
    _asmlp("b", "base", 128, (2, 2, 18, 2), 83.3),
    _vip("vip_s14", "small", VipConfig((4, 3, 8, 3), (384,) * 4, _TRUE_FALSE[-1], 14), 0.9, 80.6),
    _vip("vip_s7", "small", VipConfig((4, 3, 8, 3), (192, 384, 384, 384), _TRUE_FALSE[0], 7), 0.9, 81.5),
    _vip("vip_m7", "medium", VipConfig((4, 3, 14, 3), (256, 256, 512, 512), _TRUE_FALSE[1], 7), 0.9, 82.7),
    _vip("vip_l7", "large", VipConfig((8, 8, 16, 4), (256, 512, 512, 512), _TRUE_FALSE[0], 7), 0.875, 83.2),
)


def _index() -> dict[str, ModelEntry]:
    table: dict[str, ModelEntry] = {}
    for entry in MODELS:
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
