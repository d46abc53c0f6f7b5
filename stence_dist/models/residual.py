"""The residual block that the ECG encoder and the image tower's CNN are made of."""

import math

import torch
from torch import Tensor, nn

# Of the soft maximum. At 1 it is close to a mean, and pretraining without stenosis labels finds lesions late or never.
SHARPNESS = 4.0


class NormSiLU(nn.GroupNorm):
    """GroupNorm in up to 8 groups, then SiLU. It knows no other sample, so no other rank.

    Smooth on purpose: flat stretches of a signal put hundreds of activations at one value, and when rounding pushes
    that value over a ReLU's kink the gradient jumps, so runs on different numbers of ranks drift apart (20 steps of
    recipe=phantom on 1 and 2 ranks: losses apart by 2e-3 with ReLU, by 2e-7 with SiLU).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(channels, 8), channels)

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, H, W) from (N, C, H, W)."""
        return nn.functional.silu(super().forward(values))


def channels_last(images: Tensor) -> Tensor:
    """The same values (N, C, H, W) with channels innermost in memory.

    oneDNN then needs no reordering around each convolution. Only activations: DeepSpeed refuses parameters that are
    not contiguous. A one-channel input counts as both layouts, so call this after the first convolution, too.
    """
    return images.contiguous(memory_format=torch.channels_last)


def soft_maximum(values: Tensor) -> Tensor:
    """log mean exp of `SHARPNESS` times the values, over `SHARPNESS`, all axes behind the first two: (N, C).

    A maximum whose gradient does not jump: which of two nearly equal peaks a hard one picks is decided by rounding, so
    runs on different numbers of ranks would drift apart.
    """
    flat = SHARPNESS * values.flatten(2)
    return (flat.logsumexp(dim=2) - math.log(flat.shape[2])) / SHARPNESS


def start_convolutions(module: nn.Module) -> None:
    """Give every convolution inside He et al.'s normal weights (arXiv 1502.01852); biases keep torch's start.

    The weights are 2.4 times torch's. Norms make their scale irrelevant to the output, but not to the relative size of
    an update.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


class ResidualBlock(nn.Module):
    """Pre-activation block (He et al. 2016, arXiv 1603.05027): norm, SiLU, convolution, twice, plus the shortcut."""

    def __init__(self, channels_in: int, channels_out: int, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.norm1 = NormSiLU(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, kernel, stride, padding)
        self.norm2 = NormSiLU(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, kernel, padding=padding)
        same = channels_in == channels_out and stride == (1, 1)
        self.shortcut = None if same else nn.Conv2d(channels_in, channels_out, 1, stride)

    def forward(self, values: Tensor, keep: Tensor | None = None) -> Tensor:
        """(N, C', H', W') from (N, C, H, W). keep (N,) scales the branch of each sample: 0 skips it."""
        active = self.norm1(values)
        shortcut = values if self.shortcut is None else self.shortcut(active)
        branch = self.conv2(self.norm2(self.conv1(active)))
        if keep is not None:
            branch = branch * keep[:, None, None, None].to(branch.dtype)
        return shortcut + branch  # type: ignore[no-any-return]
