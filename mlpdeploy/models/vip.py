"""Vision Permutator (Hou et al., TPAMI 2022, arXiv:2106.12368), the weighted variant (section 3.2).

Tensor names and shapes are those of the official checkpoints. Tokens are kept as (N, H, W, C).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from mlpdeploy.errors import UsageError
from mlpdeploy.ops.permute_mlp import weighted_permute_mlp


@dataclass(frozen=True)
class VipConfig:
    """One Vision Permutator.

    Attributes:
        depths: Permutator blocks per stage.
        widths: channels per stage; a stage of other width than the one before it starts at half the resolution.
        downsample: whether a stage is followed by a 2x2 convolution of stride 2.
        patch_size: stride in pixels of the patch embedding.
        mlp_ratio: hidden channels of a block's MLP over its channels.
        native_size: pixels along a side that the weights are made for: the height and width projections fix it.
        num_classes: logits.
        image_size: (height, width) in pixels; only the native size is possible.
        in_chans: channels of the input.
    """

    family: ClassVar[str] = "vip"

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    downsample: tuple[bool, ...]
    patch_size: int
    mlp_ratio: int = 3
    native_size: int = 224
    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    in_chans: int = 3

    @property
    def grid(self) -> int:
        """Tokens along a side of the first stage."""
        return self.native_size // self.patch_size

    def __post_init__(self) -> None:
        self.check_image_size(*self.image_size)

    def check_image_size(self, height: int, width: int) -> None:
        """Raise UsageError for every size but the one that the weights were made for."""
        size = self.native_size
        if (height, width) != (size, size):
            raise one_grid_error(self, f"{height}x{width}")


def one_grid_error(config: VipConfig, came: str) -> UsageError:
    """Return the error for a size that the weights cannot take."""
    return UsageError(
        f"image size {came} for a Vision Permutator",
        f"{config.native_size}x{config.native_size}",
        f"its height and width projections are weights for a {config.grid}x{config.grid} grid; resize the images, "
        "or choose an AS-MLP, which takes any size",
    )


class Mlp(nn.Module):
    """Linear, GELU, Linear on the last axis."""

    def __init__(self, channels: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels if out is None else out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class WeightedPermuteMlp(nn.Module):
    """Mix along height, width and channels, and add the three by softmax gates (equations 1 to 6)."""

    def __init__(self, channels: int, segments: int) -> None:
        super().__init__()
        self.segments = segments
        self.mlp_c = nn.Linear(channels, channels, bias=False)
        self.mlp_h = nn.Linear(channels, channels, bias=False)
        self.mlp_w = nn.Linear(channels, channels, bias=False)
        self.reweight = Mlp(channels, channels // 4, channels * 3)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = (self.mlp_h.weight, self.mlp_w.weight, self.mlp_c.weight)
        gate = (
            self.reweight.fc1.weight,
            self.reweight.fc1.bias,
            self.reweight.fc2.weight,
            self.reweight.fc2.bias,
        )
        return self.proj(weighted_permute_mlp(x, branches, gate, self.segments))


class PermutatorBlock(nn.Module):
    """Norm, weighted permute MLP, residual; norm, MLP, residual."""

    def __init__(self, channels: int, segments: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WeightedPermuteMlp(channels, segments)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, channels * mlp_ratio)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchConv(nn.Module):
    """A convolution whose stride is its kernel size, called `proj` in the checkpoints."""

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, size, size)


class PatchEmbed(PatchConv):
    """(N, in_chans, H, W) to tokens (N, H / size, W / size, out_channels)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class Downsample(PatchConv):
    """Tokens (N, H, W, C) to (N, H / 2, W / 2, out_channels)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class VisionPermutator(nn.Module):
    """ViP: (N, in_chans, 224, 224) to logits (N, num_classes)."""

    name: str
    source: str

    def __init__(self, config: VipConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.in_chans, config.widths[0], config.patch_size)
        grid = config.grid
        modules: list[nn.Module] = []
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            modules.append(nn.Sequential(*(PermutatorBlock(width, grid, config.mlp_ratio) for _ in range(depth))))
            if config.downsample[stage]:
                modules.append(Downsample(width, config.widths[stage + 1], 2))
                grid //= 2
        self.network = nn.ModuleList(modules)
        self.norm = nn.LayerNorm(config.widths[-1])
        self.head = nn.Linear(config.widths[-1], config.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(x.shape[2], int) and isinstance(x.shape[3], int):
            self.config.check_image_size(x.shape[2], x.shape[3])
        x = self.patch_embed(x)
        for module in self.network:
            x = module(x)
        return self.head(self.norm(x).mean((1, 2)))
