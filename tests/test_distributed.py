"""How ranks find their place before they meet."""

import os

import pytest
import torch

from stence_dist import distributed
from stence_dist.errors import ConfigError

SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "3", "SLURM_JOB_ID": "5"}


class Chosen(Exception):
    """Raised in place of using a GPU that is not there."""


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """One visible GPU; nothing of the launcher that runs this test."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)

    def choose(device: torch.device) -> None:
        raise Chosen(str(device))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", choose)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # `start` writes into it


@pytest.mark.usefixtures("gpus")
def test_srun_may_show_each_task_its_own_gpu() -> None:
    """--gpus-per-task=1: local rank 3 sees one GPU, as number 0, and takes it; so does DeepSpeed, by LOCAL_RANK."""
    os.environ.update(SRUN)
    with pytest.raises(Chosen, match="cuda:0"):
        distributed.start(1)
    assert os.environ["LOCAL_RANK"] == "0"


@pytest.mark.usefixtures("gpus")
def test_more_ranks_than_gpus_are_refused() -> None:
    """Under torchrun two ranks must not share the one GPU."""
    os.environ.update({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    with pytest.raises(ConfigError, match="Local rank 1 has no GPU: it sees 1"):
        distributed.start(1)
