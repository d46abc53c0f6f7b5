"""An image tower over key frames: a small CNN, one mean and one soft-maximum token per frame, then the decoder."""

import math

import torch
from torch import Tensor, nn

from stence_dist.config.image_tower import PixelsConfig
from stence_dist.errors import ConfigError
from stence_dist.models.image import ImageFeatures, ImageTower
from stence_dist.models.image.pool import QueryPool
from stence_dist.models.residual import NormSiLU, ResidualBlock, channels_last, soft_maximum, start_convolutions


def normalize_frames(frames: Tensor, local_mean: int) -> Tensor:
    """(N, 1, H, W) float32 from uint8: each frame's z-score, less the mean of the square around each pixel.

    The square has the odd side `local_mean`, 0 = off; at the border the mean is over the pixels inside. Vessels are
    thin, so the mean around them is background: without this step the CNN finds lesions late or never.
    """
    values = frames.to(torch.float32)
    deviation, mean = torch.std_mean(values, dim=(1, 2, 3), correction=0, keepdim=True)
    values = (values - mean) / deviation.clamp(min=1.0)  # below one gray level there is nothing but rounding
    if not local_mean:
        return values
    half = local_mean // 2
    columns = nn.functional.avg_pool2d(values, (local_mean, 1), 1, (half, 0), count_include_pad=False)
    return values - nn.functional.avg_pool2d(columns, (1, local_mean), 1, (0, half), count_include_pad=False)


class FrameEncoder(nn.Module):
    """A 2-D pre-activation ResNet with GroupNorm; a 5 x 5 stem of stride 2, one block per stage.

    Two stages by default: a lesion is a small thing, and on coarser maps it is found late or not at all.
    """

    def __init__(self, config: PixelsConfig) -> None:
        super().__init__()
        self.local_mean = config.local_mean
        channels = [config.channels[0], *config.channels]
        self.stem = nn.Conv2d(1, channels[0], 5, 2, 2)
        self.stages = nn.ModuleList(
            # The stem has halved the resolution for the first stage.
            ResidualBlock(channels[stage], channels[stage + 1], (3, 3), (1, 1) if stage == 0 else (2, 2))
            for stage in range(len(config.channels))
        )
        self.norm = NormSiLU(channels[-1])
        start_convolutions(self)
        self.mean_token = nn.Linear(channels[-1], config.width)
        self.max_token = nn.Linear(channels[-1], config.width)

    def forward(self, frames: Tensor) -> Tensor:
        """Tokens (N, 2, D), mean and soft maximum over the image, from frames (N, 1, H, W) uint8."""
        values = normalize_frames(frames, self.local_mean).to(self.stem.weight.dtype)
        values = channels_last(self.stem(channels_last(values)))
        for stage in self.stages:
            values = stage(values)
        values = self.norm(values)
        return torch.stack(
            [self.mean_token(values.mean(dim=(2, 3))), self.max_token(soft_maximum(values))],
            dim=1,
        )


class PixelsTower(ImageTower):
    """`FrameEncoder` on the real views, then SegmentMIL's decoder."""

    def __init__(self, config: PixelsConfig, *, tokens_width: None, max_views: int, frames: int) -> None:
        """Raises ConfigError for an even local_mean, no channels or a negative chunk."""
        super().__init__()
        if config.local_mean and config.local_mean % 2 == 0:
            raise ConfigError(f"image_tower.local_mean={config.local_mean}. Use an odd side in pixels, or 0 (off).")
        if not config.channels or min(config.channels) < 1:
            raise ConfigError(f"image_tower.channels={config.channels}. Give one per stage, e.g. [24, 48].")
        if config.chunk < 0:
            raise ConfigError(f"image_tower.chunk={config.chunk}. Use views per call of the CNN, or 0 (all in one).")
        self.width = config.width
        self.max_views = max_views
        self.chunk = config.chunk
        self.frame_encoder = FrameEncoder(config)
        self.pool = QueryPool(config, frames)

    def forward(self, views: Tensor, view_mask: Tensor, angulation: Tensor) -> ImageFeatures:
        """ImageFeatures from views (B, V, F, 1, H, W) uint8, view_mask (B, V), angulation (B, V, 2)."""
        assert views.dtype == torch.uint8, "the tower normalizes stored pixels itself"
        rows, most = view_mask.shape
        assert most <= self.max_views, "the dataset's max_views is wrong: ranks would make unequal numbers of calls"
        tokens = self._tokens(views[view_mask], rows)
        queries = self.pool(tokens, view_mask, angulation)
        return ImageFeatures(pooled=queries[:, 0], queries=queries)

    def attention(self, views: Tensor, view_mask: Tensor, angulation: Tensor) -> Tensor:
        """(B, V, F, 2): the shares of each frame's mean and soft-maximum token; see `ImageTower.attention`."""
        return self.pool.attention(self._tokens(views[view_mask], len(view_mask)), view_mask, angulation)

    def _tokens(self, views: Tensor, rows: int) -> Tensor:
        """(R, F, 2, D) from the real views (R, F, 1, H, W) of `rows` pairs, in as many calls as they may ever need.

        How many views are real differs over ranks, the number of calls must not. A call without views runs on one
        frame again, times 0: its backward then takes place, too.
        """
        count, frames = views.shape[:2]
        if not self.chunk:
            tokens: Tensor = self.frame_encoder(views.flatten(0, 1))
        else:
            pieces, idle = [], views.new_zeros((), dtype=torch.float32)
            for call in range(math.ceil(rows * self.max_views / self.chunk)):
                piece = views[call * self.chunk : (call + 1) * self.chunk]
                if len(piece):
                    pieces.append(self.frame_encoder(piece.flatten(0, 1)))
                else:
                    idle = idle + 0.0 * self.frame_encoder(views[:1].flatten(0, 1)).sum()
            tokens = torch.cat(pieces) + idle
        return tokens.reshape(count, frames, *tokens.shape[1:])
