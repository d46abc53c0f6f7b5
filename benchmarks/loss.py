"""Time, memory and traffic of the contrastive loss, forward and backward, against the dense gathered form.

    python benchmarks/loss.py [out=loss.json] [rounds=50] [largest=16384]

The dense form gathers both sides with gradient and takes cross entropies of two (B, G) matrices of logits: open_clip's
`ClipLoss(local_loss=True, gather_with_grad=True)`, its own module where open_clip imports, else the same operations.
Two ranks on this machine, one thread each. Times: both forms in turns in the same processes, on the same tensors,
whose losses and gradients must be equal. Memory: highest resident size over that of the inputs, each form in
fresh processes. Exit code 1: a claim was not met.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads

import claims
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from stence_dist import distributed, files
from stence_dist.losses import tiles
from stence_dist.losses.contrastive import contrastive_loss

RANKS = 2
WARM_UPS = 10
Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# (G, D, scale) -> the largest share of the dense form's wall time. Above a scale of 60 the loss takes a constant off
# the logits first.
TIMES = {
    **{(size, 256, 5): 1.0 for size in (256, 512, 1024, 2048, 4096)},
    **{(size, 1024, 5): 1.0 for size in (256, 1024, 4096)},
    (256, 256, 100): 1.0,
    (256, 512, 5): 1.0,
    (8192, 256, 5): 0.60,
    (8192, 256, 100): 0.60,
    (8192, 512, 5): 0.65,
    (8192, 1024, 5): 0.72,
}
# (G, D) -> the largest share of the dense form's extra memory
MEMORY = {(8192, 256): 0.30, (8192, 512): 0.30, (8192, 1024): 0.30, (16384, 256): 0.08}
TRAFFIC = 0.51
SAME = 1e-5
LARGE = (65536, 256, 1.5e9)  # G, D, highest resident bytes of a rank
WIDE = (1024, 262144, 256, 20.0, 2.5e9)  # local rows, columns, D, seconds, highest resident bytes


# ---- the forms


class _Gather(torch.autograd.Function):
    """All ranks' rows; the backward sums what every rank sends back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return distributed.all_gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return distributed.reduce_scatter_sum(gradient)


def dense(ecg: Tensor, image: Tensor, scale: Tensor, patient: Tensor) -> Tensor:
    """The operations of open_clip's loss with local rows and gathers with gradient."""
    all_ecg, all_image = _Gather.apply(ecg), _Gather.apply(image)
    labels = torch.arange(len(ecg)) + distributed.rank() * len(ecg)
    return (cross_entropy(scale * ecg @ all_image.T, labels) + cross_entropy(scale * image @ all_ecg.T, labels)) / 2


def dense_form() -> tuple[Form, str]:
    """open_clip's own loss where it imports, else `dense`; and its name."""
    try:
        from open_clip.loss import ClipLoss
    except ImportError:
        return dense, "the same operations (open_clip is not installed)"
    loss: nn.Module = ClipLoss(
        local_loss=True, gather_with_grad=True, rank=distributed.rank(), world_size=distributed.world_size()
    )
    return lambda ecg, image, scale, _: loss(ecg, image, scale), "open_clip.loss.ClipLoss"


def ours(ecg: Tensor, image: Tensor, scale: Tensor, patient: Tensor) -> Tensor:
    """The package's loss."""
    return contrastive_loss(ecg, image, scale, patient=patient)


# ---- what one rank measures


def inputs(rows: int, width: int, scale: float = 5.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Related unit vectors (rows, width) twice, the scale, distinct patients; other ones on every rank.

    The sharper the scale, the less they have in common: a loss of 0 has no gradient to compare.
    """
    random = torch.Generator().manual_seed(distributed.rank())
    ecg = torch.randn(rows, width, generator=random)
    image = normalize(min(1.0, 30 / scale) * ecg + torch.randn(rows, width, generator=random), dim=1).requires_grad_()
    patient = torch.arange(rows) + distributed.rank() * rows
    return normalize(ecg, dim=1).requires_grad_(), image, torch.tensor([float(scale)], requires_grad=True), patient


def once(form: Form, values: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[Tensor]:
    """The loss and its three gradients."""
    loss = form(*values)
    return [loss.detach(), *torch.autograd.grad(loss, values[:3])]


def time_rank(size: int, width: int, scale: int, rounds: int) -> dict[str, Any]:
    """Both forms in turns: seconds, wall and CPU, by round; the largest difference of their results; bytes sent."""
    values = inputs(size // RANKS, width, scale)
    reference, name = dense_form()
    results = {form: once(form, values) for form in (ours, reference)}
    for result in results.values():  # the ranks share the scale's gradient out differently; training takes their mean
        result[3] = distributed.all_reduce_sum(result[3])
    apart = max(
        float((one - other).abs().max() / other.abs().max())
        for one, other in zip(results[ours], results[reference], strict=True)
    )
    repeats = max(1, 2048 // size)  # short calls are timed in groups
    spent: dict[str, list[tuple[float, float]]] = {"ours": [], "dense": []}
    for turn in range(WARM_UPS + rounds):
        for label, form in (("ours", ours), ("dense", reference)):
            distributed.barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                once(form, values)
            if turn >= WARM_UPS:
                spent[label].append(((time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats))
    sent = {label: traffic(form, values) for label, form in (("ours", ours), ("dense", dense))}
    return {"spent": spent, "apart": apart, "dense_form": name, "bytes": sent}


def traffic(form: Form, values: tuple[Tensor, Tensor, Tensor, Tensor]) -> int:
    """Bytes that the collectives of one call handle on one rank: what is gathered, scattered or reduced."""
    total = 0

    def counting(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*tensors: Tensor, **options: Any) -> Any:
            nonlocal total
            total += max(tensor.nbytes for tensor in tensors)
            return collective(*tensors, **options)

        return call

    names = ("all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce")
    patches = [mock.patch.object(dist, name, counting(getattr(dist, name))) for name in names]
    for patch in patches:
        patch.start()
    once(form, values)
    for patch in patches:
        patch.stop()
    return total


def memory_rank(label: str, size: int, width: int) -> dict[str, Any]:
    """Highest resident bytes of this fresh process, and how far above those of the inputs, after one call."""
    form = ours if label == "ours" else dense_form()[0]
    once(form, inputs(16, width))
    values = inputs(size // RANKS, width)
    return measured(lambda: once(form, values))


def measured(call: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of one call and the process's highest resident bytes, in all and above those before the call."""
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    started = time.perf_counter()
    call()
    seconds = time.perf_counter() - started
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"extra": highest - before, "highest": highest, "seconds": seconds}


def wide_rank(rows: int, columns: int, width: int) -> dict[str, Any]:
    """One rank of a group of columns / rows ranks that is not there: its peers' rows are rolled copies of its own."""
    values = inputs(rows, width)
    ranks = columns // rows

    def gather(part: Tensor) -> Tensor:
        if part.dim() == 1:
            return torch.arange(columns)
        return torch.cat([part.detach().roll(shift, dims=1) for shift in range(ranks)])

    with (
        mock.patch.object(tiles, "all_gather_later", lambda part: lambda: gather(part)),
        mock.patch.object(tiles, "reduce_scatter_sum", lambda gradient: gradient[:rows]),
    ):
        return measured(lambda: once(ours, values))


# ---- the table


def start(part: str, *arguments: object, ranks: int = RANKS) -> list[dict[str, Any]]:
    """What each of `ranks` fresh ranks reports of `part`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        command += [__file__, f"rank={part}", folder, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"error: {' '.join(command)} failed:\n{done.stderr[-3000:]}")
        return [files.read_json(Path(folder) / f"{rank}.json") for rank in range(ranks)]


def rank_main(part: str, folder: str, *arguments: str) -> None:
    """One rank: measure, write, leave."""
    distributed.start(timeout_s=600)
    parts: dict[str, Callable[..., dict[str, Any]]] = {"time": time_rank, "memory": memory_rank, "wide": wide_rank}
    report = parts[part](*(int(value) if value.isdigit() else value for value in arguments))
    files.write_json(Path(folder) / f"{distributed.rank()}.json", report)
    distributed.finish(0)


def spread(spent: NDArray[np.float64], label: str) -> dict[str, float]:
    """Wall milliseconds of one form: the middle, the least, the tenth and the ninetieth percentile."""
    wall = spent[..., 0] * 1e3
    low, middle, high = np.quantile(wall, [0.1, 0.5, 0.9])
    return {f"{label}_ms": middle, f"{label}_least": wall.min(), f"{label}_p10": low, f"{label}_p90": high}


def main() -> int:
    """Measure everything, print the table, write the file."""
    options = claims.options({"out": "", "rounds": "50", "largest": "16384"})
    rounds, largest = claims.whole(options, "rounds"), claims.whole(options, "largest")
    found = claims.Claims()
    for (size, width, scale), limit in TIMES.items():
        if size <= largest:
            reports = start("time", size, width, scale, rounds)
            what = f"G={size} D={width} scale={scale}"
            # (ranks, rounds, wall and CPU seconds) of each form
            mine, other = (np.array([report["spent"][label] for report in reports]) for label in ("ours", "dense"))
            found.add(
                f"time, {what}, ours / dense",
                float(np.median(mine[..., 0]) / np.median(other[..., 0])),
                limit,
                **spread(mine, "ours"),
                **spread(other, "dense"),
                cpu_ratio=float(np.median(mine[..., 1]) / np.median(other[..., 1])),
                dense_form=reports[0]["dense_form"],
            )
            apart = max(report["apart"] for report in reports)
            # Rounding grows with the logits.
            found.add(f"largest difference of loss and gradients, {what}", apart, SAME * max(1, scale / 20))
            sent = reports[0]["bytes"]
            found.add(f"bytes of the collectives, {what}, ours / dense", sent["ours"] / sent["dense"], TRAFFIC)
    for (size, width), limit in MEMORY.items():
        if size <= largest:
            extra = {
                label: max(float(report["extra"]) for report in start("memory", label, size, width))
                for label in ("ours", "dense")
            }
            found.add(
                f"extra memory, G={size} D={width}, ours / dense",
                extra["ours"] / extra["dense"],
                limit,
                ours_mb=extra["ours"] / 1e6,
                dense_mb=extra["dense"] / 1e6,
            )
    if largest >= 16384:  # without the dense form, which would take too much memory
        size, width, most = LARGE
        highest = max(report["highest"] for report in start("memory", "ours", size, width))
        found.add(f"highest resident GB of a rank, G={size} D={width}", highest / 1e9, most / 1e9)
        local, columns, width, seconds, most = WIDE
        report = start("wide", local, columns, width, ranks=1)[0]
        found.add(f"seconds, {local} rows x {columns} columns, D={width}", report["seconds"], seconds)
        found.add(
            f"highest resident GB, {local} rows x {columns} columns, D={width}", report["highest"] / 1e9, most / 1e9
        )
    return found.finish(options["out"], torch=torch.__version__, ranks=RANKS, threads=1)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("rank="):
        rank_main(sys.argv[1].removeprefix("rank="), *sys.argv[2:])
    sys.exit(main())
