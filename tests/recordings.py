"""Writers of small real files: WFDB records, XA runs, and a cohort of both."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
HEADER = [
    "patient_id",
    "ecg_path",
    "study_path",
    "days_between",
    "age",
    "sex",
    "site",
    *(f"seg_{n}" for n in range(1, 17)),
]


def sine_ecg(seed: int, seconds: float = 4.0, sampling_rate: int = 500) -> NDArray[np.float64]:
    """Twelve leads (12, T) of sines in mV that obey Einthoven's and Goldberger's relations."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * sampling_rate)) / sampling_rate
    waves = [np.sin(2 * np.pi * (rng.uniform(1, 8) * time + rng.uniform())) * rng.uniform(0.3, 1) for _ in range(8)]
    one, two, chest = waves[0], waves[1], waves[2:]
    return np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2, *chest])


def write_wfdb(folder: Path, name: str, signal: NDArray[np.float64], sampling_rate: int = 500) -> None:
    """A WFDB record of signal (12, T) in mV, 1 uV per unit."""
    import wfdb

    folder.mkdir(parents=True, exist_ok=True)
    count = len(signal)
    wfdb.wrsamp(
        name,
        fs=sampling_rate,
        units=["mV"] * count,
        sig_name=list(LEADS[:count]),
        p_signal=signal.T,
        fmt=["16"] * count,
        adc_gain=[1000.0] * count,
        baseline=[0] * count,
        write_dir=str(folder),
    )


def write_run(path: Path, frames: NDArray[np.integer], **elements: object) -> None:
    """An uncompressed multi-frame XA file of frames (F, H, W) uint8 or uint16 with nothing but the required modules."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.12.1"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = frames.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * frames.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = frames.tobytes()
    dataset["PixelData"].VR = "OB" if frames.itemsize == 1 else "OW"
    for name, value in elements.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=False, implicit_vr=False, little_endian=True)
    content = path.read_bytes()
    if content[128:132] != b"DICM":
        path.write_bytes(b"\0" * 128 + b"DICM" + content)


def write_cohort(folder: Path, pairs: int = 24, ecg_only: int = 8, seed: int = 0) -> Path:
    """cohort.csv of real WFDB and DICOM files: `pairs` patients with 1-3 views, `ecg_only` with an ECG alone."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(pairs + ecg_only):
        write_wfdb(folder / "ecg", f"r{number:03d}", sine_ecg(seed * 10_000 + number))
        paired = number < pairs
        if paired:
            for view in range(1 + number % 3):
                frames = rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)
                angles = {} if view == 2 else {"PositionerPrimaryAngle": -30 + 5 * view, "PositionerSecondaryAngle": 20}
                write_run(
                    folder / "study" / f"s{number:03d}" / f"run{view}.dcm",
                    frames,
                    InstanceNumber=view + 1,
                    RepresentativeFrameNumber=2,
                    **angles,
                )
        segments: list[object] = rng.choice([0, 20, 50, 80, 95], size=16, p=[0.5, 0.2, 0.15, 0.1, 0.05]).tolist()
        if number % 5 == 0:
            segments[3] = segments[7] = ""
        study = f"study/s{number:03d}" if paired else ""
        age, sex, site = int(rng.integers(40, 80)), "MF"[number % 2], "AB"[number % 3 == 0]
        days = int(rng.integers(0, 30)) if paired else ""
        lines.append([f"patient-{number}", f"ecg/r{number:03d}", study, days, age, sex, site, *segments])
    with open(folder / "cohort.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *lines])
    (folder / "patient_key.txt").write_text("0123456789abcdef0123456789abcdef\n")
    return folder / "cohort.csv"
