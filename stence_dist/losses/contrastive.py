"""Symmetric InfoNCE over all ranks, exact, in memory that does not hold the matrix of logits."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stence_dist.distributed import all_reduce_max, all_reduce_sum
from stence_dist.losses.tiles import Tiles

# Up to this scale the logits of unit vectors, and the sums of their exponentials, need no maximum taken off first:
# exp(42) times any number of columns and exp(-42) are both far inside float32. No round temperature is 1/42, so that
# ranks never disagree by a rounding on which side they are.
_BOUNDED_SCALE = 42.0


def contrastive_loss(ecg: Tensor, image: Tensor, logit_scale: Tensor, *, patient: Tensor) -> Tensor:
    """Symmetric InfoNCE, scalar: the mean over the *local* rows of both directions, against the columns of all ranks.

    ecg, image (B, E) at unit norm, logit_scale (1,) the inverse temperature, patient (B,) int64; B equal on all
    ranks. The positive of a row is the column of its own position; other pairs of the same patient are no negatives.
    Logits are float32, float64 for float64 inputs, whatever autocast does around. Uses the default process group, or
    none. Gradients averaged over ranks (what DeepSpeed does) are those of one process that holds all rows. Never
    scale this loss by the number of ranks: the temperature's gradient, which no gather touches, would take the factor.

    Each rank computes its own rows of one matrix, ECG against image, and gathers images only; the columns' sums are
    reduced over ranks. Backward makes the tiles again: 8 B G E operations, where gathering both sides takes 12.
    """
    with torch.autocast(ecg.device.type, enabled=False):
        loss: Tensor = _InfoNce.apply(ecg, image, logit_scale, patient)  # type: ignore[no-untyped-call]
    return loss


class _InfoNce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ecg: Tensor, image: Tensor, logit_scale: Tensor, patient: Tensor) -> Tensor:
        tiles = Tiles(ecg, image, logit_scale, patient)
        softmax = _TwoWaySoftmax(tiles, bounded=abs(float(logit_scale)) <= _BOUNDED_SCALE)
        ctx.save_for_backward(ecg, image, logit_scale)
        ctx.tiles, ctx.softmax = tiles, softmax
        return ((softmax.row + softmax.column[tiles.own]) / 2 - softmax.positive).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        ecg, image, logit_scale = ctx.saved_tensors
        with torch.autocast(ecg.device.type, enabled=False):
            of_rows, of_image = ctx.tiles.pull_back(ctx.softmax.gradient, gradient / (2 * len(ecg)))
            of_scale = (of_rows * ecg).sum().reshape(logit_scale.shape)
            of_ecg = of_rows.mul_(logit_scale)
        return of_ecg.to(ecg.dtype), of_image.to(image.dtype), of_scale.to(logit_scale.dtype), None


class _TwoWaySoftmax:
    """Log-sum-exp of every local row and of every column over all ranks, the rows' positive logits, and the gradient
    that follows from them.
    """

    def __init__(self, tiles: Tiles, *, bounded: bool) -> None:
        self._tiles, self._bounded = tiles, bounded
        self._work: Tensor | None = None
        start = 0.0 if bounded else float("-inf")
        row, column = tiles.rows.new_full((len(tiles.rows),), start), tiles.rows.new_full((len(tiles.columns),), start)
        self.positive = tiles.rows.new_empty(len(tiles.rows))
        for rows, columns in tiles:
            tile = tiles.logits(rows, columns)
            # From the tile itself: computed apart it would round otherwise than the sums that it is part of.
            self.positive[tiles.paired(rows, columns)] = tiles.diagonal(tile, rows, columns)
            tile = self._finished(tile, rows, columns)
            if bounded:
                row[rows] += tile.sum(dim=1)
                column[columns] += tile.sum(dim=0)
            else:
                row[rows] = torch.logaddexp(row[rows], tile.logsumexp(dim=1))
                column[columns] = torch.logaddexp(column[columns], tile.logsumexp(dim=0))
        self._kept = tile if tiles.single else None
        if bounded:
            self.row, self.column = row.log(), all_reduce_sum(column).log()
        else:
            largest = all_reduce_max(column)  # hidden logits are -inf, so it does not see them
            self.row, self.column = row, largest + all_reduce_sum((column - largest).exp()).log()

    def _finished(self, tile: Tensor, rows: slice, columns: slice) -> Tensor:
        """A tile's logits with hidden ones left out: their exponentials where they are bounded."""
        if self._bounded:
            return self._tiles.hide(tile.exp_(), rows, columns, 0.0)
        return self._tiles.hide(tile, rows, columns, float("-inf"))

    def gradient(self, rows: slice, columns: slice) -> Tensor:
        """The gradient of 2 B times the loss by one tile's logits, in memory that the next call takes again."""
        tile = self._kept
        if tile is None:
            tile = self._finished(self._tiles.logits(rows, columns), rows, columns)
        if self._work is None:
            self._work = torch.empty_like(tile)
        work = self._work[: tile.shape[0], : tile.shape[1]]
        row, column = self.row[rows, None], self.column[None, columns]
        if self._bounded:
            torch.add((-row).exp(), (-column).exp(), out=work).mul_(tile)
        else:
            torch.sub(tile, row, out=work).exp_().add_(tile.sub(column).exp_())
        self._tiles.diagonal(work, rows, columns).sub_(2)
        return work
