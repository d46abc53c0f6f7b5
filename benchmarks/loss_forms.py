"""The forms that the contrastive loss could take on one device, each against the dense one, in one process.

    python benchmarks/loss_forms.py [out=loss_forms.json] [rounds=7] [compile=0]

Plain tiles of several shapes, made again in the backward or kept; the CPU attention kernel that torch ships, values =
keys, as Inf-CL computes on a GPU (it takes a dense mask only, so one per tile, and has no column sums: they come from
plain tiles); with compile=1 the dense form under torch.compile, which needs a C++ compiler. One thread; on a machine
with a GPU plain tiles only, on the GPU. What this prints chose the sizes in stence_dist/losses/tiles.py. Claims nothing
but that all forms agree. Exit code 1: they do not.
"""

import os
import sys
import time
from collections.abc import Callable
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads

import claims
import numpy as np
import torch
from loss import dense, inputs, once, ours
from torch import Tensor

from stence_dist.losses import tiles

Values = tuple[Tensor, Tensor, Tensor, Tensor]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# G, D by device; and (rows, columns) of a tile, None: the whole matrix, kept
PROBLEMS = {
    "cpu": ((512, 256), (2048, 256), (2048, 1024), (4096, 256), (4096, 1024)),
    "cuda": ((4096, 256), (16384, 256), (16384, 512), (16384, 1024), (32768, 512)),
}
SHAPES: dict[str, tuple[tuple[int, int] | None, ...]] = {
    "cpu": (None, (128, 4096), (256, 2048), (512, 2048), (512, 4096), (1024, 4096)),
    "cuda": (None, (1024, 16384), (2048, 16384), (4096, 16384), (4096, 65536), (8192, 16384)),
}
MASKED_ROWS = 512
SAME = 1e-4


def in_tiles(shape: tuple[int, int] | None) -> Callable[[Values], list[Tensor]]:
    """The package's loss in tiles of `shape`, or with the whole matrix kept."""
    sizes = (512, 4096, 2**40) if shape is None else (*shape, 0)

    def form(values: Values) -> list[Tensor]:
        with mock.patch.dict(tiles._SIZES, {DEVICE: sizes}):
            return once(ours, values)

    return form


def by_attention(values: Values) -> list[Tensor]:
    """The gradient by torch's fused CPU attention: a mask of log(1/row sum + 1/column sum) makes it give P @ keys."""
    ecg, image, scale = (value.detach() for value in values[:3])
    factor, size = float(scale), len(ecg)
    rows, columns = torch.empty(size), torch.zeros(size)
    for top in range(0, size, MASKED_ROWS):
        tile = torch.mm(ecg[top : top + MASKED_ROWS] * factor, image.T).exp_()
        rows[top : top + MASKED_ROWS] = tile.sum(dim=1)
        columns += tile.sum(dim=0)
    positive = factor * (ecg * image).sum(dim=1)
    loss = ((rows.log() + columns.log()) / 2 - positive).mean()

    def weighted(queries: Tensor, keys: Tensor, of_queries: Tensor, of_keys: Tensor) -> Tensor:
        summed = torch.empty_like(queries)
        for top in range(0, size, MASKED_ROWS):
            part = slice(top, top + MASKED_ROWS)
            mask = torch.log(1 / of_queries[part, None] + 1 / of_keys[None])
            output, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                queries[None, None, part], keys[None, None], keys[None, None], attn_mask=mask[None, None], scale=factor
            )
            summed[part] = output[0, 0] * weight[0, 0].exp()[:, None]
        return summed

    of_ecg = weighted(ecg, image, rows, columns) - 2 * image
    of_image = weighted(image, ecg, columns, rows) - 2 * ecg
    share = 1 / (2 * size)
    return [loss, of_ecg * factor * share, of_image * factor * share, (of_ecg * ecg).sum()[None] * share]


def forms(compiled: bool) -> dict[str, Callable[[Values], list[Tensor]]]:
    """What is compared with the dense form, by name."""
    found = {"kept" if shape is None else f"tiles {shape[0]} x {shape[1]}": in_tiles(shape) for shape in SHAPES[DEVICE]}
    if DEVICE == "cpu":
        found["fused attention"] = by_attention
    if compiled:
        fast = torch.compile(dense)
        found["compiled dense"] = lambda values: once(fast, values)
    return found


def seconds(form: Callable[[Values], list[Tensor]], values: Values) -> float:
    """Wall time of one call, all work on the device done."""
    started = time.perf_counter()
    form(values)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> int:
    """Measure all forms in turns, print the table, write the file."""
    options = claims.options({"out": "", "rounds": "7", "compile": "0"})
    rounds = claims.whole(options, "rounds")
    torch.set_num_threads(1)
    found = claims.Claims()
    candidates = forms(options["compile"] == "1")
    for size, width in PROBLEMS[DEVICE]:
        on_cpu = inputs(size, width)
        values = tuple(value.detach().to(DEVICE).requires_grad_(value.requires_grad) for value in on_cpu)
        expected = once(dense, values)
        times: dict[str, list[float]] = {name: [] for name in ("dense", *candidates)}
        apart = {
            name: max(
                float((one - other).abs().max() / other.abs().max()) for one, other in zip(form(values), expected)
            )
            for name, form in candidates.items()
        }
        for _ in range(rounds):
            for name, form in {"dense": lambda given: once(dense, given), **candidates}.items():
                times[name].append(seconds(form, values))
        middle = {name: float(np.median(spent)) for name, spent in times.items()}
        for name in candidates:
            what = f"largest difference of loss and gradients, G={size} D={width}, {name} and dense"
            found.add(what, apart[name], SAME, time_ratio=middle[name] / middle["dense"], ms=middle[name] * 1e3)
    return found.finish(options["out"], torch=torch.__version__, device=DEVICE, threads=1)


if __name__ == "__main__":
    sys.exit(main())
