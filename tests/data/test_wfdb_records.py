"""WFDB records of every kind against the wfdb package, and headers that lie."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wfdb
from numpy.typing import NDArray

from stence_dist.data.readers import ReaderError, read_ecg
from stence_dist.data.readers.ecg import wfdb_record
from stence_dist.data.readers.ecg.waveform import Waveform, to_record
from stence_dist.data.readers.ecg.wfdb_record import read_wfdb
from stence_dist.data.readers.limb_leads import canonical_lead
from stence_dist.ecg import LEADS

Signal = NDArray[np.float64]


@pytest.fixture
def signal(make_ecg: Callable[..., Signal]) -> Signal:
    """(12, 2000) mV at 500 Hz that obeys the limb lead relations."""
    return make_ecg(1)


@pytest.fixture
def digital(signal: Signal) -> NDArray[np.int64]:
    """The same in steps of 20 uV, (12, 2000) integers: they fit all formats."""
    return np.rint(signal * 50).astype(np.int64)


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where the wfdb package would be asked."""

    def fail(header: Path) -> None:
        raise AssertionError("the record was not read on the short path")

    monkeypatch.setattr(wfdb_record, "_parse", fail)


def write(folder: Path, digital: NDArray[np.int64], name: str = "r", **changes: object) -> Path:
    """A record of stored values (n, T), 50 per mV, with some arguments of `wrsamp` changed."""
    count = len(digital)
    arguments: dict[str, object] = {
        "fs": 500,
        "units": ["mV"] * count,
        "sig_name": list(LEADS[:count]),
        "d_signal": digital.T,
        "fmt": ["16"] * count,
        "adc_gain": [50.0] * count,
        "baseline": [0] * count,
    }
    folder.mkdir(parents=True, exist_ok=True)
    wfdb.wrsamp(name, write_dir=str(folder), **{**arguments, **changes})
    return folder / name


def assert_as_the_package(path: Path, waveform: Waveform, **how: Any) -> None:
    """The same float64 values, names and rate as wfdb gives for the leads that it names in mV."""
    record = wfdb.rdrecord(str(path.with_suffix("")), **how)
    chosen = [number for number, name in enumerate(record.sig_name) if canonical_lead(name)]
    assert waveform.leads == tuple(record.sig_name[number] for number in chosen)
    assert waveform.sampling_rate == record.fs
    assert {record.units[number].lower() for number in chosen} == {"mv"}
    np.testing.assert_array_equal(waveform.signal, record.p_signal.T[chosen])


@pytest.mark.usefixtures("without_package")
@pytest.mark.parametrize(
    ("records", "count"),
    [("cinc2021_torch_ecg/*.hea", 50), ("ludb/data/*.hea", 200), ("wfdb_python/s0010_re.hea", 1)],
)
def test_real_records(sample_data: Path, records: str, count: int) -> None:
    """All real 12-lead records take the short path, and give the package's values to the bit."""
    headers = sorted(sample_data.glob(records))
    assert len(headers) == count
    for header in headers:
        assert_as_the_package(header, read_wfdb(header))


def test_a_real_record_of_two_leads(sample_data: Path) -> None:
    """Monitor leads II and V beside a pulse wave: the one lead that is known comes out, and it is not enough."""
    path = sample_data / "wfdb_python" / "a103l"
    assert_as_the_package(path, read_wfdb(path))
    with pytest.raises(ReaderError, match=r"missing \(found II\); 12 leads needed"):
        read_ecg(path)


@pytest.mark.parametrize("kind", ["80", "212", "16", "24", "32"])
def test_formats(tmp_path: Path, digital: NDArray[np.int64], kind: str) -> None:
    """Each format against the package, with one invalid sample of each lead."""
    digital[:, 7] = {"80": -128, "212": -2048, "16": -32768, "24": -(2**23), "32": -(2**31)}[kind]
    path = write(tmp_path, digital, fmt=[kind] * 12)
    waveform = read_wfdb(path)
    assert_as_the_package(path, waveform)
    assert np.isnan(waveform.signal[:, 7]).all()
    assert np.isnan(waveform.signal).sum() == 12
    assert waveform.raw is not None
    np.testing.assert_array_equal(waveform.raw[:, :7], digital[:, :7] / 1000)


@pytest.mark.parametrize("start", [b"MATLAB 5.0 MAT-file     ", b"\x14\0\0\0", b"\0\0\0\x1e"])
def test_a_matlab_file_of_another_kind_is_refused(tmp_path: Path, digital: NDArray[np.int64], start: bytes) -> None:
    """Level 5, 32 bits, big endian: their bytes are no 16-bit samples. Level 4 as it should be is read."""
    names = "".join(f"r.mat 16+24 50/mV 16 0 0 0 0 {lead}\n" for lead in LEADS)
    (tmp_path / "r.hea").write_text(f"r 12 500 2000\n{names}")
    head = b"".join(number.to_bytes(4, "little") for number in (30, 12, 2000, 0, 4)) + b"val\0"
    samples = digital.T.astype("<i2").tobytes()
    (tmp_path / "r.mat").write_bytes(head + samples)
    np.testing.assert_allclose(read_wfdb(tmp_path / "r").signal, digital / 50, rtol=1e-12)
    (tmp_path / "r.mat").write_bytes(start + head[len(start) :] + samples)
    with pytest.raises(ReaderError, match="no MATLAB level 4 file of 16-bit integers"):
        read_wfdb(tmp_path / "r")


def test_a_rate_that_is_none_is_refused(tmp_path: Path, digital: NDArray[np.int64]) -> None:
    """The wfdb package takes -5 for its default of 250 Hz."""
    path = write(tmp_path, digital)
    header = path.with_suffix(".hea")
    header.write_text(header.read_text().replace("r 12 500 ", "r 12 -5 "))
    with pytest.raises(ReaderError, match="sampling rate is no number above 0"):
        read_wfdb(path)


@pytest.mark.parametrize(
    ("name", "lead"),
    [
        ("ECG Lead aVR", "aVR"),
        ("EKG-V2", "V2"),
        ("ecg leadII", "II"),
        ("DIII", "III"),
        ("MDC_ECG_LEAD_AVF", "aVF"),
        ("MDC_ECG_LEAD_dI", None),  # computed from other electrodes
        ("MLII", None),
        ("V", None),
        ("ECG", None),
        ("", None),
    ],
)
def test_lead_names(name: str, lead: str | None) -> None:
    """As carts, people and ISO 11073 write them."""
    assert canonical_lead(name) == lead


def in_two_files(folder: Path, digital: NDArray[np.int64], rows: list[int], kind: str) -> Path:
    """A record `r` of limb leads in one file, chest leads in another (16, 61), its signals listed as in `rows`."""
    dtype = {"16": "<i2", "61": ">i2"}[kind]
    for name, part in (("limb", range(6)), ("chest", range(6, 12))):
        own = [row for row in rows if row in part]
        (folder / f"{name}.dat").write_bytes(digital[own].T.astype(dtype).tobytes())
    lines = [f"{'limb' if row < 6 else 'chest'}.dat {kind} 50/mV 16 0 0 0 0 {LEADS[row]}" for row in rows]
    (folder / "r.hea").write_text("\n".join(["r 12 500 2000", *lines]) + "\n")
    return folder / "r"


@pytest.mark.parametrize("kind", ["16", "61"])
def test_several_files(tmp_path: Path, digital: NDArray[np.int64], kind: str) -> None:
    """Limb leads in one file, chest leads in another, against the package; listed in turns, they are refused."""
    path = in_two_files(tmp_path, digital, list(range(12)), kind)
    assert_as_the_package(path, read_wfdb(path))
    with pytest.raises(ReaderError, match="lists the signals of one file apart"):
        read_wfdb(in_two_files(tmp_path, digital, [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11], kind))


def test_several_samples_per_frame(tmp_path: Path, digital: NDArray[np.int64]) -> None:
    """Two samples of each lead per frame, one of a pulse wave: the leads' own rate. Leads of two rates are refused."""
    frames = [*(row for row in digital), digital[0, :1000]]
    thirteen: dict[str, object] = {
        "d_signal": None,
        "e_d_signal": frames,
        "fs": 250,
        "fmt": ["16"] * 13,
        "units": ["mV"] * 13,
        "adc_gain": [50.0] * 13,
        "baseline": [0] * 13,
    }
    path = write(tmp_path, digital, samps_per_frame=[2] * 12 + [1], sig_name=[*LEADS, "PLETH"], **thirteen)
    waveform = read_wfdb(path)
    expected = wfdb.rdrecord(str(path), smooth_frames=False).e_p_signal
    np.testing.assert_array_equal(waveform.signal, np.stack(expected[:12]))
    assert waveform.sampling_rate == 500
    path = write(tmp_path, digital, samps_per_frame=[2] * 12 + [1], sig_name=["PLETH", *LEADS], **thirteen)
    with pytest.raises(ReaderError, match="different sampling rates"):
        read_wfdb(path)


SCALES = [
    ("50(0)/mV", 0, 50, 0),
    ("50/mV", 0, 50, 0),
    ("50(7)/mV", 0, 50, 7),
    ("50(-7)/mV", 3, 50, -7),  # a baseline goes before the ADC's zero
    ("50/mV", -3, 50, -3),
    ("50", 0, 50, 0),
    ("5e1(2)", 0, 50, 2),
    ("0/mV", 0, 200, 0),
    ("0", 5, 200, 5),
    ("123.25(1)/mV", 0, 123.25, 1),
]


@pytest.mark.usefixtures("without_package")
@pytest.mark.parametrize(("text", "zero", "gain", "baseline"), SCALES)
def test_scales(tmp_path: Path, digital: NDArray[np.int64], text: str, zero: int, gain: float, baseline: int) -> None:
    """Gain, baseline, ADC zero and unit, stated or not, on the short path: the manual by hand, and the package."""
    path = write(tmp_path, digital)
    header = path.with_suffix(".hea")
    lines = header.read_text().splitlines()
    fields = lines[3].split(" ")
    lines[3] = " ".join([fields[0], "16", text, "16", str(zero), *fields[5:]])
    header.write_text("\n".join(lines))
    waveform = read_wfdb(path)
    np.testing.assert_array_equal(waveform.signal[2], (digital[2] - baseline) / gain)
    assert_as_the_package(path, waveform)


def test_gains_of_each_lead_and_absent_leads(tmp_path: Path, signal: Signal) -> None:
    """Eight leads, each of its own gain and baseline: the other four follow from the law, within the steps' sum."""
    rows = [0, 1, *range(6, 12)]
    gains = np.array([1000.0 + 150 * number for number in range(8)])
    stored = np.rint(signal[rows] * gains[:, None]).astype(np.int64) + np.arange(8)[:, None] * 100
    path = write(
        tmp_path,
        stored,
        sig_name=[LEADS[row] for row in rows],
        adc_gain=gains.tolist(),
        baseline=[100 * number for number in range(8)],
    )
    assert_as_the_package(path, read_wfdb(path))
    record = read_ecg(path)
    expected = signal - np.median(signal, axis=1, keepdims=True)
    assert np.abs(record.signal() - expected).max() < 0.0025
    assert record.flags["derived_leads"] == ["III", "aVR", "aVL", "aVF"]


def segments(folder: Path, digital: NDArray[np.int64], *, variable: bool, **changes: object) -> Path:
    """A record `m` of segments of 900 and 1100 frames; variable: 300 missing between them, V3 in the second."""
    write(folder, digital[:, :900], "m_1", **changes)
    rows = [row for row in range(12) if not (variable and row == 8)][:: -1 if variable else 1]
    names = [LEADS[row] for row in rows]
    some = {name: value[: len(rows)] for name, value in changes.items() if isinstance(value, list)}
    for name, value in (("units", "mV"), ("fmt", "16"), ("adc_gain", 80.0), ("baseline", 5)):
        some.setdefault(name, [value] * len(rows))
    write(folder, digital[rows, 900:], "m_2", **{**changes, **some, "sig_name": names})
    lines = ["m_1 900", "m_2 1100"]
    if variable:
        layout = [f"~ 0 200/mV 16 0 0 0 0 {lead}" for lead in LEADS]
        (folder / "m_layout.hea").write_text("\n".join(["m_layout 12 500 0", *layout]) + "\n")
        lines = ["m_layout 0", "m_1 900", "~ 300", "m_2 1100"]
    (folder / "m.hea").write_text("\n".join([f"m/{len(lines)} 12 500 {2300 if variable else 2000}", *lines]) + "\n")
    return folder / "m"


@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize("kind", ["16", "212"])
def test_several_segments(tmp_path: Path, digital: NDArray[np.int64], variable: bool, kind: str) -> None:
    """Fixed layout, and variable with a gap, against the package's own joining; a lead's gain and baseline change."""
    path = segments(tmp_path, digital, variable=variable, fmt=[kind] * 12)
    waveform = read_wfdb(path)
    joined = wfdb.rdrecord(str(path), m2s=True)
    assert waveform.leads == tuple(joined.sig_name)
    assert waveform.sampling_rate == joined.fs
    np.testing.assert_array_equal(waveform.signal, joined.p_signal.T)
    assert np.isnan(waveform.signal).sum() == (12 * 300 + 1100) * variable
    assert to_record(waveform).flags["missing_share"] == pytest.approx((12 * 300 + 1100) / 12 / 2300 * variable)


@pytest.mark.parametrize("kind", ["16", "212"])
def test_segments_in_greek_microvolts(tmp_path: Path, digital: NDArray[np.int64], kind: str) -> None:
    """The package drops the letter and reads volts; in segments, too, the unit is the header's."""
    path = segments(tmp_path, digital, variable=False, units=["@"] * 12, fmt=[kind] * 12)
    for part in ("m_1.hea", "m_2.hea"):
        header = tmp_path / part
        header.write_text(header.read_text().replace("@", "\u00b5V"), encoding="utf-8")
    np.testing.assert_allclose(read_wfdb(path).signal[:, :900], digital[:, :900] / 50 / 1000, rtol=1e-12)


def test_bad_segments_are_refused(tmp_path: Path, digital: NDArray[np.int64]) -> None:
    """Segments elsewhere, missing, nested, of another length or rate, truncated, of a lead twice, of a huge header."""
    path = segments(tmp_path / "Doe", digital, variable=False)
    header, part = path.with_suffix(".hea"), path.with_name("m_2.hea")
    whole, text = header.read_text(), part.read_text()

    def message(main: str = whole, segment: str = text) -> str:
        header.write_text(main)
        part.write_text(segment)
        began = time.process_time()
        with pytest.raises(ReaderError) as caught:
            read_wfdb(path)
        assert time.process_time() - began < 1
        assert "Doe" not in str(caught.value)
        return str(caught.value)

    assert "header cannot be parsed" in message(whole.replace("m_2", "../m_2"))
    assert "header is missing" in message(whole.replace("m_2", "m_3"))
    assert "segments of its own" in message(segment=whole)
    assert "another length" in message(segment=text.replace("500 1100", "500 1000"))
    assert "states 9999 samples, its segments 2000" in message(whole.replace("2000", "9999"))
    assert "at most" in message(whole.replace("2000", str(10**9 + 900)).replace("1100", str(10**9)))
    assert "nothing but gaps" in message("m/3 12 500 20002000\nm_1 900\n~ 20000000\nm_2 1100\n")
    assert "repeats a segment" in message("m/10000 12 500 11000000\n" + "m_2 1100\n" * 10_000)
    assert "different sampling rates" in message(segment=text.replace(" 500 ", " 250 "))
    assert "names a lead twice" in message(segment=text.replace(" V2\n", " V1\n"))
    assert "expected a small text file" in message(segment=text + "#" + "x" * 2_000_000)
    path.with_name("m_2.dat").write_bytes(path.with_name("m_2.dat").read_bytes()[:-100])
    assert "is truncated" in message()


def test_header_tricks(tmp_path: Path, digital: NDArray[np.int64]) -> None:
    """Names that lead elsewhere, sizes beyond all memory, a header of 2 MB: refused at once, on both paths."""
    outside = write(tmp_path, digital, "outside")
    path = write(tmp_path / "Doe", digital)
    header = path.with_suffix(".hea")
    texts = {kind: header.read_text().replace("r.dat 16 ", f"r.dat {kind} ") for kind in ("16", "61")}
    huge = str(10**9)
    tricks = [
        ("r.dat", str(outside.with_suffix(".dat"))),
        ("r.dat", "../outside.dat"),
        ("r.dat", "..\\outside.dat"),
        ("r.dat", "file:outside.dat"),
        ("r.dat", ".."),
        ("r.dat", "Doe.Jane"),
        ("500 2000", f"500 {huge}"),
        ("500 2000", f"500 {'9' * 5000}"),
        ("r 12 500", f"r {huge} 500"),
        ("r 12 500", "r 12 0"),
        ("r 12 500", "r/3 12 500"),
        ("500 2000", "500"),
        ("r.dat 16 ", f"r.dat 16+{huge} "),
        ("r.dat 61 ", f"r.dat 61+{huge} "),
        ("r.dat 16 ", f"r.dat 16x{huge} "),
        ("r.dat 61 ", f"r.dat 61x{huge} "),
        ("r.dat 16 ", "r.dat 508 "),
        ("r.dat 16 ", "r.dat 999 "),
        ("I\n", "I\n" + "#" * 2_000_000),
    ]
    for text in texts.values():
        for old, new in tricks:
            if old not in text:
                continue
            header.write_text(text.replace(old, new))
            began = time.process_time()
            with pytest.raises(ReaderError) as caught:
                to_record(read_wfdb(path))
            assert time.process_time() - began < 1
            assert not any(word in str(caught.value) for word in ("Doe", "Jane", "outside.dat", str(tmp_path)))
