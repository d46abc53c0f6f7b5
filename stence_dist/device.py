"""Where tensors live, and how exactly a GPU computes there."""

import os

import torch


def has_gpu() -> bool:
    """Whether work goes to a GPU: where there is one, unless DS_ACCELERATOR=cpu."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"


def compute_device(local_rank: int = 0) -> torch.device:
    """The GPU of a local rank, or the CPU.

    float32 on a GPU is then float32: TF32, which torch allows convolutions, moves features by 1e-3 against a CPU's.
    """
    if not has_gpu():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", local_rank)
