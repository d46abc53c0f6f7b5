"""DICOM, EDF, HDF5 and torch ECGs against other packages, closed forms, and files that are damaged on purpose."""

import json
import os
import sys
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import peak_memory
import pydicom
import pyedflib
import pytest
import torch
import wfdb
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from wfdb.io.convert.edf import wfdb_to_edf

from stence_dist.data.readers import ReaderError
from stence_dist.data.readers.ecg import read_waveform
from stence_dist.data.readers.ecg.dicom_waveform import is_dicom_waveform, read_dicom_waveform
from stence_dist.data.readers.ecg.edf import is_edf, read_edf
from stence_dist.data.readers.ecg.hdf5 import is_hdf5, read_hdf5
from stence_dist.data.readers.ecg.tensors import is_tensors, read_tensors
from stence_dist.data.readers.ecg.waveform import Waveform, to_record
from stence_dist.ecg import LEADS

Signal = NDArray[np.float64]
NUMBERS = (1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8)  # of LEADS in SCPECG and MDC, from PS3.16 CID 3001


@pytest.fixture
def signal(make_ecg: Callable[..., Signal]) -> Signal:
    """(12, 2000) mV at 500 Hz that obeys the limb lead relations."""
    return make_ecg(1)


@pytest.fixture
def digital(signal: Signal) -> NDArray[np.int64]:
    """The same in microvolts, (12, 2000) integers."""
    return np.rint(signal * 1000).astype(np.int64)


def start_of(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(65536)


def refusal(read: Callable[[], Waveform], *private: str) -> str:
    """The message of a refusal, which must come in a second of work, without memory or a word of `private`."""
    began = time.process_time()
    tracemalloc.start()
    with peak_memory.less_than(100), pytest.raises(ReaderError) as caught:  # what libraries take unseen counts
        read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - began < 1
    assert peak < 30e6
    message = str(caught.value)
    assert not any(word in message for word in ("/tmp", "pytest", *private))
    return message


def declare(path: Path, **changes: object) -> Path:
    path.with_suffix(".json").write_text(json.dumps({"sampling_rate": 500, "unit": "mV", "leads": LEADS, **changes}))
    return path


# ---------------------------------------------------------------------------------------------------------------- DICOM


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def lead_codes(leads: tuple[str, ...] = LEADS) -> list[Dataset]:
    return [code(f"5.6.3-9-{NUMBERS[LEADS.index(lead)]}", "SCPECG", "") for lead in leads]


def group(
    values: NDArray[Any],
    sources: list[Dataset],
    *,
    kind: str = "SS",
    unit: str = "uV",
    channel: dict[str, object] | None = None,
    **changes: object,
) -> Dataset:
    """A multiplex group of stored values (channels, samples), one unit per value, some elements changed."""
    item = Dataset()
    item.WaveformOriginality, item.MultiplexGroupLabel = "ORIGINAL", "RHYTHM"
    item.NumberOfWaveformChannels, item.NumberOfWaveformSamples = values.shape
    item.SamplingFrequency = 500
    item.ChannelDefinitionSequence = []
    for source in sources:
        definition = Dataset()
        definition.ChannelSourceSequence = [source]
        definition.ChannelSensitivity = 1
        definition.ChannelSensitivityUnitsSequence = [code(unit, "UCUM", "")]
        definition.WaveformBitsStored = 8 * values.itemsize
        for name, value in (channel or {}).items():
            setattr(definition, name, value)
        item.ChannelDefinitionSequence.append(definition)
    item.WaveformBitsAllocated = 8 * values.itemsize
    item.WaveformSampleInterpretation = kind
    item.WaveformData = values.T.tobytes()
    item["WaveformData"].VR = "OB" if values.itemsize == 1 else "OW"
    for name, value in changes.items():
        setattr(item, name, value)
    return item


def write_dicom(path: Path, *groups: Dataset, syntax: str = ExplicitVRLittleEndian, **elements: object) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.9.1.1"
    dataset.SOPInstanceUID = "1.2.3"
    dataset.PatientName = "Doe^Jane"
    dataset.WaveformSequence = list(groups)
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_dicom_equals_pydicom() -> None:
    """The real file that comes with pydicom, against its own decoder: 12 leads of the rhythm, not the median beat."""
    path = get_testdata_file("waveform_ecg.dcm", download=False)
    if path is None:
        pytest.skip("this pydicom does not bring waveform_ecg.dcm")
    expected = pydicom.dcmread(path).waveform_array(0).T / 1000
    assert is_dicom_waveform(Path(path), start_of(Path(path)))
    waveform = read_dicom_waveform(Path(path))
    np.testing.assert_allclose(waveform.signal, expected, rtol=1e-12)
    assert waveform.leads == LEADS
    assert waveform.sampling_rate == 1000
    record = to_record(waveform)
    assert record.flags["einthoven_residual"] < 0.005
    assert not record.flags["limb_leads_break"]
    assert record.flags["device"] == "el250"
    assert (record.flags["high_pass_hz"], record.flags["low_pass_hz"]) == (0.05, 300)


def test_dicom_is_known_by_its_class(tmp_path: Path, digital: Signal, make_run: Callable[..., None]) -> None:
    """The four ECG classes, with and without meta information; no image, no other waveform, no damaged header."""
    item = group(digital.astype(np.int16), lead_codes())
    path = tmp_path / "a"
    for number in ("1.1", "1.2", "1.3", "1.4"):
        write_dicom(path, item, SOPClassUID=f"1.2.840.10008.5.1.4.1.1.9.{number}")
        assert is_dicom_waveform(path, start_of(path))
    write_dicom(path, item, SOPClassUID="1.2.840.10008.5.1.4.1.1.9.2.1")  # hemodynamic
    assert not is_dicom_waveform(path, start_of(path))
    make_run(tmp_path / "xa", np.zeros((2, 8, 8), np.uint8), ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.9.1.1")
    assert not is_dicom_waveform(tmp_path / "xa", start_of(tmp_path / "xa"))
    make_run(tmp_path / "bare", np.zeros((2, 8, 8), np.uint8), SOPClassUID="1.2.840.10008.5.1.4.1.1.9.1.1")
    assert is_dicom_waveform(tmp_path / "bare", start_of(tmp_path / "bare"))
    for content in (b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM\2\0\0\0UL\4", b"\0" * 200, b""):
        path.write_bytes(content)
        assert not is_dicom_waveform(path, content)


def test_dicom_without_preamble_says_what_it_lacks(
    tmp_path: Path, digital: Signal, make_run: Callable[..., None]
) -> None:
    """With and without meta information; an image that refers to an ECG is none."""
    path = tmp_path / "a"
    content = write_dicom(path, group(digital.astype(np.int16), lead_codes())).read_bytes()
    for start in (132, content.index(b"\x08\0\x16\0")):
        path.write_bytes(content[start:])
        assert "lacks its header (preamble)" in refusal(lambda: read_waveform(path))
    make_run(path, np.zeros((2, 8, 8), np.uint8), ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.9.1.1")
    path.write_bytes(path.read_bytes()[132:])
    assert "no known format" in refusal(lambda: read_waveform(path))


def test_dicom_takes_the_original_recording(tmp_path: Path, digital: Signal) -> None:
    """Of a median beat, derived, short, unnamed and one-lead groups around it; each other is taken once it is gone."""
    values = digital.astype(np.int16)
    groups = {
        "derived": group(values + 1, lead_codes(), WaveformOriginality="DERIVED"),
        "median": group(values[:, :600] + 2, lead_codes(), MultiplexGroupLabel="MEDIAN BEAT"),
        "strip": group(np.tile(values[1:2], 3), lead_codes(("II",))),
        "unnamed": group(np.tile(values, 2) + 3, lead_codes(), MultiplexGroupLabel=""),
        "short": group(values[:, :900], lead_codes()),
        "rhythm": group(values, lead_codes()),
    }
    path = tmp_path / "a.dcm"
    for name in ("rhythm", "short", "unnamed", "strip", "derived"):
        expected = np.frombuffer(groups[name].WaveformData, np.int16)[:12] / 1000
        write_dicom(path, *groups.values())
        found = read_dicom_waveform(path).signal
        np.testing.assert_allclose(found[:, 0], expected[: len(found)], rtol=1e-12)
        assert found.shape[1] == groups[name].NumberOfWaveformSamples
        del groups[name]
    write_dicom(path, *groups.values())
    assert "none of 1 waveforms" in refusal(lambda: read_dicom_waveform(path))


def test_dicom_leads_go_by_code(tmp_path: Path, digital: Signal) -> None:
    """SCPECG and MDC codes; text counts where the code is another's, and refuses where it contradicts."""
    values = np.concatenate([digital, digital[:1]]).astype(np.int16)
    numbered = list(zip(LEADS, NUMBERS, strict=True))
    schemes = {
        "SCPECG": [code(f"5.6.3-9-{number}", "SCPECG", "?") for _, number in numbered],
        "MDC": [code(f"2:{number}", "MDC", f"{lead}, mine") for lead, number in numbered],
        "MDC by name": [code(f"MDC_ECG_LEAD_{lead.upper()}", "MDC", "?") for lead, _ in numbered],
        "local": [code(f"2:{n}", "99LOCAL", f"Lead {LEADS[n]} (mine)") for n in range(12)],
    }
    for sources in schemes.values():
        path = write_dicom(tmp_path / "a.dcm", group(values, [*sources, code("5.6.3-9-16", "SCPECG", "Lead I")]))
        waveform = read_dicom_waveform(path)
        assert waveform.leads == LEADS
        np.testing.assert_allclose(waveform.signal, digital / 1000, rtol=1e-12)
    write_dicom(path, group(values[:12], [*lead_codes()[:11], lead_codes()[0]]))
    assert "lead I is there twice" in refusal(lambda: read_dicom_waveform(path))
    by_channel = [code(f"5.6.3-9-{number}", "SCPECG", f"Lead {lead}") for number, lead in enumerate(LEADS, 1)]
    write_dicom(path, group(values[:12], by_channel))
    assert "lead V1 by its code and lead III by the code's meaning" in refusal(lambda: read_dicom_waveform(path))


def test_dicom_lead_by_its_label_where_its_code_says_nothing(tmp_path: Path, digital: Signal) -> None:
    """A vendor's own code and meaning; the label of a lead whose code is known does not count."""
    item = group(digital.astype(np.int16), [code(f"X{n}", "99LOCAL", "channel") for n in range(12)])
    for lead, definition in zip(LEADS, item.ChannelDefinitionSequence, strict=True):
        definition.ChannelLabel = lead
    assert read_dicom_waveform(write_dicom(tmp_path / "a.dcm", item)).leads == LEADS
    item = group(digital.astype(np.int16), lead_codes())
    for definition in item.ChannelDefinitionSequence:
        definition.ChannelLabel = "V1"
    assert read_dicom_waveform(write_dicom(tmp_path / "a.dcm", item)).leads == LEADS


def test_dicom_gaps_of_16_bits(tmp_path: Path, digital: Signal) -> None:
    """The lowest signed 16-bit value is a missing sample, though no padding value is stated."""
    values = digital.astype(np.int16)
    values[6, 50:90] = -32768
    found = np.isnan(read_dicom_waveform(write_dicom(tmp_path / "a.dcm", group(values, lead_codes()))).signal)
    assert found[6, 50:90].all()
    assert found.sum() == 40


@pytest.mark.parametrize(
    ("kind", "dtype"), [("SB", "i1"), ("UB", "u1"), ("SS", "i2"), ("US", "u2"), ("SL", "i4"), ("UL", "u4")]
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_dicom_samples(tmp_path: Path, kind: str, dtype: str, syntax: str) -> None:
    """Every sample type, padding value, sensitivity, correction, baseline and unit, against PS3.3 C.10.9 by hand."""
    rng = np.random.default_rng(0)
    limits = np.iinfo(dtype)
    values = rng.integers(limits.min, limits.max, (12, 301), dtype=dtype)
    values[3, 40:50] = limits.max
    scale = {"ChannelSensitivity": "2.5", "ChannelSensitivityCorrectionFactor": "0.98", "ChannelBaseline": "-0.125"}
    item = group(
        values, lead_codes(), kind=kind, unit="mV", channel=dict(scale), WaveformPaddingValue=values[3, 40].tobytes()
    )
    item["WaveformPaddingValue"].VR = "OB" if values.itemsize == 1 else "OW"
    found = read_dicom_waveform(write_dicom(tmp_path / "a.dcm", item, syntax=syntax)).signal
    expected = np.where(values == limits.max, np.nan, values * 2.5 * 0.98 - 0.125)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.isnan(found).sum() >= 10


def test_dicom_keeps_all_but_the_device_inside(tmp_path: Path, digital: Signal) -> None:
    """A model's name, and filters that all leads share, come out; filters that differ, and names, do not."""
    item = group(digital.astype(np.int16), lead_codes(), channel={"FilterLowFrequency": "0.05", "ChannelLabel": "Doe"})
    item.ChannelDefinitionSequence[0].FilterHighFrequency = "150"
    path = write_dicom(tmp_path / "a.dcm", item, ManufacturerModelName="ELI 250", InstitutionName="Doe Hospital")
    waveform = read_dicom_waveform(path)
    assert to_record(waveform).flags.items() >= {"device": "ELI 250", "high_pass_hz": 0.05}.items()
    assert waveform.device.low_pass is None
    assert "Doe" not in repr(waveform)
    path.write_bytes(path.read_bytes().replace(b"0.05", b"Doe "))  # nobody needs it, so it refuses nothing
    assert read_dicom_waveform(path).device.high_pass is None


def test_bad_dicom_waveforms_are_refused(tmp_path: Path, digital: Signal) -> None:
    """Companded, mislabeled, oversized, truncated, skewed and unscaled groups; deflated files, still deflated."""
    values = digital.astype(np.int16)
    path = tmp_path / "Doe.dcm"

    def message(*groups: Dataset, **elements: Any) -> str:
        write_dicom(path, *groups, **elements)
        return refusal(lambda: read_dicom_waveform(path), "Doe")

    assert "none of 0 waveforms" in message()
    assert "mu-law" in message(group(values, lead_codes(), kind="MB"))
    assert "not 8, 16 or 32 bit" in message(group(values, lead_codes(), kind="SL"))
    assert "at most" in message(group(values, lead_codes(), NumberOfWaveformSamples=10**9))
    assert "each of its channels" in message(group(values, lead_codes(), NumberOfWaveformChannels=13))
    assert "has 48000 bytes, its header promises 72000" in message(
        group(values, lead_codes(), NumberOfWaveformSamples=3000)
    )
    assert "promises 47976" in message(group(values, lead_codes(), NumberOfWaveformSamples=1999))
    assert "no sampling frequency" in message(group(values, lead_codes(), SamplingFrequency=None))
    assert "no sensitivity" in message(group(values, lead_codes(), channel={"ChannelSensitivity": None}))
    assert "none with a unit" in message(group(values, lead_codes(), channel={"ChannelSensitivityUnitsSequence": []}))
    assert "the unit is not known" in message(group(values, lead_codes(), unit="mm[Hg]"))
    skewed = group(values, lead_codes(), channel={"ChannelSampleSkew": "0"})
    skewed.ChannelDefinitionSequence[5].ChannelSampleSkew = "0.9"
    read_dicom_waveform(write_dicom(path, skewed))
    skewed.ChannelDefinitionSequence[5].ChannelSampleSkew = "250"
    assert "250.0 samples apart" in message(skewed)
    flat = group(np.zeros((12, 20_000_000 // 12), np.int16), lead_codes())
    assert "deflated" in message(flat, syntax=DeflatedExplicitVRLittleEndian)

    whole = write_dicom(path, group(values, lead_codes())).read_bytes()
    for length in range(300, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        assert refusal(lambda: read_dicom_waveform(path), "Doe")
    place = whole.index((48000).to_bytes(4, "little"))  # the length of WaveformData, and of the sequence around it
    around = whole.index(b"\x00\x54\x00\x01SQ\0\0") + 8
    path.write_bytes(whole[:place] + (40000).to_bytes(4, "little") + whole[place + 4 :])
    assert refusal(lambda: read_dicom_waveform(path), "Doe")
    for number in (place, around):
        path.write_bytes(whole[:number] + (0xFFFF_FF00).to_bytes(4, "little") + whole[number + 4 :])
        tracemalloc.start()
        found = read_dicom_waveform(path).signal  # what is there is right
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        np.testing.assert_allclose(found, digital / 1000, rtol=1e-12)
        assert peak < 30e6


# ------------------------------------------------------------------------------------------------------------------ EDF


def write_edf(
    path: Path,
    values: list[NDArray[Any]],
    labels: list[str],
    *,
    dimension: str = "uV",
    physical: tuple[int, int] = (-3276, 3276),
    records: int | None = None,
    reserved: str = "",
    prefiltering: str = "HP:0.05Hz LP:150Hz N:50Hz",
    sample: int = 2,
) -> Path:
    """EDF of stored values by hand after https://www.edfplus.info/specs/edf.html: records of one second."""
    count, seconds = len(values), 4
    ranges = (-(2 ** (8 * sample - 1)), 2 ** (8 * sample - 1) - 1)
    samples = [row.size // seconds for row in values]
    columns: list[tuple[list[object], int]] = [
        (list(labels), 16),
        ([""] * count, 80),
        ([dimension if "Annotations" not in label else "" for label in labels], 8),
        ([physical[0]] * count, 8),
        ([physical[1]] * count, 8),
        ([ranges[0]] * count, 8),
        ([ranges[1]] * count, 8),
        ([prefiltering] * count, 80),
        (list(samples), 8),
        ([""] * count, 32),
    ]
    fixed: list[tuple[object, int]] = [
        ("X F 01-JAN-1950 Jane_Doe", 80),
        ("Startdate 02-MAR-2002 X Dr_Doe Machine", 80),
        ("02.03.02", 8),
        ("10.00.00", 8),
        (256 * (count + 1), 8),
        (reserved, 44),
        (seconds if records is None else records, 8),
        (1, 8),
        (count, 4),
    ]
    magic = b"0       " if sample == 2 else b"\xffBIOSEMI"
    texts = [(cell, width) for cells, width in columns for cell in cells]
    header = b"".join(str(cell).encode("latin-1").ljust(width) for cell, width in [*fixed, *texts])
    blocks = [
        b"".join(value.astype("<i4").tobytes()[4 * n : 4 * n + sample] for n in range(value.size))
        for second in range(seconds)
        for row, size in zip(values, samples, strict=True)
        for value in [row[second * size : (second + 1) * size]]
    ]
    path.write_bytes(magic + header + b"".join(blocks))
    return path


EDF_LABELS = ["ECG I", "EKG II", "III", "ecg avr", "Lead aVL", "aVF", "EKG-V1", "ECG V2", "V3", "V4", "V5", "V6"]


@pytest.mark.parametrize("sample", [2, 3])
def test_edf_equals_the_closed_form(tmp_path: Path, digital: NDArray[np.int64], sample: int) -> None:
    """EDF and BDF: the linear map between the stated ranges, by hand; other signals of other rates are left out."""
    other = np.zeros(40, np.int64)
    path = write_edf(tmp_path / "a.edf", [other, *digital], ["Resp", *EDF_LABELS], sample=sample)
    assert is_edf(path, start_of(path))
    waveform = read_edf(path)
    low, high = -(2 ** (8 * sample - 1)), 2 ** (8 * sample - 1) - 1
    expected = (-3276 + (digital - low) * (2 * 3276 / (high - low))) / 1000
    np.testing.assert_allclose(waveform.signal, expected, atol=1e-12)
    assert waveform.leads == LEADS
    assert waveform.sampling_rate == 500
    assert (waveform.device.high_pass, waveform.device.low_pass) == (0.05, 150)
    assert "Doe" not in repr(waveform)


def test_edf_of_pyedflib(tmp_path: Path, signal: Signal) -> None:
    """What pyedflib writes as EDF+ from millivolts comes back within a step of its digital range, as it truncates."""
    path = tmp_path / "\u00e4.edf"
    writer = pyedflib.EdfWriter(str(path), 12, pyedflib.FILETYPE_EDFPLUS)
    for number, lead in enumerate(LEADS):
        fields = {"label": f"ECG {lead}", "dimension": "mV", "sample_frequency": 500}
        ranges = {"physical_min": -4, "physical_max": 4, "digital_min": -32768, "digital_max": 32767}
        writer.setSignalHeader(number, {**fields, **ranges, "transducer": "", "prefilter": ""})
    writer.writeSamples(list(signal))
    writer.close()
    waveform = read_edf(path)
    assert np.abs(waveform.signal - signal).max() <= 8 / 65535 + 1e-9
    assert waveform.device.high_pass is None


def test_edf_counts_signals_without_annotations(tmp_path: Path, digital: NDArray[np.int64]) -> None:
    """An annotation signal before the leads, which pyedflib does not count: the leads are not shifted by one."""
    note = np.frombuffer(b"".join(f"+{n}\x14\x14".encode().ljust(40, b"\0") for n in range(4)), "<i2").astype(np.int64)
    plain = read_edf(write_edf(tmp_path / "a.edf", list(digital), EDF_LABELS)).signal
    labels = ["EDF Annotations", *EDF_LABELS]
    for reserved in ("EDF+C", ""):  # in plain EDF that is a name as any other
        path = write_edf(tmp_path / "b.edf", [note, *digital], labels, reserved=reserved)
        np.testing.assert_array_equal(read_edf(path).signal, plain)


def test_edf_that_breaks_the_rules_of_text(tmp_path: Path, digital: NDArray[np.int64]) -> None:
    """A name beyond ASCII, EDF+ without annotations or with free text, odd dates, zeros after a unit: all read."""
    path = write_edf(tmp_path / "a.edf", list(digital), EDF_LABELS)
    whole, plain = path.read_bytes(), read_edf(path).signal
    for place, text in ((8, "J\u00fcrgen".encode()), (88, b"12-OKT-2020"), (168, b"2020/5/1"), (192, b"EDF+C")):
        path.write_bytes(whole[:place] + text + whole[place + len(text) :])
        np.testing.assert_array_equal(read_edf(path).signal, plain)
    for unit in ("\u00b5V", "\u03bcV"):
        dimensions = 256 + 12 * 96
        cells = b"".join(unit.encode().ljust(8, b"\0") for _ in LEADS)
        path.write_bytes(whole[:dimensions] + cells + whole[dimensions + len(cells) :])
        np.testing.assert_array_equal(read_edf(path).signal, plain)


@pytest.mark.parametrize("fill", [-32768, 0, 1234])
def test_edf_padding_is_cut(tmp_path: Path, digital: NDArray[np.int64], fill: int) -> None:
    """A last record that the recording does not fill, and one more, as the wfdb package writes; a lone lead stays."""
    values = digital.copy()
    plain = read_edf(write_edf(tmp_path / "a.edf", list(values), EDF_LABELS)).signal
    values[:, 1400:] = fill
    np.testing.assert_array_equal(
        read_edf(write_edf(tmp_path / "b.edf", list(values), EDF_LABELS)).signal, plain[:, :1400]
    )
    values[1:] = digital[1:]
    kept = read_edf(write_edf(tmp_path / "c.edf", list(values), EDF_LABELS)).signal
    np.testing.assert_array_equal(kept[1:], plain[1:])
    assert np.isnan(kept[0, 1400:]).all() == (fill == -32768)


@pytest.mark.parametrize("length", [1500, 2000])
def test_edf_of_the_wfdb_package(tmp_path: Path, digital: NDArray[np.int64], length: int) -> None:
    """What wfdb converts to EDF comes back with the length it had: wfdb adds a whole record of padding."""
    record = digital[:, :length].T.astype(float) / 1000
    names = {"units": ["mV"] * 12, "sig_name": list(LEADS), "fmt": ["16"] * 12}
    wfdb.wrsamp("r", fs=500, p_signal=record, write_dir=str(tmp_path), **names)
    wfdb_to_edf(str(tmp_path / "r"), output_filename=str(tmp_path / "r.edf"))
    found = read_edf(tmp_path / "r.edf")
    assert found.signal.shape == (12, length)
    np.testing.assert_allclose(found.signal, record.T, atol=0.002)


def test_bad_edf_files_are_refused(tmp_path: Path, digital: NDArray[np.int64]) -> None:
    """Gaps, leads of two rates, false sizes, truncated files, damaged headers, empty ranges; none is quoted."""
    path = tmp_path / "Doe.edf"
    leads = list(digital)

    def message(values: list[NDArray[Any]] | None = None, labels: list[str] | None = None, **changes: Any) -> str:
        write_edf(path, values or leads, labels or EDF_LABELS, **changes)
        return refusal(lambda: read_edf(path), "Doe", "Jane", "1950")

    assert "EDF+D" in message(reserved="EDF+D")
    assert "2 different sampling rates" in message([digital[0, ::2], *leads[1:]])
    assert "there twice" in message(labels=["II", *EDF_LABELS[1:]])
    assert "truncated: 51328 bytes, 1200003328 expected" in message(records=10**5)
    assert "truncated: 75328 bytes, 90003328 expected" in message(records=5000, sample=3)
    assert "not finished" in message(records=-1)
    assert "the unit is not known" in message(dimension="mmHg")
    assert "empty range" in message(physical=(5, 5))
    write_edf(path, leads, EDF_LABELS)
    whole = path.read_bytes()
    for place in (236, 244, 252, 256 + 12 * 216):  # records, seconds, signals, samples
        path.write_bytes(
            whole[:place] + b"nan     "[: 4 if place == 252 else 8] + whole[place + (4 if place == 252 else 8) :]
        )
        assert refusal(lambda: read_edf(path), "Doe")
    for length in (200, 300, 3000, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert refusal(lambda: read_edf(path), "Doe")
    high = 256 + 12 * 128  # the digital maximum of the first lead
    for highest in (b"-32768  ", b"-32769  ", b"nan     "):
        path.write_bytes(whole[:high] + highest + whole[high + 8 :])
        assert "empty range" in refusal(lambda: read_edf(path), "Doe")


def test_what_is_no_edf(tmp_path: Path) -> None:
    """A table that begins with a zero, and an EEG of pyedflib's own, which is EDF without a lead."""
    table = tmp_path / "a.txt"
    table.write_text("0        1 2 3\n" * 50)
    assert not is_edf(table, start_of(table))
    sample = Path(pyedflib.__file__).parent / "data" / "test_generator.edf"
    if sample.is_file():
        assert is_edf(sample, start_of(sample))
        with pytest.raises(ReaderError, match="12 leads needed"):
            to_record(read_edf(sample))


# ----------------------------------------------------------------------------------------------------------------- HDF5


def test_sph(tmp_path: Path, signal: Signal) -> None:
    """`ecg` (12, T) float16 millivolts at 500 Hz, without a sidecar; one with a sidecar goes by that."""
    path = tmp_path / "A00001.h5"
    with h5py.File(path, "w") as file:
        file["ecg"] = signal.astype(np.float16)
    assert is_hdf5(path, start_of(path))
    waveform = read_hdf5(path, None)
    np.testing.assert_array_equal(waveform.signal, signal.astype(np.float16).astype(np.float64))
    assert (waveform.leads, waveform.sampling_rate) == (LEADS, 500)
    path.with_suffix(".json").write_text(json.dumps({"sampling_rate": 250, "unit": "uV", "leads": LEADS[::-1]}))
    declared = read_hdf5(path, None)
    np.testing.assert_allclose(declared.signal, waveform.signal / 1000, rtol=1e-12)
    assert (declared.leads, declared.sampling_rate) == (LEADS[::-1], 250)


def test_code15(tmp_path: Path, signal: Signal) -> None:
    """Rows of 4096 samples, padded on both sides: by row and by exam, without the padding, unit declared."""
    path = tmp_path / "exams_part0.hdf5"
    tracings = np.zeros((3, 4096, 12), np.float32)
    tracings[1, 648:-1448] = signal.T
    tracings[1, 648, 3] = 0  # zero in one lead is no padding
    with h5py.File(path, "w") as file:
        file["tracings"] = tracings
        file["exam_id"] = np.array([11, 4242, 0])
    assert "the unit of CODE-15 is not known" in refusal(lambda: read_hdf5(path, "1"))
    path.with_suffix(".json").write_text('{"unit": "mV"}')
    waveform = read_hdf5(path, "1")
    np.testing.assert_array_equal(waveform.signal, tracings[1, 648:-1448].T.astype(np.float64))
    assert (waveform.leads, waveform.sampling_rate) == (LEADS, 400)
    np.testing.assert_array_equal(read_hdf5(path, "id=4242").signal, waveform.signal)
    assert "padding, not an ECG" in refusal(lambda: read_hdf5(path, "0"))
    assert "0 rows" in refusal(lambda: read_hdf5(path, "id=4243"), "4243")
    assert "0 rows" in refusal(lambda: read_hdf5(path, "id=x"))
    assert "holds 3 recordings" in refusal(lambda: read_hdf5(path, None))
    assert "#0 to #2" in refusal(lambda: read_hdf5(path, "3"))


def test_other_hdf5_needs_a_sidecar(tmp_path: Path, digital: NDArray[np.int64]) -> None:
    """One dataset goes by its sidecar, one of several by the name there, packed or not; without one nothing is read."""
    path, sidecar = tmp_path / "a.h5", tmp_path / "a.json"
    with h5py.File(path, "w") as file:
        file.create_dataset("x/y", data=digital[None].repeat(2, axis=0), chunks=(1, 12, 500), compression="gzip")
        file["tracings"] = np.zeros((2, 4096, 12), np.float32)
    assert "holds 2 members" in refusal(lambda: read_hdf5(path, "1"))
    declared = {"sampling_rate": 500, "unit": "uV", "leads": LEADS}
    sidecar.write_text(json.dumps({**declared, "dataset": "x/y"}))
    np.testing.assert_allclose(read_hdf5(path, "1").signal, digital / 1000, rtol=1e-12)
    for name in ("x", "x/z", "x/y/z", "z", "x//y", "../a"):
        sidecar.write_text(json.dumps({**declared, "dataset": name}))
        assert "dataset" in refusal(lambda: read_hdf5(path, "1"))
    sidecar.unlink()
    with h5py.File(path, "w") as file:
        file["tracings"] = np.ones((2, 4096, 12), np.float32)  # no exam_id: not CODE-15, whose lead order is another's
    assert "no sidecar" in refusal(lambda: read_hdf5(path, "1"))


@pytest.mark.parametrize("packing", [{}, {"shuffle": True}, {"shuffle": True, "fletcher32": True}])
@pytest.mark.parametrize("compression", ["gzip", "lzf", None])
@pytest.mark.parametrize("noise", [False, True])
def test_packed_hdf5(
    tmp_path: Path, signal: Signal, packing: dict[str, bool], compression: str | None, noise: bool
) -> None:
    """What h5py packs comes back to the bit, noise and chunks that the dataset ends in included."""
    path = declare(tmp_path / "a.h5")
    values = np.random.default_rng(0).bytes(3 * 12 * 2000 * 4) if noise else signal.astype("f4").tobytes() * 3
    stored = np.frombuffer(values, np.int32 if noise else np.float32).reshape(3, 12, 2000)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=stored, chunks=(2, 12, 300), compression=compression, **packing)
    np.testing.assert_array_equal(read_hdf5(path, "2").signal, stored[2].astype(np.float64))


def test_chunks_that_were_not_packed(tmp_path: Path, signal: Signal) -> None:
    """A chunk of a packed dataset whose filters a writer skipped, as HDF5 allows, is taken as it is."""
    path = declare(tmp_path / "a.h5")
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", (12, 2000), "f4", chunks=(12, 2000), compression="gzip", shuffle=True)
        dataset.id.write_direct_chunk((0, 0), signal.astype("f4").tobytes(), filter_mask=0b11)
    np.testing.assert_array_equal(read_hdf5(path, None).signal, signal.astype("f4").astype(np.float64))


def test_hostile_hdf5_is_refused(tmp_path: Path, signal: Signal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links, values elsewhere, objects, foreign filters, 10**12 values that are nowhere, huge chunks, no h5py."""
    secret = tmp_path / "Doe.h5"
    with h5py.File(secret, "w") as file:
        file["ecg"] = signal
    raw = tmp_path / "Doe.raw"
    raw.write_bytes(signal.tobytes())
    path = tmp_path / "a.h5"
    path.with_suffix(".json").write_text(json.dumps({"sampling_rate": 500, "unit": "mV", "leads": LEADS}))

    def message(write: Callable[[h5py.File], object], entry: str | None = None) -> str:
        with h5py.File(path, "w") as file:
            write(file)
        return refusal(lambda: read_hdf5(path, entry), "Doe")

    def link(file: h5py.File, target: object) -> None:
        file["ecg"] = target

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout(signal.shape, float)
        layout[:] = h5py.VirtualSource(secret, "ecg", signal.shape)
        file.create_virtual_dataset("ecg", layout)

    def foreign_filter(file: h5py.File) -> None:
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((12, 100))
        settings.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)  # Zstandard
        h5py.h5d.create(file.id, b"ecg", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((12, 100)), settings)

    assert "soft or external link" in message(lambda file: link(file, h5py.ExternalLink(secret, "ecg")))
    assert "soft or external link" in message(lambda file: link(file, h5py.SoftLink("/ecg")))
    assert "values lie in other files" in message(virtual)
    assert "values lie in other files" in message(
        lambda file: file.create_dataset("ecg", signal.shape, float, external=[(raw, 0, raw.stat().st_size)])
    )
    assert "objects, texts or compounds" in message(
        lambda file: file.create_dataset("ecg", (12, 2000), h5py.vlen_dtype(np.float64))
    )
    assert "objects, texts" in message(lambda file: file.create_dataset("ecg", (12, 2000), h5py.string_dtype()))
    assert "objects, texts" in message(lambda file: file.create_dataset("ecg", (12,), [("Doe", "f4")]))

    def bomb(file: h5py.File) -> None:
        dataset = file.create_dataset("ecg", (12, 2000), "f2", chunks=(12, 1000), compression="gzip", fletcher32=True)
        packer = zlib.compressobj()
        packed = b"".join(packer.compress(bytes(10**7)) for _ in range(20)) + packer.flush()
        dataset.id.write_direct_chunk((0, 1000), packed)

    assert "more than its header states" in message(bomb)
    assert "unusual filter" in message(foreign_filter)
    assert "too many chunks" in message(lambda file: file.create_dataset("ecg", (12, 20000), "f2", chunks=(1, 10)))
    assert "at most" in message(lambda file: file.create_dataset("ecg", (12, 10**12 // 12), "f2", chunks=(12, 1000)))
    assert "at most" in message(lambda file: file.create_dataset("ecg", (10, 12, 10**11), "f4"), "3")
    assert "smaller ones" in message(
        lambda file: file.create_dataset("ecg", (10**9, 12, 2000), "f2", chunks=(10**7, 12, 1), compression="gzip"),
        "3",
    )
    assert "group where a dataset" in message(lambda file: file.create_group("ecg"))
    assert "cannot be read" in message(lambda file: file.create_dataset("ecg", data=h5py.Empty("f4")))
    assert "expected (leads, samples)" in message(lambda file: file.create_dataset("ecg", data=np.zeros(12)))
    # A row of a dataset that is as huge costs no more than a row.
    message(lambda file: file.create_dataset("ecg", (10**9, 11, 1000), "f4", chunks=(1, 11, 1000)), "999999999")

    whole = secret.read_bytes()
    for length in (10, 100, 1000, len(whole) - 8):
        path.write_bytes(whole[:length])
        assert refusal(lambda: read_hdf5(path, None))
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert 'pip install "stence_dist[hdf5]"' in refusal(lambda: read_hdf5(path, None))


# -------------------------------------------------------------------------------------------------------------- tensors


def test_tensors(tmp_path: Path, signal: Signal) -> None:
    """Lists of pairs of both ranks, bare tensors of both ranks, of every float; the names stay inside."""
    path = declare(tmp_path / "train_data.pt")
    first, second = torch.from_numpy(signal), torch.from_numpy(signal * 2)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        expected = second.to(dtype).double().numpy()
        pairs = [("Doe", first[None].to(dtype)), ("Doe", second[None].to(dtype)), ("Doe", second.to(dtype))]
        for content in (pairs, torch.stack([first, second]).to(dtype)):
            torch.save(content, path)
            assert is_tensors(path, start_of(path))
            waveform = read_tensors(path, "1")
            np.testing.assert_array_equal(waveform.signal, expected)
            assert "Doe" not in repr(waveform)
        torch.save(pairs, path)
        np.testing.assert_array_equal(read_tensors(path, "2").signal, expected)
        torch.save(second.to(dtype), path)
        np.testing.assert_array_equal(read_tensors(path, None).signal, expected)
    assert read_tensors(path, None).leads == LEADS


def test_bad_tensors_are_refused(tmp_path: Path, signal: Signal) -> None:
    """Normalized signals, no sidecar, other contents, wrong numbers, a repeated value, packed and truncated files."""
    path = tmp_path / "Doe.pt"
    tensor = torch.from_numpy(signal)

    def message(content: object, entry: str | None = None) -> str:
        torch.save(content, path)
        return refusal(lambda: read_tensors(path, entry), "Doe")

    assert "no sidecar" in message(tensor)
    declare(path, unit="z-score")
    assert "the unit is not known" in message(tensor)
    declare(path)
    assert "neither a tensor nor a list" in message({"Doe": tensor})
    assert "no pair of a name and a tensor" in message([tensor])
    assert "#0 to #1" in message(torch.stack([tensor, tensor]), "2")
    assert "holds 2 recordings" in message([("Doe", tensor)] * 2)
    assert "expected (12 leads, samples)" in message([("Doe", tensor[None].repeat(2, 1, 1))])
    assert "at most" in message(torch.zeros(1, 1).expand(10**6, 10**6))
    assert "unusual kind" in message(tensor.to_sparse())
    assert "expected integers or floats" in message(tensor.to(torch.complex64))
    torch.save(tensor, path)
    whole = path.read_bytes()
    for length in (40, 400, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        assert refusal(lambda: read_tensors(path, None), "Doe")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 100_000_000)
    assert "is packed" in refusal(lambda: read_tensors(path, None), "Doe")
    # Noise does not shrink, but torch would take its packed bytes for values.
    torch.save(torch.randint(-(2**62), 2**62, (12, 2000), generator=torch.Generator().manual_seed(0)), path)
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert path.stat().st_size > sum(map(len, members.values()))
    assert "is packed" in refusal(lambda: read_tensors(path, None), "Doe")


class _Foreign:
    """What makes a directory when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_foreign_pickles_do_not_run(tmp_path: Path, signal: Signal) -> None:
    """A file of torch.save with code inside is refused, and the code, which does run elsewhere, does not."""
    path, folder = declare(tmp_path / "a.pt"), tmp_path / "ran"
    torch.save([("ecg", torch.from_numpy(signal)), ("ecg", _Foreign(folder))], path)
    assert is_tensors(path, start_of(path))
    assert "nothing of it was run" in refusal(lambda: read_tensors(path, "0"))
    assert not folder.exists()
    torch.load(path, weights_only=False)
    assert folder.exists()
