"""A whole training step against a bare loop of the same model: what ZeRO, logging, votes and checks cost.

    python benchmarks/step.py shards=SHARDS [out=step.json] [ranks=2] [rounds=100] [steps=3] [KEY=VALUE of pretraining]

Both run in turns in the same ranks, one thread each, in short blocks of `steps` updates, so that what else the machine
does falls on both: ours as launch/pretrain.py takes them (one loader worker, ZeRO 1, a logged row every ten updates, no
validation, no checkpoint); bare: torch's DistributedDataParallel, AdamW and clipping, on batches of the same loader.
The claim: ours takes at most 3 % more wall time, by the median over rounds. Exit code 1: not met.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads

import claims
import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stence_dist import distributed, engine, files
from stence_dist.config.load import load
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.losses import pair_loss
from stence_dist.models.pair_model import build_pair_model
from stence_dist.targets import stenosis_labels
from stence_dist.train.plan import plan
from stence_dist.train.run import Run

CLAIM = 1.03
WARM_UPS = 5


def bare_loop(run: Any) -> Callable[[int], None]:
    """A plain loop over the batches of `run`'s loader: a function of the number of updates."""
    config, dataset = run.config, run.plan.shards.dataset
    model: nn.Module = build_pair_model(
        config, tokens_width=dataset.width or None, max_views=dataset.max_views, frames=dataset.frames
    )
    optimizer = torch.optim.AdamW(engine.parameter_groups(model, config.optimizer), foreach=False)
    wrapped = DistributedDataParallel(model) if distributed.world_size() > 1 else model
    known = torch.tensor([1, 2, 8]) * config.engine.global_batch_size

    def updates(count: int) -> None:
        for _ in range(count):
            (batch,) = next(run.batches)
            labels = stenosis_labels(batch.segments.numpy(), config.targets, np.ones(len(batch), dtype=bool))
            optimizer.zero_grad()
            loss = pair_loss(
                wrapped(batch),
                torch.from_numpy(labels),
                batch.patient,
                known=known,
                passes=distributed.world_size(),
                config=config.loss,
            )
            loss.total.backward()
            if config.engine.gradient_clipping:
                nn.utils.clip_grad_norm_(model.parameters(), config.engine.gradient_clipping)
            optimizer.step()

    return updates


def rank_main(out: str, rounds: int, steps: int, overrides: list[str]) -> None:
    """One rank: both forms in turns, seconds per update by round."""
    total = 2 * (rounds + WARM_UPS) * steps + 1  # the bare loop takes every other block of batches
    quiet = [f"steps={total}", "log_every=10", f"eval_every={10 * total}", f"save_every={10 * total}"]
    config = load(PretrainConfig, "pretrain", [*overrides, *quiet, f"run_dir={out}/run"])
    device = distributed.start(600)
    prepared = plan(config, device)
    run = Run(prepared, device, Path(out) / "run")
    if distributed.rank() == 0:
        Path(out, "run").mkdir(parents=True)
    run.start()
    bare = bare_loop(run)
    blocks = {"ours": lambda: [run.step() for _ in range(steps)], "bare": lambda: bare(steps)}
    times: dict[str, list[float]] = {name: [] for name in blocks}
    for turn in range(rounds + WARM_UPS):
        for name in list(blocks) if turn % 2 else reversed(blocks):
            distributed.barrier()
            started = time.perf_counter()
            blocks[name]()
            distributed.barrier()
            times[name].append((time.perf_counter() - started) / steps)
    if distributed.rank() == 0:
        files.write_json(Path(out) / "times.json", {name: spent[WARM_UPS:] for name, spent in times.items()})
    distributed.finish(0)


def main() -> int:
    """Start the ranks, print the result, write the file."""
    defaults = {"shards": "", "out": "", "ranks": "2", "rounds": "100", "steps": "3"}
    overrides = [argument for argument in sys.argv[1:] if argument.partition("=")[0] not in defaults]
    options = claims.options(defaults, [argument for argument in sys.argv[1:] if argument not in overrides])
    ranks, rounds, steps = (claims.whole(options, name) for name in ("ranks", "rounds", "steps"))
    if not options["shards"]:
        claims.refuse("shards= must be given.")
    unlike = [key for key in overrides if key.partition("=")[0] in ("engine.precision", "engine.accumulation")]
    if unlike or torch.cuda.is_available():
        claims.refuse(f"{unlike or 'A GPU'} would change our form alone: the bare loop is fp32 on a CPU, in one pass.")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        command += [__file__, "rank", folder, str(rounds), str(steps)]
        command += [f"data.shards={options['shards']}", *overrides]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"error: {' '.join(command)} failed:\n{done.stderr[-3000:]}")
        spent = files.read_json(Path(folder) / "times.json")
    ours, bare = np.array(spent["ours"]), np.array(spent["bare"])
    ratios = ours / bare
    found = claims.Claims()
    found.add(
        f"wall time of an update on {ranks} rank(s), ours / bare loop",
        float(np.median(ratios)),
        CLAIM,
        quarter=float(np.quantile(ratios, 0.25)),
        three_quarters=float(np.quantile(ratios, 0.75)),
        ours_ms=float(np.median(ours) * 1e3),
        bare_ms=float(np.median(bare) * 1e3),
    )
    return found.finish(options["out"], torch=torch.__version__)


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank_main(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
    sys.exit(main())
