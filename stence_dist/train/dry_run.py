"""Two steps of everything on the user's own data and ranks, before days are spent on them."""

import contextlib
import dataclasses
import gc
import logging
import resource
import time
from pathlib import Path

import torch

from stence_dist import distributed, files
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.config.report import ReportConfig
from stence_dist.errors import StoppedError
from stence_dist.train.plan import plan
from stence_dist.train.pretrain import start_ranks, train

logger = logging.getLogger("stence_dist")

_REFERENCE_SAMPLES = 64


def dry_run(config: PretrainConfig) -> None:
    """One step, a save, a stop; a load, one more step, a validation, a save, the weights, the report.

    Works in RUN_DIR.dry_run and removes it, but leaves it where something failed. Raises what pretraining raises.
    """
    began = time.perf_counter()
    device = start_ranks(config)
    folder = Path(f"{config.run_dir}.dry_run")
    short = dataclasses.replace(
        config,
        run_dir=str(folder),
        steps=2,
        log_every=1,
        save_every=1,
        eval_every=2,
        reference_samples=min(config.reference_samples, _REFERENCE_SAMPLES),
    )
    if distributed.rank() == 0:
        if folder.exists():
            files.remove_tree(folder)
        folder.mkdir(parents=True)
        (folder / "STOP").touch()
    distributed.barrier()
    with contextlib.suppress(StoppedError):
        train(short, device)
    gc.collect()  # the first engine's memory
    train(short, device)
    steps = plan(dataclasses.replace(config, dry_run=False), device).total_steps
    distributed.refuse_together(lambda: _conclude(folder, steps, config.engine.global_batch_size, began, device))


def _conclude(folder: Path, steps: int, global_batch_size: int, began: float, device: torch.device) -> None:
    from stence_dist.evaluate.report.page import report  # imports matplotlib, which ranks other than 0 never need

    report(ReportConfig(run_dir=str(folder)))
    rows = [row for row in files.read_json_lines(folder / "metrics.jsonl") if "loss" in row]
    # Nothing was loaded ahead of this one step: what it waited for its workers to start says nothing of a long run.
    second_s = global_batch_size / float(rows[-1]["samples_per_s"]) - float(rows[-1]["data_wait_s"])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    card = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB on its GPU" if device.type == "cuda" else ""
    files.remove_tree(folder)
    logger.info(
        "dry run passed in %.0f s: trained, saved, loaded, validated, reported. Rank 0 took %.1f GiB%s. A step takes "
        "about %.2f s here, so %d steps take about %.1f h; loading, validations and saves aside.",
        time.perf_counter() - began,
        memory / 2**30,
        card,
        second_s,
        steps,
        second_s * steps / 3600,
    )
