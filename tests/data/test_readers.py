"""Readers against the wfdb package, closed forms, and files that are damaged on purpose."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb
from numpy.typing import NDArray
from pydicom.pixels.decoders.base import Decoder
from safetensors.torch import save_file

from stence_dist.data.frames import FrameSettings
from stence_dist.data.readers import ImageStudy, ReaderError, read_ecg, read_study
from stence_dist.data.readers.ecg.declared import UnnumberedError
from stence_dist.data.readers.ecg.waveform import Device
from stence_dist.data.readers.record import quantize
from stence_dist.ecg import LEADS

SETTINGS = FrameSettings(image_size=32, frames_per_view=1, frame_spacing=1)
Signal = NDArray[np.float64]


@pytest.fixture
def signal(make_ecg: Callable[..., Signal]) -> Signal:
    """(12, 2000) mV at 500 Hz that obeys the limb lead relations."""
    return make_ecg(1)


def write(folder: Path, signal: Signal, **changes: object) -> Path:
    """A WFDB record `r` of signal in mV, 1 uV per unit, with some arguments of `wrsamp` changed."""
    count = len(signal)
    arguments: dict[str, object] = {
        "fs": 500,
        "units": ["mV"] * count,
        "sig_name": list(LEADS[:count]),
        "p_signal": signal.T,
        "fmt": ["16"] * count,
        "adc_gain": [1000.0] * count,
        "baseline": [0] * count,
    }
    wfdb.wrsamp("r", write_dir=str(folder), **{**arguments, **changes})
    return folder / "r"


def removed_median(signal: Signal) -> Signal:
    return signal - np.median(signal, axis=1, keepdims=True)


def test_wfdb_equals_the_wfdb_package(tmp_path: Path, signal: Signal) -> None:
    """Against wfdb.rdsamp, within the half step of quantization; the name works with and without .hea."""
    path = write(tmp_path, signal + 0.3)
    expected = removed_median(wfdb.rdsamp(str(path))[0].T)
    record = read_ecg(path)
    assert record.leads == LEADS
    assert record.sampling_rate == 500
    assert record.scale == 0.001
    assert np.abs(record.signal() - expected).max() <= 0.0005 + 1e-6
    np.testing.assert_array_equal(read_ecg(path.with_suffix(".hea")).values, record.values)


def test_wfdb_leads_go_by_name(tmp_path: Path, signal: Signal) -> None:
    """Twelve shuffled leads in other spellings among three Frank leads give the record of the plain file."""
    (tmp_path / "plain").mkdir()
    plain = read_ecg(write(tmp_path / "plain", signal))
    names = ["vx", "AVR", "i", "Lead II", "iii", "v6", "avl", "aVF", "vy", "V1", "V2", "v3", "V4", "V5", "vz"]
    sources = [0, 3, 0, 1, 2, 11, 4, 5, 1, 6, 7, 8, 9, 10, 2]
    path = write(
        tmp_path,
        signal[sources],
        sig_name=names,
        units=["mV"] * 15,
        fmt=["16"] * 15,
        adc_gain=[1000.0] * 15,
        baseline=[0] * 15,
    )
    np.testing.assert_array_equal(read_ecg(path).values, plain.values)


@pytest.mark.parametrize(("unit", "factor"), [("uV", 1e3), ("\u00b5V", 1e3), ("V", 1e-3), ("mv", 1.0)])
def test_units_are_normalized(tmp_path: Path, signal: Signal, unit: str, factor: float) -> None:
    """The same integers stated in another unit give the same millivolts; for microvolts in both encodings.

    The wfdb package drops the Greek letter, so its own reading would be volts.
    """
    digital = np.rint(signal * 1000).astype(np.int64)
    path = write(tmp_path, signal, p_signal=None, d_signal=digital.T, units=["@"] * 12, adc_gain=[1000 / factor] * 12)
    text = path.with_suffix(".hea").read_text()
    for encoding in ("utf-8", "latin-1"):
        path.with_suffix(".hea").write_bytes(text.replace("@", unit).encode(encoding))
        record = read_ecg(path)
        assert record.flags["scale_source"] == "header"
        assert np.abs(record.signal() - removed_median(digital / 1000)).max() <= 0.0006


def test_quantization_keeps_range_medians_and_gaps() -> None:
    """Against the float64 signal: the error is at most half a step, whatever the range; NaN comes back as NaN."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(12, 500)) + 300.0
    signal[3, 40:60] = np.nan
    record = quantize(signal, LEADS, 500, {})
    median = np.nanmedian(signal, axis=1)
    np.testing.assert_allclose(record.medians, median, rtol=1e-6)
    error = np.abs(record.signal() - (signal - median[:, None]))
    assert np.nanmax(error) < 0.0006
    assert np.isnan(record.signal()[3, 40:60]).all()
    assert (record.values[3, 40:60] == -32768).all()
    assert record.flags["missing_share"] == pytest.approx(20 / 6000)

    signal[0, 0] += 100.0  # beyond what 1 uV steps can hold
    wide = quantize(signal, LEADS, 500, {})
    assert wide.scale > 0.003
    assert np.nanmax(np.abs(wide.signal() - (signal - np.nanmedian(signal, axis=1)[:, None]))) < wide.scale
    assert wide.values.max() <= 32767


def test_half_flat_leads_are_flagged(signal: Signal) -> None:
    """A lead that stands still for 60 % of the record is kept and named."""
    signal[7, :1200] = 0.25
    assert quantize(signal, LEADS, 500, {}).flags["flat_leads"] == ["V2"]


def test_header_gains_that_break_einthoven_give_way_to_raw_values(tmp_path: Path, signal: Signal) -> None:
    """As in LUDB: every lead's gain scales it to 1 mV, while the stored integers are right."""
    digital = np.rint(signal * 1000).astype(np.int64)
    spread = (digital.max(axis=1) - digital.min(axis=1)).astype(float)
    path = write(tmp_path, signal, p_signal=None, d_signal=digital.T, adc_gain=spread.tolist())
    auto = read_ecg(path)
    assert auto.flags["scale_source"] == "raw"
    assert np.abs(auto.signal() - removed_median(digital / 1000)).max() <= 0.0011
    assert auto.flags["einthoven_residual"] < 0.002
    header = read_ecg(path, wfdb_scale="header")
    assert header.flags["scale_source"] == "header"
    assert np.ptp(header.signal(), axis=1) == pytest.approx(np.ones(12), abs=0.01)
    assert header.flags["einthoven_residual"] > 0.1


def test_unequal_gains_that_are_right_are_kept(tmp_path: Path, signal: Signal) -> None:
    """A cart with another gain per lead, correctly stated: the raw values break Einthoven, the header's do not."""
    path = write(tmp_path, signal, adc_gain=[200.0 + 50 * lead for lead in range(12)])
    record = read_ecg(path)
    assert record.flags["scale_source"] == "header"
    assert np.abs(record.signal() - removed_median(signal)).max() < 0.006


def test_one_lead_short_is_named(tmp_path: Path, signal: Signal) -> None:
    """Eleven leads: the message names the missing one and those found."""
    names = [lead for lead in LEADS if lead != "V3"]
    eleven = {"units": ["mV"] * 11, "fmt": ["16"] * 11, "adc_gain": [1000.0] * 11, "baseline": [0] * 11}
    path = write(tmp_path, signal[[LEADS.index(lead) for lead in names]], sig_name=names, **eleven)
    with pytest.raises(ReaderError, match=r"lead V3 missing \(found I II III aVR aVL aVF V1 V2 V4 V5 V6\); 12 leads"):
        read_ecg(path)


def test_bad_signals_are_refused(tmp_path: Path, signal: Signal) -> None:
    """A lead of NaN, a flat lead, an unknown unit, a lead named twice."""
    for lead, value, message in ((8, np.nan, "lead V3 holds no sample"), (1, 0.5, "lead II is flat")):
        bad = signal.copy()
        bad[lead] = value
        with pytest.raises(ReaderError, match=message):
            read_ecg(write(tmp_path, bad))
    with pytest.raises(ReaderError, match="the unit is not known; expected V, mV, uV or nV"):
        read_ecg(write(tmp_path, signal, units=["mV"] * 11 + ["mmHg"]))
    with pytest.raises(ReaderError, match="lead V5 is there twice"):
        read_ecg(write(tmp_path, signal, sig_name=[*LEADS[:11], "v5"]))


def test_damaged_wfdb_files_are_refused(tmp_path: Path, signal: Signal) -> None:
    """Missing, truncated and foreign signal files, a nonsense header, no file at all; no message holds the path."""
    path = write(tmp_path, signal)
    header, data = path.with_suffix(".hea"), path.with_suffix(".dat")
    whole, text = data.read_bytes(), header.read_text()

    def message() -> str:
        with pytest.raises(ReaderError) as caught:
            read_ecg(path)
        assert str(tmp_path) not in str(caught.value)
        return str(caught.value)

    data.write_bytes(whole[: len(whole) // 2])
    assert "is truncated: 24000 bytes, 48000 expected" in message()
    data.unlink()
    assert "is missing" in message()
    (tmp_path.parent / "outside.dat").write_bytes(whole)
    header.write_text(text.replace("r.dat", "../outside.dat"))
    assert "header" in message()
    header.write_text("\n".join(line.rsplit(" ", 1)[0] for line in text.splitlines()))
    assert "lead I II III aVR" in message()  # legal: no signal has a description
    header.write_text("\0\1\2 nonsense")
    assert "header cannot be parsed" in message()
    header.unlink()
    assert "does not exist" in message()


def test_refusals_quote_no_header(tmp_path: Path, signal: Signal) -> None:
    """A name for a unit, for leads, for a suffix and for a recording of many: what is wrong is said without it."""
    for name in "abc":
        (tmp_path / name).mkdir()
    shifted = ["mV"] * 11 + ["Mustermann"]
    paths = [write(tmp_path / "a", signal, units=shifted)]
    paths.append(write(tmp_path / "b", np.vstack([signal, signal[:2]]), sig_name=[*LEADS, "Mustermann", "v6"]))
    paths.append(write(tmp_path / "c", signal))
    header = paths[-1].with_suffix(".hea")
    header.write_text(header.read_text().replace("r.dat", "Mustermann.Jo"))
    paths.append(paths[-1].with_name("r.hea#Mustermann"))
    said = []
    for path in paths:
        with pytest.raises(ReaderError) as caught:
            read_ecg(path)
        said.append(str(caught.value))
    expected = (
        "the unit is not known",
        "V6 is there twice",
        "file (name withheld) is missing",
        "one of many recordings",
    )
    assert [part in text for part, text in zip(expected, said, strict=True)] == [True] * 4, said
    assert not [text for text in said if "Jo" in text or "Mustermann" in text]
    np.save(tmp_path / "d.npy", np.zeros((12, 100), dtype=[("Mustermann", "f4")]))  # columns have names
    (tmp_path / "d.json").write_text(json.dumps({"sampling_rate": 500, "unit": "mV", "leads": LEADS}))
    for read in (lambda: read_ecg(tmp_path / "d.npy"), lambda: read_study(tmp_path / "d.npy", SETTINGS)):
        with pytest.raises(ReaderError, match="of type void32"):
            read()


@pytest.mark.parametrize("model", ["ELI 250", "MAC 5500 HD", "CARDIOVIT AT-102", "PageWriter TC70", "el250", "SE-1200"])
def test_a_model_is_a_product(model: str) -> None:
    """Names of recorders pass."""
    assert Device(model).flags() == {"device": model}


@pytest.mark.parametrize(
    "model", ["Mustermann 2", "Room 3 Plantara", "MAC 0099123", "MAC", "Lee\u00a02", "x" * 41 + "1"]
)
def test_what_is_no_product_is_dropped(model: str) -> None:
    """Names of people and places with a number, serial numbers, words without any number, unusual or long texts."""
    assert Device(model).flags() == {}


def test_numpy_files(tmp_path: Path, signal: Signal) -> None:
    """.npy with its sidecar and .npz, in microvolts and another lead order, give the WFDB record's values."""
    expected = read_ecg(write(tmp_path, signal)).values
    order = list(range(11, -1, -1))
    declared = {"sampling_rate": 500, "unit": "uV", "leads": [LEADS[lead] for lead in order]}
    stored = np.rint(signal[order] * 1000).astype(np.int32)
    np.save(tmp_path / "a.npy", stored)
    (tmp_path / "a.json").write_text(json.dumps(declared))
    np.savez_compressed(tmp_path / "b.npz", signal=stored, **declared)
    for name in ("a.npy", "b.npz"):
        record = read_ecg(tmp_path / name)
        np.testing.assert_array_equal(record.values, expected)
        assert record.flags["scale_source"] == "declared"


def test_bad_numpy_files_are_refused(tmp_path: Path, signal: Signal) -> None:
    """No sidecar, an incomplete one, a transposed signal, pickled objects, a truncated file, an unknown format."""
    path, sidecar = tmp_path / "a.npy", tmp_path / "a.json"
    declared = {"sampling_rate": 500, "unit": "mV", "leads": list(LEADS)}
    np.save(path, signal)
    with pytest.raises(ReaderError, match="no sidecar"):
        read_ecg(path)
    sidecar.write_text('{"unit": "mV"}')
    with pytest.raises(ReaderError, match="lacks sampling_rate, leads"):
        read_ecg(path)
    sidecar.write_text(json.dumps(declared))
    np.save(path, signal.T)
    with pytest.raises(ReaderError, match="Transpose it"):
        read_ecg(path)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ReaderError, match="Python objects"):
        read_ecg(path)
    np.save(path, signal)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ReaderError, match="truncated"):
        read_ecg(path)
    np.savez(tmp_path / "b.npz", signal=signal)
    with pytest.raises(ReaderError, match="lacks sampling_rate, unit, leads"):
        read_ecg(tmp_path / "b.npz")
    np.savez_compressed(tmp_path / "d.npz", signal=signal, **declared)
    whole = (tmp_path / "d.npz").read_bytes()
    for place in range(60, 2000, 97):  # each byte fails another check, zlib's own among them
        (tmp_path / "d.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with pytest.raises(ReaderError):
            read_ecg(tmp_path / "d.npz")
    (tmp_path / "c.xml").write_text("<x/>")
    with pytest.raises(ReaderError, match=r"no known format; expected WFDB, npz"):
        read_ecg(tmp_path / "c.xml")


def test_one_of_many_recordings(tmp_path: Path, signal: Signal) -> None:
    """`all.npy#2` of an array (recordings, samples, leads) is that recording; a number that is not there is named."""
    path = tmp_path / "all.npy"
    np.save(path, np.stack([signal.T * number for number in (1, 2, 3)]).astype(np.float32))
    declared = {"sampling_rate": 250, "unit": "uV", "leads": list(LEADS), "axes": "samples_leads"}
    path.with_suffix(".json").write_text(json.dumps(declared))
    record = read_ecg(tmp_path / "all.npy#2")
    assert record.sampling_rate == 250
    assert np.abs(record.signal() - removed_median(signal * 0.003)).max() <= 0.0005 + 1e-6
    for name, part in (("all.npy", "holds 3 recordings"), ("all.npy#3", "#0 to #2"), ("all.npy#x", "#x is not there")):
        with pytest.raises(ReaderError, match=part):
            read_ecg(tmp_path / name)
    with pytest.raises(UnnumberedError) as several:
        read_ecg(path)
    again = copy.copy(several.value)  # as between processes
    assert (again.count, str(again), again.field) == (3, str(several.value), "ecg_path")
    write(tmp_path, signal)
    with pytest.raises(ReaderError, match="WFDB holds one"):
        read_ecg(tmp_path / "r#0")


@pytest.mark.parametrize("separator", [",", ";", "\t", "  "])
def test_text_tables(tmp_path: Path, signal: Signal, separator: str) -> None:
    """A line per sample; leads named by the first line or by the sidecar; a time column is left out."""
    path = tmp_path / "a.csv"
    table = np.column_stack([np.arange(signal.shape[1]) / 500, signal.T])
    path.with_suffix(".json").write_text('{"sampling_rate": 500, "unit": "mV"}')
    np.savetxt(path, table, fmt="%.6f", delimiter=separator, header=separator.join(["time", *LEADS]), comments="")
    record = read_ecg(path)
    assert np.abs(record.signal() - removed_median(signal)).max() <= 0.0005 + 1e-6
    np.savetxt(path, table[:, 1:], fmt="%.6f", delimiter=separator)
    with pytest.raises(ReaderError, match="lacks leads"):
        read_ecg(path)
    path.with_suffix(".json").write_text(json.dumps({"sampling_rate": 500, "unit": "mV", "leads": list(LEADS)}))
    np.testing.assert_array_equal(read_ecg(path).values, record.values)
    path.write_text(path.read_text() + separator.join(["x"] * 12) + "\n")
    with pytest.raises(ReaderError, match="no number"):
        read_ecg(path)


def test_text_tables_of_other_habits(tmp_path: Path, signal: Signal) -> None:
    """Decimal commas between semicolons; a comma more at the end of every line but the first; IEC names of leads."""
    path = tmp_path / "a.csv"
    path.with_suffix(".json").write_text('{"sampling_rate": 500, "unit": "mV"}')
    np.savetxt(path, signal.T, fmt="%.6f", delimiter=",", header=",".join(LEADS), comments="")
    plain = path.read_text()
    expected = read_ecg(path).values
    first, _, rest = plain.partition("\n")
    for text in (
        plain.replace(",", ";").replace(".", ","),
        f"{first}\n" + rest.replace("\n", ",\n"),
        first.replace("V", "C") + f"\n{rest}",
    ):
        path.write_text(text)
        assert np.abs(read_ecg(path).values.astype(int) - expected).max() <= 1  # a tie may round the other way


@pytest.mark.parametrize("kept", [["I", "II"], ["II", "aVL"], ["I", "III", "aVF"], ["aVR", "aVL", "aVF", "II"]])
def test_missing_limb_leads_are_derived(tmp_path: Path, signal: Signal, kept: list[str]) -> None:
    """From any two of the six, to quantization; what was derived is named."""
    rows = [LEADS.index(lead) for lead in kept] + list(range(6, 12))
    np.savez(tmp_path / "a.npz", signal=signal[rows], sampling_rate=500, unit="mV", leads=[LEADS[n] for n in rows])
    record = read_ecg(tmp_path / "a.npz")
    assert record.flags["derived_leads"] == [lead for lead in LEADS[:6] if lead not in kept]
    assert np.abs(record.signal() - removed_median(signal)).max() <= 0.0005 + 1e-6
    rows = rows[1:] if len(kept) == 2 else rows[:-1]  # one limb lead is too few, and no chest lead can be derived
    np.savez(tmp_path / "a.npz", signal=signal[rows], sampling_rate=500, unit="mV", leads=[LEADS[n] for n in rows])
    with pytest.raises(ReaderError, match="12 leads needed"):
        read_ecg(tmp_path / "a.npz")


def frames_of(study: ImageStudy) -> list[int]:
    """The gray level of each view of constant frames."""
    return [int(view.frames[0, 16, 16]) for view in study.views]


def test_a_minimal_run_needs_no_more_than_its_pixels(tmp_path: Path, make_run: Callable[..., None]) -> None:
    """SOP class, transfer syntax and pixel module alone: unknown angles, no frame time, the middle of a flat run."""
    frames = np.repeat(np.arange(5, dtype=np.uint8), 32 * 32).reshape(5, 32, 32)
    make_run(tmp_path / "a.dcm", frames)
    view = read_study(tmp_path, SETTINGS).views[0]
    np.testing.assert_array_equal(view.frames, frames[2:3])
    assert np.isnan(view.angulation).all()
    assert view.meta["frame_time"] is None
    assert view.meta["key_frame_source"] == "contrast"


def test_runs_are_found_ordered_and_described(tmp_path: Path, make_run: Callable[..., None]) -> None:
    """InstanceNumber before file name, at any depth, without suffix; a capture and a single image are counted."""
    for name, number, level in (("z/1", 2, 20), ("a/x.dcm", 3, 30), ("b", None, 40), ("y", 1, 10)):
        extra = {} if number is None else {"InstanceNumber": number}
        make_run(
            tmp_path / name,
            np.full((4, 64, 48), level, dtype=np.uint8),
            PositionerPrimaryAngle=level,
            PositionerSecondaryAngle=-level,
            FrameTime=66.7,
            PatientName="Doe^Jane",
            **extra,
        )
    make_run(tmp_path / "capture", np.zeros((4, 8, 8), np.uint8), SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    make_run(tmp_path / "single", np.zeros((1, 8, 8), np.uint8))
    (tmp_path / "notes.txt").write_text("x")
    study = read_study(tmp_path, SETTINGS)
    assert frames_of(study) == [10, 20, 30, 40]
    assert study.others == 3
    np.testing.assert_array_equal(study.views[1].angulation, np.array([20, -20], dtype=np.float32))
    meta = study.views[0].meta
    assert (meta["rows"], meta["columns"], meta["frames"], meta["frame_time"]) == (64, 48, 4, 66.7)
    assert "Doe" not in json.dumps(meta)


@pytest.mark.parametrize("meta", [True, False])
def test_runs_without_preamble_refuse_their_study(tmp_path: Path, make_run: Callable[..., None], meta: bool) -> None:
    """With and without meta information, beside a good run; another class that refers to such a run is counted."""
    path = tmp_path / "b"
    frames = np.full((4, 32, 32), 20, dtype=np.uint8)
    make_run(tmp_path / "a.dcm", frames)
    make_run(
        path, frames, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.12.1"
    )
    path.write_bytes(path.read_bytes()[132:])
    assert read_study(tmp_path, SETTINGS).others == 1
    make_run(path, frames)
    content = path.read_bytes()
    path.write_bytes(content[132 if meta else content.index(b"\x08\0\x16\0") :])
    with pytest.raises(ReaderError, match=r"lacks its header .*dcmconv \+F IN OUT"):
        read_study(tmp_path, SETTINGS)


def test_companions_of_macos_are_no_files_of_a_study(tmp_path: Path, make_run: Callable[..., None]) -> None:
    """`._NAME.dcm` and all below `__MACOSX` neither refuse the study nor count."""
    make_run(tmp_path / "a.dcm", np.full((4, 32, 32), 20, dtype=np.uint8))
    (tmp_path / "__MACOSX").mkdir()
    for name in ("._a.dcm", "__MACOSX/a.dcm"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(4000))
    study = read_study(tmp_path, SETTINGS)
    assert (frames_of(study), study.others) == ([20], 0)


def test_where_the_key_frame_comes_from(tmp_path: Path, make_run: Callable[..., None]) -> None:
    """views.csv before RepresentativeFrameNumber (from 1) before contrast; three frames around it with spacing 2."""
    frames = np.repeat(np.full(9, 200, dtype=np.uint8) - np.arange(9, dtype=np.uint8), 32 * 32).reshape(9, 32, 32)
    frames[6, 10:20, 10:20] = 5
    make_run(tmp_path / "a.dcm", frames)
    assert read_study(tmp_path, SETTINGS).views[0].meta["key_frame"] == 6
    make_run(tmp_path / "a.dcm", frames, RepresentativeFrameNumber=3)
    assert read_study(tmp_path, SETTINGS).views[0].meta["key_frame"] == 2
    (tmp_path / "views.csv").write_text("file,key_frame,primary,secondary\na.dcm,4,-30,25\n")
    view = read_study(tmp_path, FrameSettings(32, 3, 2)).views[0]
    assert view.meta["key_frame_source"] == "views.csv"
    np.testing.assert_array_equal(view.frames, frames[[2, 4, 6]])
    np.testing.assert_array_equal(view.angulation, np.array([-30, 25], dtype=np.float32))
    (tmp_path / "views.csv").write_text("file,key_frame,primary,secondary\na.dcm,9,,\n")
    with pytest.raises(ReaderError, match="key frame 9 of a run of 9 frames"):
        read_study(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({}, 1000 / 4095 * 255),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 255 - 1000 / 4095 * 255),
        ({"WindowCenter": 1000.5, "WindowWidth": 1001}, 127.5),
        ({"WindowCenter": [1000.5, 5], "WindowWidth": [1001, 5]}, 127.5),
        ({"RescaleSlope": 2, "RescaleIntercept": -100, "RescaleType": "US"}, 1000 / 4095 * 255),
        ({"RescaleSlope": 2, "RescaleIntercept": 0, "WindowCenter": 2000.5, "WindowWidth": 1001}, 127.5),
    ],
)
def test_gray_scale(
    tmp_path: Path, make_run: Callable[..., None], elements: dict[str, object], expected: float
) -> None:
    """12-bit values of 1000 against PS3.3 C.11.2.1.2 by hand; never the range of the frame itself."""
    make_run(tmp_path / "a.dcm", np.full((2, 32, 32), 1000, dtype=np.uint16), BitsStored=12, HighBit=11, **elements)
    assert frames_of(read_study(tmp_path, SETTINGS)) == [pytest.approx(expected, abs=0.51)]


def test_bad_studies_are_refused(
    tmp_path: Path, make_run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder, no views, a truncated and a damaged file, color, an oversized frame, a codec that is not installed."""

    def message() -> str:
        with pytest.raises(ReaderError) as caught:
            read_study(tmp_path / "s", SETTINGS)
        assert caught.value.field == "study_path"
        assert str(tmp_path) not in str(caught.value)
        return str(caught.value)

    path = tmp_path / "s" / "a.dcm"
    frames = np.random.default_rng(0).integers(0, 255, (4, 32, 32), dtype=np.uint8)
    assert "does not exist" in message()
    path.parent.mkdir()
    assert "zero views" in message()
    make_run(path, frames[:1])
    assert "zero views: none of 1 DICOM files" in message()
    make_run(path, frames, RepresentativeFrameNumber=4)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1500])
    assert "truncated or damaged" in message()
    path.write_bytes(whole[:200])
    assert "DICOM" in message()
    path.write_bytes(b"\0" * 300)
    assert "no DICOM header" in message()
    make_run(path, frames, PhotometricInterpretation="RGB", SamplesPerPixel=3)
    assert "expected MONOCHROME1 or MONOCHROME2" in message()
    for spacing in (0.3, [0.1, 0.2, 0.3]):  # nobody needs it, so nothing of it refuses a study
        make_run(path, frames, ImagerPixelSpacing=spacing)
        assert read_study(path.parent, SETTINGS).views[0].meta["pixel_spacing"] is None
    with pytest.raises(ReaderError, match="cannot be opened") as caught:
        read_study(tmp_path / ("x" * 300), SETTINGS)
    assert "xxx" not in str(caught.value)
    make_run(path, frames, Rows=60000)
    assert "at most" in message()
    make_run(path, frames)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4."))
    assert "not one that pydicom decodes" in message()
    make_run(path, frames)
    monkeypatch.setattr(Decoder, "is_available", property(lambda decoder: False))
    monkeypatch.setattr("stence_dist.data.readers.images.codecs._IN_EXTRA", (".1.2.1",))
    assert 'pip install "stence_dist[dicom]"' in message()


def test_stored_features(tmp_path: Path) -> None:
    """Tokens by file name with angles from views.csv; bfloat16 stays exact, float32 is stored as float16."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(1, 3, 8)).astype(np.float32)
    np.save(tmp_path / "b.npy", tokens)
    np.save(tmp_path / "a.npy", tokens + 1)
    (tmp_path / "views.csv").write_text("file,key_frame,primary,secondary\na.npy,3,-30,20\n")
    study = read_study(tmp_path, SETTINGS)
    assert (study.kind, study.dtype) == ("tokens", "float16")
    np.testing.assert_array_equal(study.views[0].frames, tokens + 1)
    np.testing.assert_array_equal(study.views[0].angulation, np.array([-30, 20], dtype=np.float32))
    assert np.isnan(study.views[1].angulation).all()

    brain = torch.from_numpy(tokens).bfloat16()
    save_file({"tokens": brain}, tmp_path / "c.safetensors")
    with pytest.raises(ReaderError, match="mix bfloat16"):
        read_study(tmp_path, SETTINGS)
    alone = read_study(tmp_path / "c.safetensors", SETTINGS)
    assert alone.dtype == "bfloat16"
    np.testing.assert_array_equal(alone.views[0].frames, brain.float().numpy())


def test_bad_features_are_refused(tmp_path: Path) -> None:
    """A wrong rank, NaN, a truncated file, integers."""
    np.save(tmp_path / "a.npy", np.zeros((3, 8), dtype=np.float32))
    with pytest.raises(ReaderError, match=r"expected \(F, N, D\)"):
        read_study(tmp_path, SETTINGS)
    np.save(tmp_path / "a.npy", np.full((1, 3, 8), np.nan, dtype=np.float32))
    with pytest.raises(ReaderError, match="NaN, infinity"):
        read_study(tmp_path, SETTINGS)
    np.save(tmp_path / "a.npy", np.zeros((1, 3, 8), dtype=np.int32))
    with pytest.raises(ReaderError, match="expected float16 or float32"):
        read_study(tmp_path, SETTINGS)
    (tmp_path / "a.npy").unlink()
    save_file({"tokens": torch.zeros(1, 3, 8)}, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-8])
    with pytest.raises(ReaderError, match="truncated or damaged"):
        read_study(tmp_path, SETTINGS)
