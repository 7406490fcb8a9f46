"""CycleMLP (Chen et al., ICLR 2022, arXiv:2107.10224).

Tensor names and shapes are those of the official checkpoints, for classification and for the detection and segmentation
backbones (`norm0`, `norm2`, `norm4` and `norm6`), but for the buffers `offset`, which `checkpoint.py` compares. Tokens
are kept as (N, H, W, C).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from mlpdeploy.errors import UsageError
from mlpdeploy.models.vip import Mlp
from mlpdeploy.ops.cycle_mlp import weighted_cycle_mlp

STEM_SIZE, STEM_STRIDE, STEM_PADDING = 7, 4, 2
GATE_RATIO = 4  # channels over hidden units of the gates


@dataclass(frozen=True)
class CycleMlpConfig:
    """One CycleMLP.

    Attributes:
        depths: blocks per stage.
        widths: channels per stage.
        mlp_ratios: hidden channels of a block's MLP over its channels, per stage.
        num_classes: logits.
        image_size: (height, width) in pixels that exports and benchmarks take by default; any size is possible.
        in_chans: channels of the input.
        features: return the feature map of each stage instead of logits.
        feature_norms: with `features`, one norm per stage (detection and segmentation checkpoints have them).
        fork_last3: with `feature_norms`, none for the first stage: the authors' switch for RetinaNet, which takes the
            other three maps.
    """

    family: ClassVar[str] = "cyclemlp"

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 320, 512)
    mlp_ratios: tuple[int, ...] = (4, 4, 4, 4)
    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    in_chans: int = 3
    features: bool = False
    feature_norms: bool = False
    fork_last3: bool = False

    def __post_init__(self) -> None:
        stages = len(self.depths)
        if stages < 1 or min(self.depths) < 1:
            raise UsageError(f"depths are {self.depths}", "at least one stage, each of one block or more")
        if (len(self.widths), len(self.mlp_ratios)) != (stages, stages):
            raise UsageError(f"widths {self.widths} and mlp_ratios {self.mlp_ratios}", f"{stages} each, as depths")
        if min(self.widths) < GATE_RATIO or min(self.mlp_ratios) < 1:
            raise UsageError(
                f"widths {self.widths} and mlp_ratios {self.mlp_ratios}",
                f"at least {GATE_RATIO} channels and a ratio of 1",
            )
        if self.feature_norms and not self.features:
            raise UsageError("feature_norms without features", fix="ask for features too")
        if self.fork_last3 and not self.feature_norms:
            raise UsageError("fork_last3 without feature_norms", fix="ask for feature_norms too")
        self.check_image_size(*self.image_size)

    @property
    def size_divisor(self) -> int:
        """Open sizes are multiples of this, so that every stage halves them; fixed ones need not be."""
        return STEM_STRIDE << (len(self.depths) - 1)

    def check_image_size(self, height: int, width: int) -> None:
        """Raise UsageError if the model cannot take an image of this size in pixels."""
        smallest = STEM_SIZE - 2 * STEM_PADDING
        if min(height, width) < smallest:
            raise UsageError(f"image size {height}x{width}", f"at least {smallest}x{smallest}")


class CycleFc(nn.Module):
    """The weights of a linear layer whose input channels are moved along one axis."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 1, 1))
        self.bias = nn.Parameter(torch.empty(channels))


class CycleMixer(nn.Module):
    """Mix along width, height and channels, and add the three by softmax gates (section 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp_c = nn.Linear(channels, channels, bias=False)
        self.sfc_h = CycleFc(channels)  # the checkpoints' name; its input moves along the width
        self.sfc_w = CycleFc(channels)
        self.reweight = Mlp(channels, channels // GATE_RATIO, channels * 3)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = (
            *(self.sfc_h.weight, self.sfc_h.bias),
            *(self.sfc_w.weight, self.sfc_w.bias),
            self.mlp_c.weight,
        )
        gate = (
            *(self.reweight.fc1.weight, self.reweight.fc1.bias),
            *(self.reweight.fc2.weight, self.reweight.fc2.bias),
        )
        return self.proj(weighted_cycle_mlp(x, branches, gate))


class CycleBlock(nn.Module):
    """Norm, cycle mixer, residual; norm, MLP, residual."""

    def __init__(self, channels: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = CycleMixer(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, channels * mlp_ratio)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """(N, in_chans, H, W) to tokens (N, h, w, channels) by a convolution whose patches overlap."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, STEM_SIZE, STEM_STRIDE, STEM_PADDING)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class Downsample(nn.Module):
    """Tokens (N, H, W, C) to (N, ceil(H / 2), ceil(W / 2), out_channels)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class CycleMlp(nn.Module):
    """CycleMLP: (N, in_chans, H, W) to logits (N, num_classes), or to one feature map (N, C, h, w) per stage.

    `name` is the registry's, `source` says where the weights come from.
    The first stage has h = floor((H + 1) / 4) rows, each other one ceil(h / 2) of the one before it; widths likewise.
    """

    name: str
    source: str

    def __init__(self, config: CycleMlpConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.in_chans, config.widths[0])
        modules: list[nn.Module] = []
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            if stage > 0:
                modules.append(Downsample(config.widths[stage - 1], width))
            modules.append(nn.Sequential(*(CycleBlock(width, config.mlp_ratios[stage]) for _ in range(depth))))
        self.network = nn.ModuleList(modules)
        if not config.features:
            self.norm = nn.LayerNorm(config.widths[-1])
            self.head = nn.Linear(config.widths[-1], config.num_classes)
        elif config.feature_norms:
            for stage, width in enumerate(config.widths):
                norm = nn.Identity() if config.fork_last3 and stage == 0 else nn.LayerNorm(width)
                self.add_module(f"norm{2 * stage}", norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        if isinstance(x.shape[2], int) and isinstance(x.shape[3], int):
            self.config.check_image_size(x.shape[2], x.shape[3])
        x = self.patch_embed(x)
        maps = []
        for index, module in enumerate(self.network):
            x = module(x)
            if self.config.features and index % 2 == 0:  # a stage; between two there is a downsampling
                stage = getattr(self, f"norm{index}")(x) if self.config.feature_norms else x
                maps.append(stage.permute(0, 3, 1, 2))
        if self.config.features:
            return tuple(maps)
        return self.head(self.norm(x).mean((1, 2)))
