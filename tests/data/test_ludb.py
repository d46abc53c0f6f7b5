"""The real recordings of LUDB, built as an ECG-only cohort whose table this test writes."""

import csv
from pathlib import Path

import numpy as np

from stence_dist.config.build import BuildConfig
from stence_dist.data.build import build
from stence_dist.data.index import SPLITS
from stence_dist.data.shards import ShardSet
from stence_dist.data.verify import verify


def test_ludb_builds_at_raw_scale(sample_data: Path, tmp_path: Path) -> None:
    """200 records whose headers scale every lead to 1 mV peak to peak: all come in at the raw scale, flagged.

    Einthoven's and Goldberger's relations then hold on the stored signals to the rounding of ADC values and medians,
    and the lead's peak to peak values are no longer alike.
    """
    records = sample_data / "ludb" / "data"
    header = ["patient_id", "ecg_path", "study_path", "days_between", "age", "sex", "site"]
    header += [f"seg_{number}" for number in range(1, 17)]
    cohort = tmp_path / "cohort.csv"
    with open(cohort, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for record in range(1, 201):
            writer.writerow([f"ludb{record}", str(records / str(record)), *[""] * 21])
    out = tmp_path / "shards"
    build(BuildConfig(cohort=str(cohort), out=str(out)))

    shards = ShardSet.open(out)
    verify(out)
    assert shards.dataset.kind == "none"
    assert [len(shards.table(split)) for split in SPLITS] == [140, 20, 40]
    for split in SPLITS:
        for row in range(len(shards.table(split))):
            sample = shards.read(split, row, verify=True)
            flags = sample.meta["flags"]
            assert flags["scale_source"] == "raw"
            assert flags["header_relation_error"] > 0.05
            signal = sample.signal().astype(np.float64) + np.array(sample.meta["ecg"]["medians"])[:, None]
            assert signal.shape == (12, 5000)
            one, two, three, avr = signal[:4]
            assert np.abs(one + three - two).max() < 0.0025
            assert np.abs(avr + (one + two) / 2).max() < 0.0025
            assert np.ptp(np.ptp(sample.signal(), axis=1)) > 0.1
