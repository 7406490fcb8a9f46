"""AS-MLP: an axial shifted MLP (Lian et al., ICLR 2022, arXiv:2107.08391).

Tensor names and shapes are those of the official checkpoints, for classification and for the detection and
segmentation backbones (`norm0` to `norm3`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from mlpdeploy.errors import UsageError
from mlpdeploy.ops.axial_shift import ShiftSpec, axial_shift
from mlpdeploy.ops.group_norm import group_norm1

Branches = Literal["parallel", "serial"]


@dataclass(frozen=True)
class AsMlpConfig:
    """One AS-MLP.

    Attributes:
        embed_dim: channels of the first stage; each later stage has twice as many.
        depths: blocks per stage.
        patch_size: stride in pixels of the patch embedding.
        mlp_ratio: hidden channels of a block's MLP over its channels.
        shift: the axial shift's attributes, the same in all blocks.
        branches: `parallel` adds the two shifted branches (the published models); `serial` feeds one into the other
            (the paper's ablation).
        num_classes: logits.
        image_size: (height, width) in pixels that exports and benchmarks take by default.
        in_chans: channels of the input.
        features: return the feature map of each stage instead of logits.
        feature_norms: with `features`, one norm per stage (detection and segmentation checkpoints have them).
        pad_odd_sizes: pad with zeros, right and below, where a size does not divide, as the detection code does;
            otherwise such a size is refused.
    """

    family: ClassVar[str] = "asmlp"

    embed_dim: int
    depths: tuple[int, ...]
    patch_size: int = 4
    mlp_ratio: int = 4
    shift: ShiftSpec = field(default_factory=ShiftSpec)
    branches: Branches = "parallel"
    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    in_chans: int = 3
    features: bool = False
    feature_norms: bool = False
    pad_odd_sizes: bool = False

    def __post_init__(self) -> None:
        if self.branches not in ("parallel", "serial"):
            raise UsageError(f"branches is {self.branches!r}", "parallel or serial")
        if self.feature_norms and not self.features:
            raise UsageError("feature_norms without features", fix="ask for features too")
        self.check_image_size(*self.image_size)

    @property
    def size_divisor(self) -> int:
        """Sizes in pixels must be multiples of this, unless `pad_odd_sizes`."""
        return self.patch_size << (len(self.depths) - 1)

    def check_image_size(self, height: int, width: int) -> None:
        """Raise UsageError if the model cannot take an image of this size in pixels."""
        divisor = self.size_divisor
        if min(height, width) < 1:
            raise UsageError(f"image size {height}x{width}", "positive sizes")
        if not self.pad_odd_sizes and (height % divisor or width % divisor):
            near = [max(divisor, round(size / divisor) * divisor) for size in (height, width)]
            raise UsageError(
                f"image size {height}x{width}",
                f"multiples of {divisor}",
                f"the nearest is {near[0]}x{near[1]}, or ask for padding (pad_odd_sizes, --pad-odd-sizes)",
            )
        self.shift.check_size(-(-height // divisor), -(-width // divisor))


class GroupNorm1(nn.GroupNorm):
    """Group normalization with one group: one mean and one variance per sample."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return group_norm1(x, self.weight, self.bias, self.eps)


class Mlp(nn.Module):
    """Two 1x1 convolutions with a GELU between them, on (N, C, H, W)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class AxialShift(nn.Module):
    """The token mixer: project, shift along W and along H, project each, add (section 3.2)."""

    def __init__(self, channels: int, shift: ShiftSpec, branches: Branches) -> None:
        super().__init__()
        self.shift, self.branches = shift, branches
        self.shift_by = axial_shift  # `torch_operator.use_operator` puts the kernel here
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2_1 = nn.Conv2d(channels, channels, 1)
        self.conv2_2 = nn.Conv2d(channels, channels, 1)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.norm1 = GroupNorm1(channels)
        self.norm2 = GroupNorm1(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.norm1(self.conv1(x)))
        along_w, along_h = self.shift_by(x, self.shift)
        along_w = F.gelu(self.conv2_1(along_w))
        if self.branches == "parallel":
            x = along_w + F.gelu(self.conv2_2(along_h))
        else:
            x = F.gelu(self.conv2_2(self.shift_by(along_w, self.shift)[1]))
        return self.conv3(self.norm2(x))


class AxialShiftedBlock(nn.Module):
    """Norm, axial shift, residual; norm, MLP, residual."""

    def __init__(self, channels: int, config: AsMlpConfig) -> None:
        super().__init__()
        self.norm1 = GroupNorm1(channels)
        self.axial_shift = AxialShift(channels, config.shift, config.branches)
        self.norm2 = GroupNorm1(channels)
        self.mlp = Mlp(channels, channels * config.mlp_ratio)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.axial_shift(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Halve height and width: the four pixels of a 2x2 patch become channels, then norm and a 1x1 convolution."""

    def __init__(self, channels: int, pad: bool) -> None:
        super().__init__()
        self.pad = pad
        self.reduction = nn.Conv2d(4 * channels, 2 * channels, 1, bias=False)
        self.norm = GroupNorm1(4 * channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pad:
            x = pad_to_multiple(x, 2)
        corners = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, 1)))


class Stage(nn.Module):
    """The blocks of one resolution, and the merging into the next."""

    def __init__(self, channels: int, depth: int, last: bool, config: AsMlpConfig) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(AxialShiftedBlock(channels, config) for _ in range(depth)))
        self.downsample = None if last else PatchMerging(channels, config.pad_odd_sizes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (the stage's feature map, the next stage's input)."""
        x = self.blocks(x)
        return x, x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """One strided convolution and a norm."""

    def __init__(self, config: AsMlpConfig) -> None:
        super().__init__()
        self.patch_size, self.pad = config.patch_size, config.pad_odd_sizes
        self.proj = nn.Conv2d(config.in_chans, config.embed_dim, config.patch_size, config.patch_size)
        self.norm = GroupNorm1(config.embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(pad_to_multiple(x, self.patch_size) if self.pad else x))


class AsMlp(nn.Module):
    """AS-MLP: (N, in_chans, H, W) to logits (N, num_classes), or to one feature map per stage.

    `name` is the registry's, `source` says where the weights come from.
    Stage i's feature map is (N, embed_dim * 2**i, H / (patch_size * 2**i), W / (patch_size * 2**i)).
    """

    name: str
    source: str

    def __init__(self, config: AsMlpConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.embed_dim * 2**stage for stage in range(len(config.depths))]
        self.patch_embed = PatchEmbed(config)
        self.layers = nn.ModuleList(
            Stage(width, depth, width == widths[-1], config) for width, depth in zip(widths, config.depths, strict=True)
        )
        if not config.features:
            self.norm = GroupNorm1(widths[-1])
            self.head = nn.Linear(widths[-1], config.num_classes)
        elif config.feature_norms:
            for stage, width in enumerate(widths):
                self.add_module(f"norm{stage}", GroupNorm1(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        if isinstance(x.shape[2], int) and isinstance(x.shape[3], int):
            self.config.check_image_size(x.shape[2], x.shape[3])
        x = self.patch_embed(x)
        maps = []
        for index, stage in enumerate(self.layers):
            x_stage, x = stage(x)
            maps.append(getattr(self, f"norm{index}")(x_stage) if self.config.feature_norms else x_stage)
        if self.config.features:
            return tuple(maps)
        return self.head(self.norm(x).mean((2, 3)))


def pad_to_multiple(x: torch.Tensor, divisor: int) -> torch.Tensor:
    """Return x: (N, C, H, W) with zeros to the right and below, so that H and W are multiples of `divisor`."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % divisor, 0, -height % divisor))
