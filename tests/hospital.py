"""A made-up hospital: ECGs in WFDB, DICOM and MUSE XML, runs in RLE and JPEG, and a patient's data in every free place.

Whatever identifies somebody is a word that nothing else would write, so that outputs can be searched for it.
"""

import base64
import csv
import hashlib
import io
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from recordings import LEADS, sine_ecg, write_run, write_wfdb

PLACE, STREET, WARD = "Sankt Plantara", "Bramblewick Street", "Station Wexham"
DOCTOR, TECHNICIAN, CART = "Ophelia Wexbury", "Thorvald Pimmstein", "WEXCART-0099123"
NOTE = "found collapsed near the old quarry"
UID_ROOT = "1.2.826.0.1.3680043.8.498.73915"
STAFF_AND_PLACES = (
    PLACE,
    "Plantara",
    STREET,
    "Bramblewick",
    WARD,
    "Wexham",
    DOCTOR,
    "Wexbury",
    TECHNICIAN,
    "Pimmstein",
)
SEGMENTS = [f"seg_{number}" for number in range(1, 17)]
ACUTE, FAILING = (9,), (11,)  # patients with an infarction when they were recorded, with a weak heart


@dataclass(frozen=True)
class Person:
    """A patient who never was."""

    number: int

    @property
    def last(self) -> str:
        return f"Qu\u00e4stelberg{self.number:02d}"

    @property
    def first(self) -> str:
        return f"Zephyrine{self.number:02d}"

    @property
    def mrn(self) -> str:
        return f"7703319{self.number:02d}4"

    @property
    def born(self) -> tuple[str, str, str]:
        """Year, month, day."""
        return f"19{31 + self.number}", f"{1 + self.number % 9:02d}", f"{11 + self.number % 17:02d}"

    @property
    def recorded(self) -> tuple[str, str, str]:
        return "2019", f"{1 + self.number % 9:02d}", f"{11 + self.number % 17:02d}"

    @property
    def accession(self) -> str:
        return f"ACCQ88{self.number:02d}731"

    @property
    def uid(self) -> str:
        return f"{UID_ROOT}.{self.number}"

    @property
    def place(self) -> str:
        """What this hospital calls a folder of the patient's."""
        return f"{self.last}_{self.first}_{self.mrn}_{''.join(self.born)}"

    def words(self) -> list[str]:
        """Everything that identifies the patient, in the ways that files and programs write it.

        A digest without a key is as good as the number: all numbers are quickly tried.
        """
        dates = [
            text
            for year, month, day in (self.born, self.recorded)
            for text in (
                f"{year}{month}{day}",
                f"{year}-{month}-{day}",
                f"{day}.{month}.{year}",
                f"{month}-{day}-{year}",
                f"{month}/{day}/{year}",
                f"{day}/{month}/{year}",
            )
        ]
        digests = [hashlib.new(kind, self.mrn.encode()).hexdigest()[:16] for kind in ("md5", "sha1", "sha256")]
        return [self.last, self.first, self.mrn, self.accession, self.uid, *dates, *digests]


def words_of(people: Iterable[Person]) -> list[str]:
    """All planted words, of patients, staff and places."""
    mine = [word for person in people for word in person.words()]
    return [*mine, *STAFF_AND_PLACES, CART, "0099123", NOTE, "old quarry", UID_ROOT]


# Writers, one per format: (folder, person, seed) -> the file as a table names it.


def write_wfdb_ecg(folder: Path, person: Person, seed: int) -> Path:
    """A WFDB record named and commented as a technician would."""
    write_wfdb(folder, person.place, sine_ecg(seed))
    header = folder / f"{person.place}.hea"
    first, rest = header.read_text(encoding="utf-8").split("\n", 1)
    year, month, day = person.recorded
    born = ".".join(reversed(person.born))
    comments = f"# Name: {person.first} {person.last}\n# MRN {person.mrn}, born {born}\n# {NOTE}, {DOCTOR}, {PLACE}\n"
    header.write_text(f"{first} 13:47:59 {day}/{month}/{year}\n{rest}{comments}", encoding="utf-8")
    return folder / person.place


def _identified(person: Person) -> dict[str, Any]:
    """Elements of a DICOM header that tell whose file it is."""
    return {
        "SpecificCharacterSet": "ISO_IR 192",
        "PatientName": f"{person.last}^{person.first}",
        "PatientID": person.mrn,
        "PatientBirthDate": "".join(person.born),
        "PatientAddress": STREET,
        "OtherPatientNames": person.last,
        "AccessionNumber": person.accession,
        "StudyID": person.accession,
        "StudyDate": "".join(person.recorded),
        "AcquisitionDateTime": "".join(person.recorded) + "134759",
        "InstitutionName": PLACE,
        "InstitutionAddress": STREET,
        "InstitutionalDepartmentName": WARD,
        "ReferringPhysicianName": DOCTOR,
        "OperatorsName": TECHNICIAN,
        "StationName": WARD,
        "DeviceSerialNumber": CART,
        "StudyDescription": f"{NOTE}, {person.last}",
        "ProtocolName": person.last,
        "PatientComments": NOTE,
        "ImageComments": f"{person.last} {NOTE}",
        "StudyInstanceUID": person.uid,
        "SeriesInstanceUID": f"{person.uid}.1",
        "SOPInstanceUID": f"{person.uid}.1.1",
        "FrameOfReferenceUID": f"{person.uid}.2",
    }


def _coded(value: str, scheme: str, meaning: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def write_dicom_ecg(folder: Path, person: Person, seed: int) -> Path:
    """A 12-lead ECG in DICOM; free texts of its channels, annotations and private elements name the patient."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    signal = np.rint(sine_ecg(seed) * 1000).astype("<i2")
    group = Dataset()
    group.WaveformOriginality, group.MultiplexGroupLabel = "ORIGINAL", f"RHYTHM {person.last}"[:14]
    group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = signal.shape
    group.SamplingFrequency = 500
    group.ChannelDefinitionSequence = []
    for lead in LEADS:
        channel = Dataset()
        channel.ChannelLabel = person.last[:16]
        channel.ChannelSourceSequence = [_coded(f"MDC_ECG_LEAD_{lead}", "MDC", f"{lead} of {person.last}")]
        channel.ChannelSensitivity = 1
        channel.ChannelSensitivityUnitsSequence = [_coded("uV", "UCUM", person.last)]
        channel.WaveformBitsStored = 16
        group.ChannelDefinitionSequence.append(channel)
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 16, "SS"
    group.WaveformData = signal.T.tobytes()
    group["WaveformData"].VR = "OW"
    note = Dataset()
    note.UnformattedTextValue = f"{person.last}: {NOTE}"
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.9.1.1"
    for name, value in {**_identified(person), "ManufacturerModelName": f"{DOCTOR} 2"}.items():
        setattr(dataset, name, value)
    dataset.WaveformSequence, dataset.WaveformAnnotationSequence = [group], [note]
    dataset.private_block(0x0011, f"{PLACE}", create=True).add_new(0x01, "LO", person.mrn)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{person.place}.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_muse_ecg(folder: Path, person: Person, seed: int) -> Path:
    """A MUSE XML export with its demographics, order, staff and statements filled in."""

    def elements(**texts: str) -> str:
        return "".join(f"<{name}>{text}</{name}>" for name, text in texts.items())

    born, recorded = ("-".join((month, day, year)) for year, month, day in (person.born, person.recorded))
    patient = elements(
        PatientID=person.mrn, PatientLastName=person.last, PatientFirstName=person.first, DateofBirth=born, Gender="F"
    )
    test = elements(
        DataType="RESTING",
        SiteName=PLACE,
        LocationName=WARD,
        AcquisitionDevice=f"{DOCTOR} 2",
        AcquisitionDate=recorded,
        AcquisitionTechLastName=TECHNICIAN,
        OverreaderLastName=DOCTOR,
        CartNumber=CART,
        TestReason=NOTE,
    )
    order = elements(UniqueOrderID=person.accession, OrderingMDLastName=DOCTOR, AdmitDiagnosis=NOTE)
    leads = ""
    for lead, row in zip(LEADS, np.rint(sine_ecg(seed) * 1000).astype("<i2"), strict=True):
        if lead in ("I", "II") or lead.startswith("V"):
            leads += "<LeadData>" + elements(
                LeadSampleCountTotal=str(len(row)),
                LeadAmplitudeUnitsPerBit="1",
                LeadAmplitudeUnits="MICROVOLTS",
                LeadID=lead,
                LeadSampleSize="2",
                LeadDataCRC32=str(zlib.crc32(row.tobytes())),
                WaveFormData=base64.encodebytes(row.tobytes()).decode(),
            )
            leads += "</LeadData>"
    wave = elements(WaveformType="Rhythm", SampleBase="500", SampleExponent="0") + leads
    said = elements(StmtText=f"{person.last} {NOTE}")
    path = folder / f"{person.place}.xml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE RestingECG SYSTEM "restecg.dtd">\n'
        f"<!-- {person.last} --><RestingECG><MuseInfo>{elements(MuseVersion=PLACE)}</MuseInfo>"
        f"<PatientDemographics>{patient}</PatientDemographics><TestDemographics>{test}</TestDemographics>"
        f"<Order>{order}</Order><Diagnosis><DiagnosisStatement>{said}</DiagnosisStatement></Diagnosis>"
        f"<Waveform>{wave}</Waveform></RestingECG>",
        encoding="utf-8",
    )
    return path


def write_runs(folder: Path, person: Person, seed: int) -> Path:
    """A study of one run, RLE where `seed` is even, else JPEG baseline; with overlay, curve and private elements."""
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, RLELossless

    frames = np.random.default_rng(seed).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    study = folder / person.place
    path = study / f"{person.last}_{person.accession}.dcm"
    angles = {"PositionerPrimaryAngle": -30 + seed, "PositionerSecondaryAngle": 20}
    write_run(path, frames, RepresentativeFrameNumber=2, BurnedInAnnotation="NO", **angles, **_identified(person))
    dataset = pydicom.dcmread(path)
    dataset.private_block(0x0019, PLACE, create=True).add_new(0x01, "LO", f"{person.last} {person.mrn}")
    dataset.add_new(0x60004000, "LT", f"{person.last} {NOTE}")
    if seed % 2 == 0:
        dataset.compress(RLELossless, generate_instance_uid=False)
    else:
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.PixelData = encapsulate([_jpeg(frame) for frame in frames])
        dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=False)
    (study / f"{person.last}.txt").write_text(f"{person.last} {NOTE}")
    return study


def _jpeg(frame: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95, comment=STREET.encode())
    return buffer.getvalue()


def write_features(folder: Path, person: Person, seed: int) -> Path:
    """A study of stored backbone tokens; the file's own description names the patient."""
    import torch
    from safetensors.torch import save_file

    study = folder / person.place
    study.mkdir(parents=True, exist_ok=True)
    tokens = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 4, 8)).astype(np.float16))
    save_file({"tokens": tokens}, study / f"{person.last}.safetensors", {"patient": f"{person.last} {person.mrn}"})
    return study


ECG_WRITERS: tuple[Callable[[Path, Person, int], Path], ...] = (write_wfdb_ecg, write_dicom_ecg, write_muse_ecg)


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A CSV of rows that all have the same columns."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_hospital(folder: Path, splits: Sequence[str], features: Iterable[int] = ()) -> tuple[Path, Path]:
    """Two tables and their files: one patient per entry of `splits`, those numbered in `features` with stored features.

    Formats take turns. Odd patients have a severe stenosis. Tables name patients, as hospitals' do.
    """
    ecgs, studies = [], []
    for number, split in enumerate(splits):
        person = Person(number)
        written = ECG_WRITERS[number % 3](folder / "ecg" / PLACE, person, number)
        write_study = write_features if number in set(features) else write_runs
        study = write_study(folder / "cath" / PLACE, person, number)
        date = "-".join(person.recorded)
        common = {"patient_id": person.mrn, "name": f"{person.first} {person.last}", "born": "-".join(person.born)}
        known = {"age": 40 + number, "sex": "MF"[number % 2], "site": "A", "split": split}
        known |= {"acute": int(number in ACUTE), "lvef": 35 if number in FAILING else 60}
        ecgs.append({**common, "date": date, "ecg_path": written.relative_to(folder).as_posix(), **known})
        segments = dict.fromkeys(SEGMENTS, 0) | {"seg_6": 90 if number % 2 else 20}
        report = {"accession": person.accession, "report": NOTE, "operator": DOCTOR}
        studies.append(
            {**common, **report, "date": date, "study_path": study.relative_to(folder).as_posix(), **segments}
        )
    return write_table(folder / "ecgs.csv", ecgs), write_table(folder / "studies.csv", studies)
