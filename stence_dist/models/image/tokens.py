"""An image tower over stored features: patch tokens of every view, or what SegmentMIL has said of a whole study."""

import torch
from torch import Tensor, nn

from stence_dist.config.image_tower import TokensConfig
from stence_dist.models.image import ImageFeatures, ImageTower
from stence_dist.models.image.pool import QueryPool


class TokensTower(ImageTower):
    """Both of StenCE's ways to read stored features.

    Patch mode: SegmentMIL's decoder, trained from scratch, reads the tokens of all views; a linear layer brings them
    to its width. Token mode: a study is 11 stored outputs of SegmentMIL and `cls_token_method` chooses among them;
    the tower itself has nothing to train, its width is theirs.
    """

    def __init__(self, config: TokensConfig, *, tokens_width: int, max_views: int, frames: int) -> None:
        super().__init__()
        self.max_views = max_views
        self.projection: nn.Linear | None = None
        self.pool: QueryPool | None = None
        if config.mode == "token":
            self.width = tokens_width
            self.places, self.how = config.chosen_outputs()
        else:
            self.width = config.width
            if config.projection:
                self.projection = nn.Linear(tokens_width, config.width)
            self.pool = QueryPool(config, frames)

    def forward(self, views: Tensor, view_mask: Tensor, angulation: Tensor) -> ImageFeatures:
        """ImageFeatures from views (B, V, F, N, tokens_width), view_mask (B, V), angulation (B, V, 2)."""
        if self.pool is None:
            return self._chosen(views)
        queries = self.pool(self._projected(self.pool, views, view_mask), view_mask, angulation)
        return ImageFeatures(pooled=queries[:, 0], queries=queries)

    def attention(self, views: Tensor, view_mask: Tensor, angulation: Tensor) -> Tensor | None:
        """(B, V, F, N): the share of each stored token; None in token mode. See `ImageTower.attention`."""
        if self.pool is None:
            return None
        return self.pool.attention(self._projected(self.pool, views, view_mask), view_mask, angulation)

    def _projected(self, pool: QueryPool, views: Tensor, view_mask: Tensor) -> Tensor:
        """(R, F, N, D) of the R real views."""
        tokens = views[view_mask].to(pool.queries.dtype)
        return tokens if self.projection is None else self.projection(tokens)

    def _chosen(self, views: Tensor) -> ImageFeatures:
        """The chosen ones of stored outputs (B, 1, 1, 11, D), and all of them behind it as queries."""
        outputs = views[:, 0, 0].to(torch.promote_types(views.dtype, torch.float32))
        chosen = outputs[:, self.places]
        pooled = chosen.amax(dim=1) if self.how == "max" else chosen.mean(dim=1)
        return ImageFeatures(pooled=pooled, queries=torch.cat([pooled[:, None], outputs], dim=1))
