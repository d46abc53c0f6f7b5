"""A phantom cohort on disk: WFDB records, DICOM runs, cohort.csv, the patient key file, and phantom.json last."""

import csv
import dataclasses
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import wfdb
from joblib import Parallel, delayed
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, XRayAngiographicImageStorage, generate_uid
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from stence_dist import files
from stence_dist.config.phantom import PhantomConfig
from stence_dist.ecg import LEADS
from stence_dist.errors import DataError
from stence_dist.phantom import DIFFICULTY_VERSION
from stence_dist.phantom.ecg import SAMPLING_RATE, SITE_DEVICE, SITE_STEP_MV
from stence_dist.phantom.frames import FRAME_TIME_MS, AngioRun
from stence_dist.phantom.patient import PhantomPatient, patient
from stence_dist.phantom.physiology import SITES
from stence_dist.seeds import derive, generator

logger = logging.getLogger("stence_dist")

COHORT_FILE = "cohort.csv"
KEY_FILE = "patient_key.txt"
COMPLETE_FILE = "phantom.json"
_STARTED_FILE = "phantom.started.json"
# The severity of the summary; what training uses is `targets.threshold`.
_SEVERE = 70


@dataclasses.dataclass(frozen=True)
class _Written:
    """What the table and the summary need of a patient whose files are on disk."""

    row: dict[str, Any]
    severe: bool
    ischemia: float  # mV, all territories
    views: int


def write_cohort(config: PhantomConfig) -> dict[str, Any]:
    """Write the cohort of `config` to `config.out` and return its summary, which phantom.json holds as well.

    The single files are plain writes, for speed: phantom.json, written last, says that all of them are there. A folder
    that an interrupted call left is filled again; a complete one of the same config is left as it is. Raises DataError
    where the folder holds anything else.
    """
    out = Path(config.out)
    identity = {"difficulty_version": DIFFICULTY_VERSION[config.version], "config": _content_config(config)}
    fingerprint = files.sha256_json(identity)
    finished = _finished_summary(out, fingerprint)
    if finished is not None:
        logger.info("%s is complete; nothing to write.", out)
        return finished
    lock = files.FolderLock(out, "phantom cohort").acquire()
    try:
        files.write_json(out / _STARTED_FILE, {"fingerprint": fingerprint})
        (out / "ecg").mkdir(exist_ok=True)
        (out / "study").mkdir(exist_ok=True)
        count = config.patients + config.ecg_only
        jobs = (delayed(_write_patient)(out, config, index) for index in range(count))
        results = Parallel(n_jobs=config.workers, return_as="generator")(jobs)
        written = list(tqdm(results, total=count, desc="phantom", unit="patient", disable=None))
        files.write_text(out / KEY_FILE, patient_key_text(config.seed), mode=0o600)
        files.write_text(out / COHORT_FILE, _table([one.row for one in written]))
        summary = _summarize(written, config)
        content = {"version": config.version, **identity, "fingerprint": fingerprint, "summary": summary}
        files.write_json(out / COMPLETE_FILE, content)
        (out / _STARTED_FILE).unlink()
        return summary
    finally:
        lock.release()


def patient_key_text(seed: int) -> str:
    """The text of the cohort's patient key file: 64 hex characters and a newline. No secret: it follows the seed."""
    return "".join(f"{derive(seed, 'phantom', 'patient_key', part):016x}" for part in range(4)) + "\n"


def split_of(config: PhantomConfig, index: int) -> str:
    """train, val or test of a patient; empty where `ecg_only_test` is 0 and the builder is to split."""
    if config.ecg_only_test == 0:
        return ""
    if index >= config.patients + config.ecg_only - config.ecg_only_test:
        return "test"
    validation = 0.10 if index < config.patients else 0.15
    return "val" if generator(config.seed, "phantom", "split", index).random() < validation else "train"


def _content_config(config: PhantomConfig) -> dict[str, Any]:
    """The keys that decide what is written."""
    idle = {"out", "workers"}
    if config.version == 1:  # whose cohorts are older than these keys and keep their fingerprint
        idle |= {"version", "morphology"}
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in idle}


def _finished_summary(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """The summary of the same, complete cohort in `out`; None where it can be written. Raises DataError otherwise."""
    for name in (COMPLETE_FILE, _STARTED_FILE):
        if (out / name).exists():
            content = files.read_json(out / name)
            if not isinstance(content, dict) or content.get("fingerprint") != fingerprint:
                raise DataError(
                    f"{out} holds a phantom cohort of another config or version ({name}). "
                    "Choose another out=, or remove that folder first."
                )
            return content["summary"] if name == COMPLETE_FILE else None
    if out.exists() and (not out.is_dir() or any(path.name != ".lock" for path in out.iterdir())):
        raise DataError(f"{out} is not an empty folder and holds no phantom cohort. Choose another out=.")
    return None


def _write_patient(out: Path, config: PhantomConfig, index: int) -> _Written:
    """Write the files of one patient."""
    with_study = index < config.patients
    drawn = patient(config.seed, index, config, images=with_study)
    name = f"P{index:06d}"
    _write_ecg(out / "ecg", name, drawn)
    if with_study:
        folder = out / "study" / name
        folder.mkdir(exist_ok=True)
        for number, run in enumerate(drawn.views, start=1):
            _write_run(folder / f"run{number}.dcm", run, number, name, config, drawn)
    split = split_of(config, index)
    row = {
        "patient_id": name,
        "ecg_path": f"ecg/{name}",
        "study_path": f"study/{name}" if with_study else "",
        "days_between": drawn.days_between if with_study else "",
        "age": drawn.age,
        "sex": drawn.sex,
        "site": SITES[drawn.site],
        **({"split": split} if split else {}),
        **{f"seg_{number}": int(percent) for number, percent in enumerate(drawn.segments, start=1)},
        "device": SITE_DEVICE[drawn.ecg_site],
    }
    severe = bool(drawn.segments.max() >= _SEVERE)
    return _Written(row=row, severe=severe, ischemia=float(drawn.ischemia.sum()), views=len(drawn.views))


def _write_ecg(folder: Path, name: str, drawn: PhantomPatient) -> None:
    """One WFDB record in format 16, rounded to the recorder's step."""
    step = SITE_STEP_MV[drawn.ecg_site]
    values = np.clip(np.round(drawn.ecg.T / step), -32767, 32767).astype(np.int16)  # -32768 means missing
    wfdb.wrsamp(
        name,
        fs=SAMPLING_RATE,
        units=["mV"] * len(LEADS),
        sig_name=list(LEADS),
        d_signal=values,
        fmt=["16"] * len(LEADS),
        adc_gain=[1 / step] * len(LEADS),
        baseline=[0] * len(LEADS),
        comments=["synthetic: stence_dist phantom"],
        write_dir=str(folder),
    )


def _write_run(path: Path, run: AngioRun, number: int, name: str, config: PhantomConfig, drawn: PhantomPatient) -> None:
    """One X-ray run as an uncompressed 8-bit multi-frame XA file."""
    source = [str(config.seed), str(DIFFICULTY_VERSION[config.version]), name]
    dataset = Dataset()
    dataset.SOPClassUID = XRayAngiographicImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[*source, f"instance {number}"])
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[*source, "study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[*source, "series"])
    dataset.Modality = "XA"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "SINGLE PLANE"]
    dataset.Manufacturer = "stence_dist phantom"
    dataset.PatientID = name
    dataset.PatientName = f"Phantom^{name}"
    dataset.PatientSex = drawn.sex
    dataset.PatientAge = f"{drawn.age:03d}Y"
    dataset.StudyDate = "20000101"
    dataset.InstanceNumber = number
    dataset.PositionerPrimaryAngle = run.primary
    dataset.PositionerSecondaryAngle = run.secondary
    dataset.RepresentativeFrameNumber = run.key_frame + 1
    dataset.FrameTime = FRAME_TIME_MS
    dataset.FrameIncrementPointer = 0x00181063
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = run.frames.shape
    dataset.ImagerPixelSpacing = [config.image.field_of_view / config.image.size] * 2
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelIntensityRelationship = "LIN"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.PixelData = run.frames.tobytes() + b"\0" * (run.frames.size % 2)
    dataset["PixelData"].VR = "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """The text of cohort.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _summarize(written: Sequence[_Written], config: PhantomConfig) -> dict[str, Any]:
    """Counts, prevalence and the ceiling: the AUROC of the ischemia that the ECGs show against the label as read."""
    severe = np.array([one.severe for one in written])
    both = 0 < severe.sum() < len(severe)
    ceiling = float(roc_auc_score(severe, [one.ischemia for one in written])) if both else None
    return {
        "pairs": config.patients,
        "ecg_only": config.ecg_only,
        "views": sum(one.views for one in written),
        "severe_percent": _SEVERE,
        "prevalence": float(severe.mean()),
        "ceiling_auroc": ceiling,
    }
