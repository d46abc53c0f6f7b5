"""An image tower over stored backbone features."""

from torch import Tensor, nn

from stence_dist.config.image_tower import TokensConfig
from stence_dist.models.image import ImageFeatures, ImageTower
from stence_dist.models.image.pool import QueryPool


class TokensTower(ImageTower):
    """One linear layer to the decoder's width, then SegmentMIL's decoder, trained from scratch."""

    def __init__(self, config: TokensConfig, *, tokens_width: int, max_views: int, frames: int) -> None:
        super().__init__()
        self.width = config.width
        self.max_views = max_views
        self.projection = nn.Linear(tokens_width, config.width)
        self.pool = QueryPool(config, frames)

    def forward(self, views: Tensor, view_mask: Tensor, angulation: Tensor) -> ImageFeatures:
        """ImageFeatures from views (B, V, F, N, tokens_width), view_mask (B, V), angulation (B, V, 2)."""
        tokens = self.projection(views[view_mask].to(self.projection.weight.dtype))
        queries = self.pool(tokens, view_mask, angulation)
        return ImageFeatures(pooled=queries[:, 0], queries=queries)
