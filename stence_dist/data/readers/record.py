"""What readers return: one ECG record, quantized as it is stored, or one imaging study."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.errors import DataError

MISSING = -32768
LARGEST = 32767
MILLIVOLTS_PER_STEP = 0.001
# A record may not ask for more memory than this before its size was compared with its file's.
MAX_VALUES = 400_000_000
# Those of an ECG that is kept and should be looked at.
DOUBTFUL_FLAGS = ("flat_leads", "missing_share", "limb_leads_break")


class ReaderError(DataError):
    """A file that cannot be read as what it should be. `field` names the cohort column it came from.

    The message never holds the file's path: it may end in a log, and a path may name a patient.
    """

    def __init__(self, message: str, field: str = "ecg_path") -> None:  # the field's word in rejects.csv
        super().__init__(message)
        self.field = field

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.field)


def study_error(message: str) -> ReaderError:
    """What is wrong with the files that `study_path` names."""
    return ReaderError(message, "study_path")


def to_millivolts(values: NDArray[np.int16], scale: float) -> NDArray[np.float32]:
    """Signal (L, T) in mV, float32, NaN where missing; the medians are not added back.

    The one function behind `EcgRecord.signal` and `StoredSample.signal`, so a raw file and its shard give equal bits.
    """
    signal = values.astype(np.float32) * np.float32(scale)
    signal[values == MISSING] = np.nan
    return signal


@dataclass(frozen=True)
class EcgRecord:
    """One ECG as it is stored: values (L, T) int16 of `scale` mV each, -32768 = missing, per-lead medians removed."""

    values: NDArray[np.int16]
    scale: float
    medians: NDArray[np.float32]
    sampling_rate: float
    leads: tuple[str, ...]
    flags: dict[str, Any] = field(default_factory=dict)

    def signal(self) -> NDArray[np.float32]:
        """Signal (L, T) in mV, float32, NaN where missing, medians removed."""
        return to_millivolts(self.values, self.scale)


def _longest_constant_share(lead: NDArray[np.float64]) -> float:
    """Share of a lead (T,) that its longest stretch of one repeated value covers."""
    changes = np.flatnonzero(np.diff(lead) != 0)  # NaN differs from everything: a gap ends a stretch
    edges = np.concatenate([[-1], changes, [len(lead) - 1]])
    return float(np.diff(edges).max() / len(lead))


def quantize(
    signal_mv: NDArray[np.float64], leads: Sequence[str], sampling_rate: float, flags: dict[str, Any]
) -> EcgRecord:
    """The record of signal_mv (L, T) in mV, NaN = missing: 1 uV per step, more only where the range needs it.

    Nothing is clipped. A lead that is missing or flat throughout makes the record unusable (ReaderError); a lead that
    is flat for more than half of the record is kept and named in `flags["flat_leads"]`, gaps in
    `flags["missing_share"]`.
    """
    if signal_mv.ndim != 2 or signal_mv.shape[0] != len(leads) or signal_mv.shape[1] < 2:
        raise ReaderError(f"signal of shape {signal_mv.shape} for {len(leads)} leads; expected (leads, samples).")
    if not (np.isfinite(sampling_rate) and 1 <= sampling_rate <= 1e6):
        raise ReaderError(f"sampling rate {sampling_rate} Hz; expected 1 Hz to 1 MHz.")
    if np.isinf(signal_mv).any():
        raise ReaderError("the signal holds infinite values; NaN marks missing samples.")
    missing = np.isnan(signal_mv)
    empty = [lead for number, lead in enumerate(leads) if missing[number].all()]
    if empty:
        raise ReaderError(f"lead {' '.join(empty)} holds no sample at all (NaN throughout); 12 leads needed.")
    spread = np.nanmax(signal_mv, axis=1) - np.nanmin(signal_mv, axis=1)
    flat = [lead for lead, width in zip(leads, spread, strict=True) if width == 0]
    if flat:
        raise ReaderError(f"lead {' '.join(flat)} is flat throughout (electrode off?); 12 leads needed.")

    medians = np.nanmedian(signal_mv, axis=1).astype(np.float32)
    centered = signal_mv - medians.astype(np.float64)[:, None]
    largest = float(np.nanmax(np.abs(centered)))
    scale = max(MILLIVOLTS_PER_STEP, float(np.nextafter(largest / LARGEST, np.inf)))
    steps = np.rint(np.where(missing, 0.0, centered) / scale)
    assert np.abs(steps).max() <= LARGEST, "quantization clips"
    values = np.where(missing, MISSING, steps).astype(np.int16)
    stretches = {lead: _longest_constant_share(row) for lead, row in zip(leads, signal_mv, strict=True)}
    all_flags = {
        **flags,
        "flat_leads": [lead for lead, share in stretches.items() if share > 0.5],
        "missing_share": float(missing.mean()),
    }
    return EcgRecord(values, scale, medians, float(sampling_rate), tuple(leads), all_flags)


@dataclass(frozen=True)
class View:
    """One angiographic run: frames (F, H, W) uint8, or stored tokens (F, N, D) float16 / float32 (from bfloat16).

    angulation (2,) float32 degrees (RAO-/LAO+, CAU-/CRA+), NaN = unknown; meta: allow-listed JSON values.
    """

    frames: NDArray[Any]
    angulation: NDArray[np.float32]
    meta: dict[str, Any]


@dataclass(frozen=True)
class ImageStudy:
    """The views of one study, in stored order, all pixels or all tokens."""

    kind: str  # "pixels" | "tokens"
    views: list[View]
    others: int = 0  # files in the study folder that are no views
    dtype: str = "uint8"  # how the views are stored: uint8 | float16 | bfloat16
