"""Fixtures shared by the whole suite: real sample files, and a small cohort with its shard set."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from recordings import sine_ecg, write_cohort, write_run


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder of real sample recordings, or a skip where it is not there."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("STENCE_SAMPLE_DATA", default))
    if not folder.is_dir():
        pytest.skip("sample data: not there; set STENCE_SAMPLE_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def cohort_writer() -> Callable[..., Path]:
    """`write_cohort(folder, pairs=24, ecg_only=8, seed=0)`."""
    return write_cohort


@pytest.fixture(scope="session")
def small_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cohort.csv of 24 pairs and 8 ECG-only patients. Read only."""
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="session")
def small_shards(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shard set of `small_cohort`: 32 x 32 frames, one per view, several shards per split. Read only."""
    from stence_dist.config.build import BuildConfig
    from stence_dist.data.build import build

    out = tmp_path_factory.mktemp("shards") / "set"
    build(BuildConfig(cohort=str(small_cohort), out=str(out), image_size=32, workers=1, shard_size=10))
    return out


@pytest.fixture(scope="session")
def make_ecg() -> Callable[..., NDArray[np.float64]]:
    """`sine_ecg(seed, seconds=4, sampling_rate=500)`."""
    return sine_ecg


@pytest.fixture(scope="session")
def make_run() -> Callable[..., None]:
    """`write_run(path, frames, **elements)`."""
    return write_run
