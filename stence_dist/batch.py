"""The one sample type and the one batch type, and how samples become a batch.

Shape legend, used in every docstring: B pairs of a micro-batch on one rank, G pairs of a global batch, W ranks,
A micro-batches per step, L = 12 leads, T samples, V views (padded to the batch's largest), F frames per view,
N patch tokens per frame, C channels, H x W pixels, D a tower's width, E joint embedding, S = 11 stenosis targets,
K residual blocks of the ECG encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass
class PairSample:
    """One cohort row, prepared, as numpy arrays."""

    ecg: NDArray[np.float32]  # (L, T), prepared
    views: NDArray[np.generic] | None  # pixels (V, F, H, W) uint8 or tokens (V, F, N, D); None: ECG only
    angulation: NDArray[np.float32]  # (V, 2) degrees: RAO-/LAO+, CAU-/CRA+; NaN = unknown
    segments: NDArray[np.float32]  # (16,) percent, NaN = not reported
    patient: int  # int64, equal for equal patients
    sample: int  # number in the shard set
    keep_path: NDArray[np.bool_]  # (K,) residual branches kept by drop-path; (0,) when unused


@dataclass
class PairBatch:
    """B samples as tensors; padded views are zeros under a False mask."""

    ecg: Tensor  # (B, L, T) float32
    views: Tensor | None  # pixels (B, V, F, 1, H, W) uint8 or tokens (B, V, F, N, D) float; None: no views loaded
    view_mask: Tensor  # (B, V) bool, True = real
    angulation: Tensor  # (B, V, 2) float32, NaN = unknown
    segments: Tensor  # (B, 16) float32, NaN = not reported
    patient: Tensor  # (B,) int64
    sample: Tensor  # (B,) int64
    keep_path: Tensor  # (B, K) bool

    def __len__(self) -> int:
        return self.ecg.shape[0]

    def to(self, device: torch.device) -> "PairBatch":
        """The same batch on `device`."""
        moved = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return PairBatch(**moved)

    def pin_memory(self) -> "PairBatch":
        """The same batch in page-locked memory; torch's loader calls this."""
        pinned = {
            name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        return PairBatch(**pinned)


def collate(samples: Sequence[PairSample]) -> PairBatch:
    """Stack samples; ragged views are padded to the largest count. All samples have views, or none has."""
    with_views = [sample.views for sample in samples if sample.views is not None]
    assert len(with_views) in (0, len(samples)), "a batch mixes samples with and without views"
    most = max((len(views) for views in with_views), default=0)
    view_mask = torch.zeros(len(samples), most, dtype=torch.bool)
    angulation = torch.full((len(samples), most, 2), float("nan"))
    stacked: Tensor | None = None
    if with_views:
        first = torch.from_numpy(np.ascontiguousarray(with_views[0]))
        stacked = torch.zeros(len(samples), most, *first.shape[1:], dtype=first.dtype)
        for row, (sample, views) in enumerate(zip(samples, with_views, strict=True)):
            count = len(views)
            stacked[row, :count] = torch.from_numpy(np.ascontiguousarray(views))
            view_mask[row, :count] = True
            angulation[row, :count] = torch.from_numpy(sample.angulation)
        if stacked.dtype == torch.uint8:
            stacked = stacked.unsqueeze(3)  # one gray channel
    return PairBatch(
        ecg=torch.from_numpy(np.stack([sample.ecg for sample in samples])),
        views=stacked,
        view_mask=view_mask,
        angulation=angulation,
        segments=torch.from_numpy(np.stack([sample.segments for sample in samples])),
        patient=torch.tensor([sample.patient for sample in samples], dtype=torch.int64),
        sample=torch.tensor([sample.sample for sample in samples], dtype=torch.int64),
        keep_path=torch.from_numpy(np.stack([sample.keep_path for sample in samples])),
    )
