"""Small models that export in a second."""

from __future__ import annotations

from typing import Any

from mlpdeploy.models.asmlp import AsMlpConfig
from mlpdeploy.models.build import Model, model_from_config, random_weights
from mlpdeploy.models.cyclemlp import CycleMlpConfig
from mlpdeploy.models.vip import VipConfig


def tiny_asmlp(**changes: Any) -> Model:
    """Return an AS-MLP of two stages with 21 and 42 channels (no multiple of the shift size) for 32x32 images."""
    values = {"embed_dim": 21, "depths": (1, 1), "image_size": (32, 32), "num_classes": 7}
    return named(model_from_config(AsMlpConfig(**{**values, **changes})), "asmlp_t")


def tiny_vip(widths: tuple[int, int] = (16, 32)) -> Model:
    """Return a Vision Permutator with an 8x8 and a 4x4 grid."""
    config = VipConfig((1, 1), widths, (True, False), 4, native_size=32, image_size=(32, 32), num_classes=7)
    return named(model_from_config(config), "vip_s7")


def tiny_cyclemlp(**changes: Any) -> Model:
    """Return a CycleMLP of two stages with 20 and 44 channels (no multiples of three) for 32x40 images."""
    values = {"depths": (1, 1), "widths": (20, 44), "mlp_ratios": (3, 2), "image_size": (32, 40), "num_classes": 7}
    return named(model_from_config(CycleMlpConfig(**{**values, **changes})), "cyclemlp_b1")


def tiny(family: str) -> Model:
    """Return the small model of a family for 32x32 images; its convolutions on rows are for our kernels."""
    makers = {
        "asmlp": lambda: tiny_asmlp(embed_dim=32),
        "vip": lambda: tiny_vip((32, 64)),
        "cyclemlp": lambda: tiny_cyclemlp(image_size=(32, 32), widths=(32, 64)),
    }
    return makers[family]()


def named(model: Model, name: str) -> Model:
    random_weights(model, 0)
    model.name, model.source = name, "random weights, seed 0"
    return model.eval()
