"""The pictures of a result: ECGs that are typical or at fault, and key frames where no text may show."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.check.findings import Picture
from stence_dist.check.recordings import Place
from stence_dist.data.frames import FrameSettings
from stence_dist.data.readers import ReaderError, read_ecg, read_study

_FRAME_SIDE = 256  # pixels

# Signal (12, T) in mV and its sampling rate, of what a place's source names.
Reads = Callable[[Any], tuple[NDArray[np.float32], float]]


def drawn_file(path: Path) -> tuple[NDArray[np.float32], float]:
    """The signal of an ECG file. Raises ReaderError."""
    record = read_ecg(path)
    return record.signal(), record.sampling_rate


def ecg_pictures(examples: Mapping[str, tuple[Place, str]], read: Reads) -> list[Picture]:
    """One ECG for each entry, read again."""
    from stence_dist.evaluate.figures.recordings import ecg_png  # imports matplotlib

    pictures = []
    for place, caption in examples.values():
        signal, rate = read(place.source)
        pictures.append(Picture("ecg", f"{place.label}: {caption}", ecg_png(signal, rate)))
    return pictures


def run_pictures(shown: list[tuple[Place, Path]]) -> list[Picture]:
    """The key frames of a few runs whose headers state that no text is burned in."""
    from stence_dist.evaluate.figures.recordings import frame_png

    pictures = []
    for place, path in shown:
        try:
            study = read_study(path, FrameSettings(_FRAME_SIDE, 1, 1))
        except ReaderError:
            continue  # headers alone were looked at: that the pixels are damaged is not known otherwise
        pictures.append(Picture("frame", f"{place.label}: key frame", frame_png(study.views[0].frames[0])))
    return pictures
