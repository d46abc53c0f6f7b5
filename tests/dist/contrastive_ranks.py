"""One rank of `test_contrastive_gradients.py`: its slice of each case's batch, gradients averaged as DeepSpeed does.

`python contrastive_ranks.py OUT`; rank 0 writes OUT, a safetensors of `case/variant/name` -> averaged value.
"""

import sys
from collections.abc import Callable
from unittest import mock

import torch
from contrastive_cases import CASES, SIGMOID_BIAS, Case, two_towers
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from stence_dist import distributed
from stence_dist.losses import tiles
from stence_dist.losses.contrastive import contrastive_loss
from stence_dist.losses.sigmoid import sigmoid_loss

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _hidden(patient: Tensor, rows: Tensor, start: int) -> Tensor:
    hidden = patient[rows][:, None] == patient[None, :]
    hidden[torch.arange(len(rows)), start + torch.arange(len(rows))] = False
    return hidden


def _both_ways(
    ecg: Tensor, image: Tensor, all_ecg: Tensor, all_image: Tensor, scale: Tensor, patient: Tensor
) -> Tensor:
    """The loss of given rows against given columns; the rows start at this rank's place unless they are all."""
    start = 0 if len(ecg) == len(all_ecg) else distributed.rank() * len(ecg)
    positives = start + torch.arange(len(ecg))
    hidden = _hidden(patient, positives, start)
    return sum(
        cross_entropy((scale * rows @ columns.T).masked_fill(hidden, float("-inf")), positives) / 2
        for rows, columns in ((ecg, all_image), (image, all_ecg))
    )


def _own_slice_back(rows: Tensor) -> Tensor:
    """Gathered without gradient, this rank's own rows put back with theirs."""
    gathered, start = distributed.all_gather(rows), distributed.rank() * len(rows)
    return torch.cat([gathered[:start], rows, gathered[start + len(rows) :]])


def _whole_matrix(ecg: Tensor, image: Tensor, scale: Tensor, patient: Tensor) -> Tensor:
    """Wrong: every rank the whole matrix, gathered without gradient. The towers get 1/W."""
    all_ecg, all_image = _own_slice_back(ecg), _own_slice_back(image)
    return _both_ways(all_ecg, all_image, all_ecg, all_image, scale, distributed.all_gather(patient))


def _local_rows_without_gradient(ecg: Tensor, image: Tensor, scale: Tensor, patient: Tensor) -> Tensor:
    """Wrong: local rows against columns without gradient. Half of the towers' gradient is missing."""
    everyone = distributed.all_gather(patient)
    return _both_ways(ecg, image, _own_slice_back(ecg), _own_slice_back(image), scale, everyone)


def _scaled_up(ecg: Tensor, image: Tensor, scale: Tensor, patient: Tensor) -> Tensor:
    """Wrong: the whole matrix with its 1/W "fixed" by scaling the loss. The temperature gets W."""
    return distributed.world_size() * _whole_matrix(ecg, image, scale, patient)


def _in_tiles(loss_of: Loss, most_kept: int) -> Loss:
    """The same loss in tiles of at most 2 rows and 3 columns; matrices of up to `most_kept` logits are held."""

    def loss(*values: Tensor) -> Tensor:
        with mock.patch.dict(tiles._SIZES, cpu=(2, 3, most_kept)):
            return loss_of(*values)

    return loss


def _ours(ecg: Tensor, image: Tensor, scale: Tensor, patient: Tensor) -> Tensor:
    return contrastive_loss(ecg, image, scale, patient=patient)


def _sigmoid(ecg: Tensor, image: Tensor, scale: Tensor, patient: Tensor) -> Tensor:
    return sigmoid_loss(ecg, image, scale, scale.new_tensor([SIGMOID_BIAS]), patient=patient)


RIGHT: dict[str, Loss] = {
    "infonce": _ours,
    "infonce in tiles": _in_tiles(_ours, 0),
    "infonce in kept tiles": _in_tiles(_ours, 1000),
    "sigmoid": _sigmoid,
    "sigmoid in tiles": _in_tiles(_sigmoid, 0),
}
WRONG: dict[str, Loss] = {
    "whole_matrix": _whole_matrix,
    "local_rows": _local_rows_without_gradient,
    "scaled_up": _scaled_up,
}


def averaged(case: Case, loss_of: Loss) -> dict[str, Tensor]:
    """The mean over ranks of the loss and of each parameter's gradient."""
    rank, width = distributed.rank(), case.global_batch // distributed.world_size()
    mine = slice(rank * width, (rank + 1) * width)
    model = two_towers(case)
    ecg, image, scale = model(case.ecg[mine], case.image[mine])
    loss = loss_of(ecg, image, scale, case.patient[mine])
    loss.backward()
    values = {"loss": loss.detach().reshape(1)}
    values |= {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {name: distributed.all_reduce_sum(value) / distributed.world_size() for name, value in values.items()}


def main() -> None:
    """All cases with the real losses; the first also with each wrong variant."""
    distributed.start(timeout_s=60)
    results: dict[str, Tensor] = {}
    for name, case in CASES.items():
        for variant, loss_of in (RIGHT | WRONG).items():
            if variant in RIGHT or name == next(iter(CASES)):
                results |= {f"{name}/{variant}/{key}": value for key, value in averaged(case, loss_of).items()}
    if distributed.rank() == 0:
        save_file(results, sys.argv[1])
    distributed.finish(0)


if __name__ == "__main__":
    main()
