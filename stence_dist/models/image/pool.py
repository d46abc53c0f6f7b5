"""From the tokens of a pair's views to twelve queries: SegmentMIL's decoder (arXiv 2602.02067)."""

import torch
from torch import Tensor, nn

from stence_dist.config.image_tower import ImageTowerConfig
from stence_dist.targets import STENOSIS_TARGETS

QUERY_COUNT = 1 + len(STENOSIS_TARGETS)  # the contrastive query, then one per output of the stenosis head

_CELLS = 16  # per axis of the angulation table
_LOWEST = (-70.0, -50.0)  # degrees: primary (RAO-/LAO+), secondary (CAU-/CRA+)
_HIGHEST = (110.0, 50.0)


def _axis_code(width: int) -> Tensor:
    """(16, width): sines, then cosines of the cell's number at rates falling from 1 to 1/10000."""
    rates = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    phases = torch.arange(_CELLS, dtype=torch.float64)[:, None] * rates
    return torch.cat([phases.sin(), phases.cos()], dim=1)


class AngulationCode(nn.Module):
    """A fixed 2-D sinusoid per cell of a 16 x 16 grid of C-arm angles, and a learned vector for unknown angles."""

    table: Tensor
    lowest: Tensor
    cell_size: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        code = _axis_code(width // 2)
        table = torch.cat([code[:, None].expand(-1, _CELLS, -1), code[None].expand(_CELLS, -1, -1)], dim=2)
        lowest, highest = torch.tensor(_LOWEST), torch.tensor(_HIGHEST)
        # Not persistent: weights and checkpoints then hold parameters only.
        self.register_buffer("table", table.flatten(0, 1).float().contiguous(), persistent=False)
        self.register_buffer("lowest", lowest, persistent=False)
        self.register_buffer("cell_size", (highest - lowest) / _CELLS, persistent=False)
        self.unknown = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, angulation: Tensor) -> Tensor:
        """(R, D) from angulation (R, 2) in degrees. A NaN in either angle makes it unknown; others are clipped."""
        unknown = angulation.isnan().any(dim=1, keepdim=True)
        cells = ((angulation.nan_to_num() - self.lowest) / self.cell_size).floor().clamp(0, _CELLS - 1).long()
        return torch.where(unknown, self.unknown, self.table[cells[:, 0] * _CELLS + cells[:, 1]])


class FrameCode(nn.Module):
    """A learned vector per frame of a view."""

    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.randn(frames, width) * 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (R, F, N, D) with the code of its frame added to each."""
        return tokens + self.code[:, None]


class Attention(nn.Module):
    """Multi-head attention, started as torch's nn.MultiheadAttention.

    Not that class itself: it reads its output layer's weight without calling the layer, which ZeRO-3 cannot see.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        for linear in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(linear.weight, gain=2**-0.5)  # torch starts the three as one packed matrix
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.output.bias)

    def forward(self, queries: Tensor, memory: Tensor, attend: Tensor | None = None) -> Tensor:
        """(B, Q, D). queries (B, Q, D) look at memory (B, M, D) where attend (B, M) is True."""
        query, key, value = (
            self._by_head(linear(source))
            for linear, source in ((self.query, queries), (self.key, memory), (self.value, memory))
        )
        mask = None if attend is None else attend[:, None, None, :]
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output

    def shares(self, queries: Tensor, memory: Tensor, attend: Tensor) -> Tensor:
        """(B, heads, Q, M): how `forward` weighs the memory for each query; sums to 1 over M.

        `forward` itself never has them: its fused form is faster and keeps nothing.
        """
        query, key = self._by_head(self.query(queries)), self._by_head(self.key(memory))
        logits = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
        shares: Tensor = logits.masked_fill(~attend[:, None, None, :], float("-inf")).softmax(dim=3)
        return shares

    def _by_head(self, rows: Tensor) -> Tensor:
        """(B, heads, Q or M, D / heads) from (B, Q or M, D)."""
        return rows.reshape(*rows.shape[:2], self.heads, -1).transpose(1, 2)


class DecoderLayer(nn.Module):
    """A plain pre-norm decoder layer without dropout; the memory is not normalized, as published."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads)
        self.feedforward_norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, feedforward)
        self.output = nn.Linear(feedforward, width)

    def forward(self, queries: Tensor, memory: Tensor, attend: Tensor) -> Tensor:
        """(B, Q, D) from queries (B, Q, D), memory (B, M, D), attend (B, M) with True = real."""
        queries = self._among_themselves(queries)
        queries = queries + self.cross_attention(self.cross_norm(queries), memory, attend)
        output: Tensor = queries + self.output(nn.functional.relu(self.hidden(self.feedforward_norm(queries))))
        return output

    def shares(self, queries: Tensor, memory: Tensor, attend: Tensor) -> Tensor:
        """(B, heads, Q, M): how this layer weighs the memory for the queries that it is given."""
        return self.cross_attention.shares(self.cross_norm(self._among_themselves(queries)), memory, attend)

    def _among_themselves(self, queries: Tensor) -> Tensor:
        normed = self.self_norm(queries)
        mixed: Tensor = queries + self.self_attention(normed, normed)
        return mixed


class QueryPool(nn.Module):
    """Twelve learned queries read all tokens of a pair's real views; the order of the views does not matter."""

    def __init__(self, config: ImageTowerConfig, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.angulation_code = AngulationCode(config.width) if config.angulation else None
        self.frame_code = FrameCode(frames, config.width) if frames > 1 else None
        self.queries = nn.Parameter(torch.randn(QUERY_COUNT, config.width) / config.width**0.5)
        self.layers = nn.ModuleList(
            DecoderLayer(config.width, config.heads, config.feedforward) for _ in range(config.depth)
        )

    def forward(self, tokens: Tensor, view_mask: Tensor, angulation: Tensor) -> Tensor:
        """(B, 12, D) from the tokens (R, F, N, D) of the R real views, in the order of view_mask (B, V).

        angulation (B, V, 2) in degrees, NaN = unknown. Each pair must have a real view.
        """
        memory, attend = self._memory(tokens, view_mask, angulation)
        queries = self.queries.expand(len(view_mask), -1, -1)
        for layer in self.layers:
            queries = layer(queries, memory, attend)
        return queries

    def attention(self, tokens: Tensor, view_mask: Tensor, angulation: Tensor) -> Tensor:
        """(B, V, F, N): the share of each token in what the contrastive query reads, in the last layer, mean of heads.

        Arguments as of `forward`. Sums to 1 per pair; 0 in padded views. For looking at a few studies with whole
        weights: it keeps every weight of the last layer.
        """
        memory, attend = self._memory(tokens, view_mask, angulation)
        queries = self.queries.expand(len(view_mask), -1, -1)
        *earlier, last = self.layers
        assert isinstance(last, DecoderLayer)
        for layer in earlier:
            queries = layer(queries, memory, attend)
        shares = last.shares(queries, memory, attend)
        return shares[:, :, 0].mean(dim=1).reshape(*view_mask.shape, *tokens.shape[1:3])

    def _memory(self, tokens: Tensor, view_mask: Tensor, angulation: Tensor) -> tuple[Tensor, Tensor]:
        """What the queries read: memory (B, V * F * N, D), and attend (B, V * F * N), True = real."""
        assert tokens.shape[1] == self.frames, "the tower was built for another number of frames per view"
        assert bool(view_mask.any(dim=1).all()), "a pair without a real view"
        if self.frame_code is not None:
            tokens = self.frame_code(tokens)
        tokens = tokens.flatten(1, 2)
        if self.angulation_code is not None:
            tokens = tokens + self.angulation_code(angulation[view_mask])[:, None]
        rows, views = view_mask.shape
        real = view_mask.flatten().nonzero().squeeze(1)
        memory = tokens.new_zeros(rows * views, *tokens.shape[1:]).index_copy(0, real, tokens)
        memory = memory.reshape(rows, -1, memory.shape[2])  # (B, V * F * N, D)
        return memory, view_mask.repeat_interleave(tokens.shape[1], dim=1)
