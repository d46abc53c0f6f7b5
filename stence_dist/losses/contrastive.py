"""Symmetric InfoNCE over all ranks, exact, in memory that does not hold the matrix of logits."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stence_dist.distributed import all_reduce_max, all_reduce_sum, world_size
from stence_dist.losses.tiles import Tiles

# The logits of unit vectors lie within the scale s. Taken off by a constant, all that is above s - 60 keeps the sums
# of their exponentials, over any number of columns, inside float32: exp(60) below, and what is less than exp(-87)
# vanishes beside a sum of _LEAST_SUM or more. Only a row or column whose every logit lies 55 or more below that
# constant needs a maximum of its own.
_HEADROOM = 60
_LEAST_SUM = 1e-24


def contrastive_loss(ecg: Tensor, image: Tensor, logit_scale: Tensor, *, patient: Tensor) -> Tensor:
    """Symmetric InfoNCE, scalar: the mean over the *local* rows of both directions, against the columns of all ranks.

    ecg, image (B, E) at unit norm, logit_scale (1,) the inverse temperature, patient (B,) int64; B equal on all
    ranks. The positive of a row is the column of its own position; other pairs of the same patient are no negatives.
    Logits are float32, float64 for float64 inputs, whatever autocast does around. Uses the default process group, or
    none. Gradients averaged over ranks (what DeepSpeed does) are those of one process that holds all rows. Never
    scale this loss by the number of ranks: the temperature's gradient, which no gather touches, would take the factor.

    Each rank computes its own rows of one matrix, ECG against image, and gathers images only; the columns' sums are
    reduced over ranks. Backward makes the tiles again, unless the matrix is small: 8 B G E operations, or 6, where
    gathering both sides takes 12.
    """
    with torch.autocast(ecg.device.type, enabled=False):
        loss: Tensor = _InfoNce.apply(ecg, image, logit_scale, patient)  # type: ignore[no-untyped-call]
    return loss


class _InfoNce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ecg: Tensor, image: Tensor, logit_scale: Tensor, patient: Tensor) -> Tensor:
        tiles = Tiles(ecg, image, logit_scale, patient, keep=True)
        softmax = _TwoWaySoftmax(tiles, abs(float(logit_scale)))
        ctx.save_for_backward(ecg, image, logit_scale)
        ctx.tiles, ctx.softmax = tiles, softmax
        return softmax.entropies.mean()

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
    """The cross entropies of the local rows, and the gradient that follows from them.

    One exponential per logit, above a constant, serves rows and columns. Where that would lose a row or a column, on
    any rank, all ranks work with maxima instead.

    entropies (B,): minus the logarithm of each positive's share of its row and of its column, their mean.
    """

    def __init__(self, tiles: Tiles, scale: float) -> None:
        self._tiles = tiles
        self._work: Tensor | None = None
        self._offset = max(0, math.ceil(scale) - _HEADROOM)
        self._summed = self._sum()
        if not self._summed:
            self._sum_by_maxima()

    def _sum(self) -> bool:
        """Rows and columns from sums of exponentials; False on all ranks where any rank cannot have them so."""
        tiles = self._tiles
        row, column = tiles.rows.new_zeros(len(tiles.rows)), tiles.rows.new_zeros(len(tiles.columns))
        positive = torch.empty_like(row)  # above the offset, and its exponential
        share = torch.empty_like(row)
        for rows, columns in tiles:
            paired = tiles.paired(rows, columns)
            tile = self._above_offset(rows, columns)
            positive[paired] = tiles.diagonal(tile, rows, columns)
            tile = tiles.hide(tile.exp_(), rows, columns, 0.0)
            share[paired] = tiles.diagonal(tile, rows, columns)
            row[rows] += tile.sum(dim=1)
            column[columns] += tile.sum(dim=0)
        # Two more sums, so that all ranks see the same: rows that are lost here, and the offset, which another
        # processor may have rounded to another number.
        lost = (~((row >= _LEAST_SUM) & row.isfinite())).sum()
        sums = all_reduce_sum(torch.cat([column, torch.stack([lost.to(column), column.new_tensor(self._offset)])]))
        column, (any_lost, offsets) = sums[:-2], sums[-2:].tolist()
        self._row, self._column = row.reciprocal(), column.reciprocal()
        # By the quotient a well-matched pair's entropy is exact; for a hopeless one it would overflow.
        within_row, within_column = (
            torch.where(positive > -10, (whole / share).log(), whole.log() - positive)
            for whole in (row, column[tiles.own])
        )
        self.entropies = (within_row + within_column) / 2
        complete = bool(((column >= _LEAST_SUM) & column.isfinite()).all())
        return complete and any_lost == 0 and offsets == self._offset * world_size()

    def _above_offset(self, rows: slice, columns: slice) -> Tensor:
        tile = self._tiles.logits(rows, columns)
        return tile.sub_(self._offset) if self._offset else tile

    def _sum_by_maxima(self) -> None:
        """Rows and columns from log-sum-exps of their own, which hold for any logits."""
        tiles, lowest = self._tiles, float("-inf")
        row = tiles.rows.new_full((len(tiles.rows),), lowest)
        column = tiles.rows.new_full((len(tiles.columns),), lowest)
        positive = torch.empty_like(row)
        for rows, columns in tiles:
            tile = tiles.logits(rows, columns)
            positive[tiles.paired(rows, columns)] = tiles.diagonal(tile, rows, columns)
            tiles.hide(tile, rows, columns, lowest)  # no maximum sees hidden logits
            row[rows] = torch.logaddexp(row[rows], tile.logsumexp(dim=1))
            column[columns] = torch.logaddexp(column[columns], tile.logsumexp(dim=0))
        largest = all_reduce_max(column)
        self._row, self._column = row, largest + all_reduce_sum((column - largest).exp()).log()
        self.entropies = (row + self._column[tiles.own]) / 2 - positive

    def gradient(self, rows: slice, columns: slice) -> Tensor:
        """The gradient of 2 B times the loss by one tile's logits, in memory that the next call takes again."""
        tiles = self._tiles
        row, column = self._row[rows, None], self._column[None, columns]
        if self._summed:
            if tiles.kept:
                tile = tiles.tile(rows, columns)
            else:
                tile = tiles.hide(self._above_offset(rows, columns).exp_(), rows, columns, 0.0)
            work = self._work_like(tile)
            torch.add(row, column, out=work).mul_(tile)
        else:
            tile = tiles.hide(tiles.logits(rows, columns), rows, columns, float("-inf"))
            work = self._work_like(tile)
            torch.sub(tile, row, out=work).exp_().add_(tile.sub_(column).exp_())
        tiles.diagonal(work, rows, columns).sub_(2)
        return work

    def _work_like(self, tile: Tensor) -> Tensor:
        if self._work is None:  # the first tile is as large as any
            self._work = torch.empty_like(tile, memory_format=torch.contiguous_format)
        return self._work[: tile.shape[0], : tile.shape[1]]
