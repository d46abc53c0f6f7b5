"""The cases whose gradients gradient_ranks.py takes on several ranks and test_gradients.py in one float64 process."""

import itertools
from dataclasses import astuple, dataclass, replace

import torch
from small_pair_model import SmallPairModel, global_batch
from torch import Tensor

from stence_dist.batch import PairBatch
from stence_dist.config.data import DataConfig
from stence_dist.config.engine import EngineConfig
from stence_dist.config.loss import LossConfig
from stence_dist.config.optimizer import SgdConfig
from stence_dist.config.pretrain import PretrainConfig

GLOBAL_BATCH, ACCUMULATION, STEPS = 48, 4, 3


@dataclass(frozen=True)
class Case:
    """One combination of what the gradient must not depend on and what it is taken of."""

    stage: int
    contrastive: str
    negatives: str
    tiled: bool  # False: one tile holds the whole matrix
    repeated: bool  # patients with several pairs
    mistake: str = ""

    @property
    def name(self) -> str:
        """The case as one word."""
        return "-".join(map(str, astuple(self)))

    @staticmethod
    def parse(name: str) -> "Case":
        """The case of a name."""
        stage, contrastive, negatives, tiled, repeated, mistake = name.split("-")
        return Case(int(stage), contrastive, negatives, tiled == "True", repeated == "True", mistake)


ALL = [
    Case(*choice)
    for choice in itertools.product(
        range(4), ("infonce", "sigmoid"), ("micro", "accumulated"), (False, True), (False, True)
    )
]
# Every stage with every loss, and every pair of the other choices.
CROSSING = [
    case
    for case in ALL
    if (case.negatives == "micro") == ((case.stage + (case.contrastive == "sigmoid")) % 2 == 0)
    and case.tiled == ((case.stage // 2 + (case.contrastive == "sigmoid")) % 2 == 0)
    and case.repeated == (case.stage in (0, 3))
]
MISTAKES = [
    Case(1, "infonce", negatives, False, True, mistake)
    for negatives in ("micro", "accumulated")
    for mistake in ("towers", "scale", "denominators")
]


def configuration_of(case: Case) -> PretrainConfig:
    """SGD whose momentum buffer is the gradient after one update: no clipping, no decay."""
    return PretrainConfig(
        run_dir="unused",
        data=DataConfig(shards="unused"),
        loss=LossConfig(learnable=True, contrastive=case.contrastive),
        optimizer=SgdConfig(ecg_lr=0.5, image_lr=0.25, scale_lr=0.1, momentum=0.9, weight_decay=0.0),
        engine=EngineConfig(
            GLOBAL_BATCH, ACCUMULATION, zero_stage=case.stage, gradient_clipping=0.0, negatives=case.negatives
        ),
    )


def model_of(case: Case) -> SmallPairModel:
    """The same weights everywhere."""
    return SmallPairModel(sigmoid=case.contrastive == "sigmoid")


def batch_of(case: Case, step: int) -> PairBatch:
    """The whole batch of one step."""
    batch = global_batch(step, GLOBAL_BATCH)
    return batch if case.repeated else replace(batch, patient=torch.arange(GLOBAL_BATCH))


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """By name ||found - expected|| / max(||expected||, 1e-3 of the norm of all expected)."""
    assert found.keys() == expected.keys()
    whole = torch.stack([value.double().norm() for value in expected.values()]).norm()
    return {
        name: float((found[name].double() - value.double()).norm() / torch.maximum(value.double().norm(), 1e-3 * whole))
        for name, value in expected.items()
    }
