"""What the ranks of `contrastive_ranks.py` and the one process that they are compared with both compute on."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


@dataclass(frozen=True)
class Case:
    """A global batch of raw inputs and the width of the numbers."""

    ecg: Tensor  # (G, 7)
    image: Tensor  # (G, 9)
    patient: Tensor  # (G,)
    temperature: float

    @property
    def global_batch(self) -> int:
        """G."""
        return len(self.patient)


def _case(rows: int, patients: int, temperature: float, dtype: torch.dtype, seed: int) -> Case:
    random = torch.Generator().manual_seed(seed)
    return Case(
        ecg=torch.randn(rows, 7, generator=random, dtype=torch.float64).to(dtype),
        image=torch.randn(rows, 9, generator=random, dtype=torch.float64).to(dtype),
        # Fewer patients than rows, drawn over the whole batch: duplicates lie on one rank and across ranks.
        patient=torch.randperm(rows, generator=random) % patients,
        temperature=temperature,
    )


SIGMOID_BIAS = -2.0
CASES = {
    "duplicates": _case(12, 8, 0.2, torch.float64, seed=0),
    "distinct": _case(8, 8, 0.5, torch.float64, seed=1),
    "one row per rank at W = 4": _case(4, 3, 0.1, torch.float64, seed=2),
    "sharp": _case(16, 12, 0.01, torch.float64, seed=3),
    "sharp float32": _case(16, 12, 0.01, torch.float32, seed=3),
    # Above scale 60 sums of exponentials lose rows whose best logit is low: here some, and not on every rank.
    "lost rows": _case(8, 8, 0.006, torch.float64, seed=13),
    "float32": _case(12, 8, 0.2, torch.float32, seed=0),
}


class TwoTowers(nn.Module):
    """Two small MLPs and a log inverse temperature."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.ecg_tower = nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 5))
        self.image_tower = nn.Sequential(nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, 5))
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))

    def forward(self, ecg: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit-norm embeddings (B, 5) twice, and the inverse temperature (1,)."""
        return normalize(self.ecg_tower(ecg), dim=1), normalize(self.image_tower(image), dim=1), self.log_scale.exp()


def two_towers(case: Case) -> TwoTowers:
    """The same weights on every rank, in the case's type."""
    torch.manual_seed(0)
    return TwoTowers(case.temperature).to(case.ecg.dtype)
