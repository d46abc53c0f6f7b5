"""A small 1-D pre-activation ResNet with GroupNorm; our own encoder, trained from scratch."""

import torch
from torch import Tensor, nn

from stence_dist.config.ecg_encoder import ResNetConfig
from stence_dist.ecg import EcgSpec
from stence_dist.errors import ConfigError
from stence_dist.models.ecg import EcgEncoder
from stence_dist.models.residual import NormSiLU, ResidualBlock, channels_last, soft_maximum, start_convolutions

_STEM_FACTOR = 4  # 500 Hz is averaged down to 125 Hz


class ResNet(EcgEncoder):
    """One residual block per stage, each stage after the first at half the rate.

    Time is the last axis of an image of height 1: 2-D convolutions with channels innermost take two thirds of the
    time of their 1-D equals on a CPU.
    """

    def __init__(self, config: ResNetConfig) -> None:
        """Raises ConfigError for an even kernel, no stage, or a drop-path probability outside [0, 1)."""
        super().__init__()
        if config.kernel < 1 or config.kernel % 2 == 0:
            raise ConfigError(f"ecg_encoder.kernel={config.kernel}. Use an odd number, e.g. 7.")
        if not config.widths or min(config.widths) < 1:
            raise ConfigError(f"ecg_encoder.widths={config.widths}. Give channels per stage, e.g. [24, 32, 48, 64].")
        self.spec = EcgSpec(seconds=config.seconds, windows=config.windows)
        if self.spec.samples < _STEM_FACTOR:
            raise ConfigError(f"ecg_encoder.seconds={config.seconds} is too short. Use e.g. 3.")
        self.width = 2 * config.widths[-1]
        self.blocks = len(config.widths)
        self.drop_rates = (config.drop_path,) * self.blocks
        self._keep_probability = 1 - config.drop_path
        kernel = (1, config.kernel)
        self.stem = nn.Conv2d(len(self.spec.leads), config.widths[0], kernel, padding=(0, config.kernel // 2))
        channels = [config.widths[0], *config.widths]
        self.stages = nn.ModuleList(
            ResidualBlock(channels[stage], channels[stage + 1], kernel, (1, 1 if stage == 0 else 2))
            for stage in range(self.blocks)
        )
        self.norm = NormSiLU(config.widths[-1])
        start_convolutions(self)

    def forward(self, ecg: Tensor, keep_path: Tensor | None = None, return_tokens: bool = False) -> Tensor:
        """Features (B, width): mean and soft maximum over time; or tokens (B, N, D), one per 4 * 2**(K-1) samples.

        ecg (B, L, T) prepared as `spec` says. keep_path (B, K), False = that sample skips that residual branch; kept
        branches are scaled by 1/(1 - drop_path). None or K = 0 keeps all. Raises SpecMismatchError on another shape.
        """
        self.check_shape(ecg)
        keep = None
        if keep_path is not None and keep_path.shape[1]:
            assert keep_path.shape[1] == self.blocks, "one drop-path mask per residual block"
            keep = keep_path.to(ecg.dtype) / self._keep_probability
        values = nn.functional.avg_pool1d(ecg, _STEM_FACTOR).unsqueeze(2)
        values = channels_last(self.stem(channels_last(values)))
        for number, stage in enumerate(self.stages):
            values = stage(values, None if keep is None else keep[:, number])
        active: Tensor = self.norm(values).squeeze(2)
        if return_tokens:
            return active.transpose(1, 2)
        return torch.cat([active.mean(dim=2), soft_maximum(active)], dim=1)
