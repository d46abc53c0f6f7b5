"""Which kinds of identifying fields are found in which formats; never what they hold."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from recordings import LEADS, sine_ecg, write_wfdb

from stence_dist.check import identifiers
from stence_dist.check.headers import of_dicom, of_ecg, read_header
from stence_dist.check.identifiers import of_columns, of_names, of_texts


def test_dicom_kinds() -> None:
    """Patient, staff, dates, private and overlay elements, also within sequences; empty ones do not count."""
    item = Dataset()
    item.PersonName = "X^Y"
    item.AccessionNumber = "7"
    item.ReferencedSOPInstanceUID = "1.2.3"
    dataset = Dataset()
    dataset.PatientName = "A^B"
    dataset.PatientID = ""
    dataset.PatientBirthDate = "19610203"
    dataset.ImageComments = "words"
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.RequestAttributesSequence = [item]
    dataset.add_new(0x00091001, "LO", "private")
    dataset.add_new(0x60003000, "OW", b"\0\1")
    assert of_dicom(dataset) == {
        identifiers.PATIENT_NAME,
        identifiers.BIRTH,
        identifiers.TEXT,
        identifiers.UNIQUE,
        identifiers.STAFF,
        identifiers.ORDER,
        identifiers.PRIVATE,
        identifiers.OVERLAY,
    }
    assert of_dicom(Dataset()) == set()


def test_a_dicom_value_is_not_parsed(tmp_path: Path) -> None:
    """A date and a number that are none: the fields are found, and nothing is raised or said."""
    path = Path(str(get_testdata_file("CT_small.dcm")))
    content = path.read_bytes()
    date = content.index(b"20040119")
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(content.replace(content[date : date + 8], b"ABCDEFGH"))
    kinds = of_dicom(read_header(broken))
    assert {identifiers.DATE, identifiers.PATIENT_NAME, identifiers.UNIQUE, identifiers.PRIVATE} <= kinds


def test_a_dicom_waveform() -> None:
    """pydicom's sample: name, number and birth date are filled by its own listing; channels are in microvolts."""
    kinds, units = of_ecg(Path(str(get_testdata_file("waveform_ecg.dcm"))))
    for kind in (identifiers.PATIENT_NAME, identifiers.PATIENT_NUMBER, identifiers.BIRTH, identifiers.PRIVATE):
        assert kind in kinds
    assert units == ("uV",)


@pytest.mark.parametrize(
    ("line", "kinds"),
    [
        ("", set()),
        ("#", set()),
        ("# Age: 61", {identifiers.AGE_SEX}),
        ("#Sex: ", set()),
        ("#Dx: 426783006", {identifiers.DIAGNOSIS}),
        ("# seen in the ward", {identifiers.TEXT}),
        ("# admitted 03-FEB-1961", {identifiers.TEXT, identifiers.DATE}),
        ("# admitted 3.2.1961", {identifiers.TEXT, identifiers.DATE}),
    ],
)
def test_wfdb_comments(tmp_path: Path, line: str, kinds: set[str]) -> None:
    """Comments by their word; a date in free text is seen."""
    write_wfdb(tmp_path, "r", sine_ecg(0))
    with open(tmp_path / "r.hea", "a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    assert of_ecg(tmp_path / "r") == (kinds, ("mV",))


def test_wfdb_date_of_the_recording(tmp_path: Path) -> None:
    """A time of day and a date stand behind the number of samples."""
    write_wfdb(tmp_path, "r", sine_ecg(0))
    header = tmp_path / "r.hea"
    first, rest = header.read_text().split("\n", 1)
    header.write_text(f"{first} 10:20:30 03/02/1961\n{rest}")
    assert of_ecg(header)[0] == {identifiers.DATE}


def edf(tmp_path: Path, patient: str, recording: str, date: str) -> Path:
    """The header of an EDF file of one signal in uV."""
    fixed = f"{'0':8}{patient:80}{recording:80}{date:8}{'10.20.30':8}{512:<8}{'':44}{1:<8}{1:<8}{1:<4}"
    signal = f"{'I':16}{'':80}{'uV':8}{-100:<8}{100:<8}{-100:<8}{100:<8}{'':80}{10:<8}{'':32}"
    path = tmp_path / "r.edf"
    path.write_bytes((fixed + signal).encode() + bytes(20))
    return path


def test_edf_fields(tmp_path: Path) -> None:
    """EDF+ writes X where nothing is said, and 01.01.85 for no date."""
    anonymous = edf(tmp_path, "X X X X", "Startdate X X X X", "01.01.85")
    assert of_ecg(anonymous) == (frozenset(), ("uV",))
    kinds, _ = of_ecg(edf(tmp_path, "7 F 03-FEB-1961 A_B", "Startdate 04-MAY-2020 77 C_D cart", "04.05.20"))
    assert kinds == {identifiers.PATIENT_NAME, identifiers.DATE, identifiers.STAFF}


def test_xml_exports(sample_data: Path) -> None:
    """Real exports, against their elements as a person reads them (`patientid`, `lastname`, `DateofBirth`, ...).

    The MUSE file was scrubbed of names, dates and numbers; the aECG has all of them; the Philips one names an
    institution, an operator and a date of birth.
    """
    muse, units = of_ecg(sample_data / "muse_xml_ml4h" / "muse_scrubbed_1.xml")
    assert units == ("uV",)
    assert not muse & {identifiers.PATIENT_NAME, identifiers.PATIENT_NUMBER, identifiers.BIRTH, identifiers.STAFF}
    assert {identifiers.AGE_SEX, identifiers.TEXT, identifiers.PLACE} <= muse
    aecg, units = of_ecg(sample_data / "hl7_aecg_fda" / "subject1_0.xml")
    assert units == ("uV",)
    assert {
        identifiers.PATIENT_NAME,
        identifiers.PATIENT_NUMBER,
        identifiers.BIRTH,
        identifiers.STAFF,
        identifiers.PLACE,
        identifiers.DATE,
        identifiers.UNIQUE,
    } <= aecg
    philips, units = of_ecg(sample_data / "philips_xml" / "1_04_01__2020-5-18_15-48-11.xml")
    assert units == ("uV",)
    assert {identifiers.PATIENT_NAME, identifiers.BIRTH, identifiers.STAFF, identifiers.PLACE} <= philips
    cardiosoft, units = of_ecg(sample_data / "cardiosoft_xml_ml4h" / "ukbb_scrubbed.xml")
    assert units == ("uV",)
    assert {identifiers.PATIENT_NAME, identifiers.PATIENT_NUMBER, identifiers.BIRTH} <= cardiosoft
    assert identifiers.STAFF not in cardiosoft


def test_arrays(tmp_path: Path) -> None:
    """Entries that nothing needs to read the signal: of a sidecar, of a .npz file, and numbers of exams in HDF5."""
    h5py = pytest.importorskip("h5py")
    declared = {"sampling_rate": 500, "unit": "mV", "leads": list(LEADS)}
    np.save(tmp_path / "a.npy", sine_ecg(0))
    (tmp_path / "a.json").write_text(json.dumps(declared))
    assert of_ecg(tmp_path / "a.npy") == (set(), ("mV",))
    (tmp_path / "a.json").write_text(json.dumps({**declared, "patient": "A B"}))
    assert of_ecg(tmp_path / "a.npy") == ({identifiers.OTHER}, ("mV",))
    np.savez(tmp_path / "b.npz", signal=sine_ecg(0), **declared)
    assert of_ecg(tmp_path / "b.npz")[0] == set()
    np.savez(tmp_path / "b.npz", signal=sine_ecg(0), patient="A B", **declared)
    assert of_ecg(tmp_path / "b.npz")[0] == {identifiers.OTHER}
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["ecg"] = sine_ecg(0)
    assert of_ecg(tmp_path / "c.h5")[0] == set()
    with h5py.File(tmp_path / "c.h5", "a") as file:
        file["exam_id"] = np.arange(3)
    assert of_ecg(tmp_path / "c.h5")[0] == {identifiers.OTHER}
    torch.save([("A B", torch.zeros(12, 10))], tmp_path / "d.pt")
    assert of_ecg(tmp_path / "d.pt")[0] == {identifiers.NOT_SEARCHED}


def test_a_header_that_cannot_be_parsed(tmp_path: Path) -> None:
    """Damaged headers are a kind of their own: nothing is known of them."""
    broken = tmp_path / "r.xml"
    broken.write_text("<RestingECG><Patient")
    assert of_ecg(broken) == ({identifiers.NOT_SEARCHED}, ())
    assert of_ecg(tmp_path / "absent") == ({identifiers.NOT_SEARCHED}, ())


def test_long_names_of_elements_take_no_time(tmp_path: Path) -> None:
    """A megabyte of the word that several patterns begin with: not searched, in a second of work."""
    path = tmp_path / "r.xml"
    path.write_text(f"<RestingECG><{'patient' * 150_000}>A B</{'patient' * 150_000}></RestingECG>")
    began = time.process_time()
    assert of_ecg(path) == ({identifiers.NOT_SEARCHED}, ())
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("r001.hea", set()),
        ("JS20004.mat", set()),
        ("p1961-02-03.xml", {identifiers.NAME_DATE}),
        ("19610203_a.dcm", {identifiers.NAME_DATE, identifiers.NAME_DIGITS}),
        ("2020-5-18_15-48-11.xml", {identifiers.NAME_DATE}),
        ("at_15-48-11.xml", set()),
        ("1.2.840.10008.16.12.34", set()),
        ("3.2.1961", {identifiers.NAME_DATE}),
        ("ecg-0000123456", {identifiers.NAME_DIGITS}),
        ("19619999", {identifiers.NAME_DIGITS}),
    ],
)
def test_names(name: str, kinds: set[str]) -> None:
    """Dates need a month and a day; six digits in a row may be a patient's number."""
    assert of_names(("folder", name)) == kinds


def test_headings_and_index() -> None:
    """Headings of columns that a build does not read; sites and devices of an index."""
    assert of_columns(["Last name", "DOB", "report"]) == {
        identifiers.PATIENT_NAME,
        identifiers.BIRTH,
        identifiers.TEXT,
    }
    assert of_columns(["file_name", "heart_rate", "update"]) == {identifiers.DATE}
    assert of_texts(("A", "MAC 5500")) == set()
    assert of_texts(("cart 123456",)) == {identifiers.DEVICE}
