"""Contrastive pretraining: one run from a config to an ECG tower, resumable at any step."""

import contextlib
import logging
import os
import socket
from pathlib import Path

import torch

from stence_dist import distributed, files, launchers
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.errors import CommonFailureError, RefusedError, StoppedError
from stence_dist.train.plan import plan
from stence_dist.train.run import Run
from stence_dist.train.run_folder import check_same_run, check_shared, is_unused, write_status

logger = logging.getLogger("stence_dist")


def pretrain(config: PretrainConfig) -> None:
    """Run, or resume, one pretraining. Raises StoppedError when stopped on request, RefusedError before any work."""
    train(config, start_ranks(config))


def start_ranks(config: PretrainConfig) -> torch.device:
    """Join the other ranks, share the cores with those of this node, and return this rank's device."""
    device = distributed.start(config.engine.timeout_s)
    _set_threads()
    return device


def train(config: PretrainConfig, device: torch.device) -> None:
    """`pretrain` among ranks that have joined already."""
    folder = Path(config.run_dir)
    lock = files.FolderLock(folder, "pretrain")
    finished, accepted = False, False
    run: Run | None = None

    def check() -> None:
        nonlocal finished
        # A restart by the launcher may meet the lock of a node that has just died; its peers wait in a collective.
        lock.acquire(min(120.0, config.engine.timeout_s / 2) if launchers.restarts(os.environ) else 0.0)
        try:
            prepared = plan(config, device)
        except RefusedError as error:
            if is_unused(folder):
                write_status(folder, "failed", 0, f"refused: {error}")
            raise
        finished = check_same_run(folder, prepared.identity) == "finished"

    try:
        distributed.refuse_together(check)
        accepted = True
        if distributed.any_rank(finished):
            logger.info("%s is finished already; nothing to do.", folder)
            return
        prepared = plan(config, device)
        distributed.agree(prepared.config_hash, "the config and the shards")
        if distributed.rank() == 0:
            write_status(folder, "running", 0, "starting")
        distributed.barrier()
        check_shared(folder)
        run = Run(prepared, device, folder)
        run.start()
        while run.done < prepared.total_steps:
            run.step()
        run.finish()
    except StoppedError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, RefusedError) and not accepted:
            raise  # says everything itself, and the folder may be another run's
        if distributed.means_lost_peer(error) and not isinstance(error, distributed.PeerLostError):
            error = distributed.PeerLostError.of(error)
        _account_for(error, run, folder if accepted else None)
        raise error from error.__cause__
    finally:
        lock.release()


def _account_for(error: BaseException, run: "Run | None", folder: Path | None) -> None:
    """Note on `error` where it happened, and say so in status.json, where the folder is ours and still takes it."""
    place = run.place() if run else "at the start"
    if not isinstance(error, CommonFailureError):  # these say themselves whose failure it is
        place = f"rank {distributed.rank()} on {socket.gethostname()}, {place}"
    error.add_note(f"({place})")
    repeated = getattr(error, "quiet", False) or (isinstance(error, CommonFailureError) and distributed.rank() != 0)
    if repeated or folder is None:
        return
    with contextlib.suppress(OSError, RefusedError):  # a full disk must not hide what filled it
        there = files.read_json(folder / "status.json")
        # Whoever lost its peers knows less than the rank at fault, which may write before or after it.
        blames_peers = there["state"] == "failed" and "PeerLostError" in there["message"]
        if there["state"] != "failed" or (blames_peers and not isinstance(error, distributed.PeerLostError)):
            write_status(folder, "failed", run.done if run else 0, f"{place}: {type(error).__name__}: {error}")


def _set_threads() -> None:
    """Share the cores among the ranks of this node, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", str(distributed.world_size()))))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // max(1, local)))
