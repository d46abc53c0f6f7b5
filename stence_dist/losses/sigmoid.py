"""SigLIP's pairwise sigmoid loss over all ranks, exact, in memory that does not hold the matrix of logits."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from stence_dist.losses.tiles import Tiles


def sigmoid_loss(ecg: Tensor, image: Tensor, logit_scale: Tensor, logit_bias: Tensor, *, patient: Tensor) -> Tensor:
    """The sigmoid loss of Zhai et al. 2023 (arXiv:2303.15343), scalar: the mean over the *local* rows.

    A row pays softplus(-logit) for its own pair and softplus(logit) for every other column of all ranks, where a
    logit is logit_scale * cosine + logit_bias (1,). Everything else is as in `contrastive_loss`.
    """
    with torch.autocast(ecg.device.type, enabled=False):
        loss: Tensor = _Sigmoid.apply(ecg, image, logit_scale, logit_bias, patient)  # type: ignore[no-untyped-call]
    return loss


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ecg: Tensor, image: Tensor, logit_scale: Tensor, logit_bias: Tensor, patient: Tensor
    ) -> Tensor:
        tiles = Tiles(ecg, image, logit_scale, patient)
        bias = logit_bias.to(tiles.rows.dtype)
        total = torch.zeros_like(bias)
        for rows, columns in tiles:
            tile = tiles.logits(rows, columns).add_(bias)
            own = tiles.diagonal(tile, rows, columns).clone()
            # softplus(x), exact for large x, too, where torch's own is linear.
            paid = tiles.hide(logsigmoid(tile.neg_()).neg_(), rows, columns, 0.0)
            tiles.diagonal(paid, rows, columns).copy_(-logsigmoid(own))
            total += paid.sum()
        ctx.save_for_backward(ecg, image, logit_scale, logit_bias)
        ctx.tiles = tiles
        return total.squeeze(0) / len(ecg)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        ecg, image, logit_scale, logit_bias = ctx.saved_tensors
        tiles: Tiles = ctx.tiles
        share = gradient / len(ecg)
        bias = logit_bias.to(tiles.rows.dtype)
        of_bias = torch.zeros_like(bias)

        def of_tile(rows: slice, columns: slice) -> Tensor:
            tile = tiles.hide(tiles.logits(rows, columns).add_(bias).sigmoid_(), rows, columns, 0.0)
            tiles.diagonal(tile, rows, columns).sub_(1)
            of_bias.add_(tile.sum() * share)
            return tile

        with torch.autocast(ecg.device.type, enabled=False):
            of_rows, of_image = tiles.pull_back(of_tile, share)
            of_scale = (of_rows * ecg).sum().reshape(logit_scale.shape)
            of_ecg = of_rows.mul_(logit_scale)
        gradients = (of_ecg, of_image, of_scale, of_bias)
        inputs = (ecg, image, logit_scale, logit_bias)
        return *(value.to(like.dtype) for value, like in zip(gradients, inputs, strict=True)), None
