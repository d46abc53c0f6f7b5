"""XML readers against numbers taken from real files by other means, on files of known integers, and on hostile ones."""

import base64
import contextlib
import re
import struct
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stence_dist.data.readers.ecg.aecg import is_aecg, read_aecg
from stence_dist.data.readers.ecg.cardiosoft import is_cardiosoft, read_cardiosoft
from stence_dist.data.readers.ecg.muse import is_muse, read_muse
from stence_dist.data.readers.ecg.philips import is_philips, read_philips, without_calibration
from stence_dist.data.readers.ecg.waveform import Device, Waveform, to_record
from stence_dist.data.readers.ecg.xml_file import parse_xml, root_of, samples_of
from stence_dist.data.readers.record import ReaderError
from stence_dist.ecg import LEADS

EIGHT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
PRIVATE = ("Mustermann", "Erika", "4711-0815", "12-03-1951", "chest pain since", "Dr. Who")
PERSON = "".join(f"<{tag}>{text}</{tag}>" for tag, text in zip("abcdef", PRIVATE, strict=True))
SAMPLES = 1200
Digital = NDArray[np.int64]
Reader = Callable[[Path], Waveform]


@pytest.fixture
def digital(make_ecg: Callable[..., NDArray[np.float64]]) -> dict[str, Digital]:
    """Twelve leads (1200,) in steps of 5 uV; the limb leads fit each other exactly."""
    steps = 2 * np.rint(make_ecg(1)[:, :SAMPLES] * 100).astype(np.int64)
    one, two = steps[:2]
    limb = [one, two, two - one, -(one + two) // 2, one - two // 2, two - one // 2]
    return dict(zip(LEADS, [*limb, *steps[6:]], strict=True))


# Writers: each gives the text of a file as its makers write it, with a patient's data in every free place.


def muse_lead(name: str, values: Digital, scale: str = "4.88", unit: str = "MICROVOLTS") -> str:
    content = values.astype("<i2").tobytes()
    return (
        f"<LeadData><LeadByteCountTotal>{len(content)}</LeadByteCountTotal><LeadTimeOffset>0</LeadTimeOffset>"
        f"<LeadSampleCountTotal>{len(values)}</LeadSampleCountTotal>"
        f"<LeadAmplitudeUnitsPerBit>{scale}</LeadAmplitudeUnitsPerBit><LeadAmplitudeUnits>{unit}</LeadAmplitudeUnits>"
        f"<LeadID>{name}</LeadID><LeadOffsetFirstSample>0</LeadOffsetFirstSample><LeadSampleSize>2</LeadSampleSize>"
        f"<LeadDataCRC32>{zlib.crc32(content)}</LeadDataCRC32>"
        f"<WaveFormData>\n{base64.encodebytes(content).decode()}</WaveFormData></LeadData>"
    )


def muse_wave(kind: str, leads: Sequence[str], base: str = "500", exponent: str = "0") -> str:
    return (
        f"<Waveform><WaveformType>{kind}</WaveformType><NumberofLeads>{len(leads)}</NumberofLeads>"
        f"<SampleBase>{base}</SampleBase><SampleExponent>{exponent}</SampleExponent>"
        f"<HighPassFilter>16</HighPassFilter><LowPassFilter>150</LowPassFilter>{''.join(leads)}</Waveform>"
    )


def muse_file(waves: str, device: str = "MAC55") -> str:
    return (
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<!DOCTYPE RestingECG SYSTEM "restecg.dtd">\n<RestingECG>'
        f"<PatientDemographics>{PERSON}</PatientDemographics><Order>{PERSON}</Order>"
        f"<TestDemographics>{PERSON}<AcquisitionDevice>{device}</AcquisitionDevice></TestDemographics>"
        f"<Diagnosis><DiagnosisStatement><StmtText>{' '.join(PRIVATE)}</StmtText></DiagnosisStatement></Diagnosis>"
        f"{waves}</RestingECG>"
    )


def muse_text(digital: dict[str, Digital]) -> str:
    return muse_file(muse_wave("Rhythm", [muse_lead(name, digital[name]) for name in EIGHT]))


def cardiosoft_text(digital: dict[str, Digital]) -> str:
    def waves(sign: int) -> str:
        head = "<NumberOfLeads>12</NumberOfLeads><SampleRate units='Hz'>500</SampleRate>"
        head += (
            f"<ChannelSampleCountTotal>{SAMPLES}</ChannelSampleCountTotal><Resolution units='uVperLsb'>5</Resolution>"
        )
        rows = [(name, ",".join(str(sign * value) for value in values)) for name, values in digital.items()]
        return head + "".join(
            f"<WaveformData lead='{name}'>\t\t{row.replace(',7,', ', 7,')}\r\n</WaveformData>" for name, row in rows
        )

    return (
        '<?xml version="1.0" encoding="ISO-8859-1" ?>\r\n<CardiologyXML><ClinicalInfo>'
        f"{PERSON}<DeviceInfo><Desc>CardioSoft</Desc>{PERSON}</DeviceInfo></ClinicalInfo><PatientInfo>{PERSON}</PatientInfo>"
        "<FilterSetting><LowPass units='Hz'>100</LowPass><HighPass units='Hz'>0.01</HighPass></FilterSetting>"
        f"<RestingECGMeasurements><MedianSamples>{waves(-1)}</MedianSamples></RestingECGMeasurements>"
        f"<StripData>{waves(1)}</StripData></CardiologyXML>"
    )


def aecg_set(
    digital: dict[str, Digital], step: str = '<increment value="0.002" unit="s"/>', kind: str = "GLIST_TS"
) -> str:
    rows = "".join(
        f'<component><sequence><code code="MDC_ECG_LEAD_{name.upper()}"/><value xsi:type="SLIST_PQ">'
        f'<origin value="0" unit="uV"/><scale value="5" unit="uV"/><digits>{" ".join(map(str, values))}\n</digits>'
        "</value></sequence></component>"
        for name, values in digital.items()
    )
    times = "ABSOLUTE" if kind == "GLIST_TS" else "RELATIVE"
    return (
        f'<sequenceSet><component><sequence><code code="TIME_{times}"/><value xsi:type="{kind}">'
        f'<head value="19510312091000"/>{step}</value></sequence></component>{rows}</sequenceSet>'
    )


def aecg_file(sets: str, beats: str = "", code: str = "RHYTHM") -> str:
    def corner(kind: str, hertz: str) -> str:
        prefix = "MDC_ECG_CTL_VBL_ATTR_FILTER_"
        return (
            f'<controlVariable><controlVariable><code code="{prefix}{kind}"/><component><controlVariable>'
            f'<code code="{prefix}CUTOFF_FREQ"/><value xsi:type="PQ" value="{hertz}" unit="Hz"/></controlVariable>'
            "</component></controlVariable></controlVariable>"
        )

    return (
        f'<!-- {" ".join(PRIVATE)} -->\n<h:AnnotatedECG xmlns:h="urn:hl7-org:v3" xmlns="urn:hl7-org:v3" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" type="Observation">'
        f'<componentOf>{PERSON}</componentOf><component><series><code code="{code}"/><author><seriesAuthor>{PERSON}'
        "<manufacturedSeriesDevice><manufacturerModelName>ELI250</manufacturerModelName></manufacturedSeriesDevice>"
        f"</seriesAuthor></author>{corner('LOW_PASS', '150')}{corner('HIGH_PASS', '0.05')}<component>{sets}</component>"
        '<derivation><derivedSeries><code code="REPRESENTATIVE_BEAT"/><component>'
        f"{beats}</component></derivedSeries></derivation></series></component></h:AnnotatedECG>"
    )


def aecg_text(digital: dict[str, Digital]) -> str:
    return aecg_file(aecg_set(digital), aecg_set({name: -values for name, values in digital.items()}))


def codes(values: Sequence[int]) -> bytes:
    """LZW in which every byte is its own 10-bit code: legal, if not small."""
    bits = "".join(f"{value:010b}" for value in values)
    return bytes(int(bits[place : place + 8].ljust(8, "0"), 2) for place in range(0, len(bits), 8))


def xli(values: Digital) -> bytes:
    """One channel: size, the first second difference, then two samples and the other differences plus 64.

    z[n] = 2 z[n-1] - z[n-2] - d[n], with d[2] in the head; high bytes first, then low bytes.
    """
    drops = 2 * values[1:-1] - values[:-2] - values[2:]
    words = np.concatenate([values[:2], drops[1:] + 64, [64]]).astype(">i2")
    content = codes(words.view(np.uint8).reshape(-1, 2).T.ravel().tolist())
    return struct.pack("<ihh", len(content), 1, int(drops[0])) + content


def philips_text(digital: dict[str, Digital], content: bytes | None = None, version: str = "1.04") -> str:
    one, two, three, right, left, foot = [digital[name] for name in LEADS[:6]]
    stored = [
        one,
        two,
        two - one - three,
        -right - (one + two) // 2,
        (one - three) // 2 - left,
        (two + three) // 2 - foot,
        *[digital[name] for name in LEADS[6:]],
        np.zeros_like(one),  # carts add four channels of nothing
    ]
    content = b"".join(map(xli, stored)) if content is None else content
    if version == "1.03":
        head = 'compressflag="True" compressmethod="XLI" nbitspersample="16"'
    else:
        head = (
            f'compression="XLI" numberofleads="12" leadlabels="{" ".join(LEADS)}" samplespersecond="500" '
            'resolution="5" bitspersample="16" hipass="0.05" lowpass="150"'
        )
    return (
        '<?xml version="1.0" encoding="utf-16"?>\n<restingecgdata xmlns="http://www3.medical.philips.com">'
        f"<documentinfo><filename>{PRIVATE[0]}</filename><documentversion>{version}</documentversion></documentinfo>"
        f"<userdefines>{PERSON}</userdefines><dataacquisition><machine machineid='{PRIVATE[2]}'>PageWriter TC</machine>"
        f"<acquirer>{PERSON}</acquirer><signalcharacteristics><samplingrate>500</samplingrate>"
        "<signalresolution>5</signalresolution><signalbandwidth>0.05-150</signalbandwidth>"
        "<acquisitiontype>STD-12</acquisitiontype><numberchannelsallocated>12</numberchannelsallocated>"
        f"</signalcharacteristics></dataacquisition><patient>{PERSON}</patient><waveforms><parsedwaveforms {head} "
        f'dataencoding="Base64" durationperchannel="{2 * len(one)}">{base64.b64encode(content).decode()}'
        "</parsedwaveforms></waveforms></restingecgdata>"
    )


KINDS: dict[str, tuple[Reader, Callable[[dict[str, Digital]], str], str]] = {
    "muse": (read_muse, muse_text, "latin-1"),
    "cardiosoft": (read_cardiosoft, cardiosoft_text, "latin-1"),
    "aecg": (read_aecg, aecg_text, "utf-8"),
    "philips": (read_philips, philips_text, "utf-16"),
}


def write(folder: Path, text: str, encoding: str = "latin-1") -> Path:
    path = folder / "Mustermann.xml"
    path.write_bytes(text.encode(encoding))
    return path


def refusal(read: Reader, path: Path) -> str:
    """The message that a file is refused with; nothing of the patient is in it, neither from the file nor its path."""
    with pytest.raises(ReaderError) as caught:
        read(path)
    message = str(caught.value)
    assert not any(text in message for text in (*PRIVATE, str(path.parent)))
    assert caught.value.__cause__ is None
    return message


# Real files


def test_roots_of_the_real_files(sample_data: Path) -> None:
    """Each file of the samples is of exactly one kind, the aECG among the Philips files, too."""
    kinds = {"muse": is_muse, "cardiosoft": is_cardiosoft, "aecg": is_aecg, "philips": is_philips}
    expected = {"muse_xml_ml4h": ["muse"], "cardiosoft_xml_ml4h": ["cardiosoft"], "hl7_aecg_fda": ["aecg"]}
    files = [path for path in sample_data.glob("*/*") if path.suffix.lower() == ".xml"]
    assert len(files) == 8
    for path in files:
        wanted = expected.get(path.parent.name, ["aecg"] if "converted" in path.name else ["philips"])
        start = path.read_bytes()[:65536]
        assert [name for name, recognizes in kinds.items() if recognizes(path, start)] == wanted


def test_real_muse_file(sample_data: Path) -> None:
    """V3 decoded here from the text and times 4.88 uV; the rate fits the file's own beat times and heart rate.

    That the high-pass filter's "5" cannot be 5 Hz: V1 has more than half of its power below 5 Hz.
    """
    path = sample_data / "muse_xml_ml4h" / "muse_scrubbed_1.xml"
    text = path.read_text(encoding="latin-1")
    rhythm = text[text.index("<WaveformType>Rhythm") :]
    v3 = rhythm[rhythm.index("<LeadID>V3<") :]
    steps = struct.unpack("<2500h", base64.b64decode(v3[v3.index("<WaveFormData>") + 14 : v3.index("</WaveFormData>")]))
    waveform = read_muse(path)
    assert waveform.leads == EIGHT
    np.testing.assert_allclose(waveform.signal[4], np.array(steps) * 0.00488, rtol=1e-12)
    assert (min(steps), max(steps)) == (-219, 102)
    beats = [int(found) for found in re.findall(r"<Time>(\d+)</Time>", text)]
    rate = 60 * waveform.sampling_rate / np.diff(beats).mean()
    assert waveform.sampling_rate == 240
    assert round(rate) == int(re.search(r"<VentricularRate>(\d+)<", text)[1])
    assert waveform.device == Device("MAC", 0.05, 150.0)
    power = np.abs(np.fft.rfft(waveform.signal[2] - waveform.signal[2].mean())) ** 2
    assert power[np.fft.rfftfreq(2500, 1 / 240) < 5].sum() > 0.5 * power.sum()
    record = to_record(waveform)
    assert record.values.shape == (12, 2500)
    assert record.flags["derived_leads"] == ["III", "aVR", "aVL", "aVF"]


def test_real_cardiosoft_file(sample_data: Path) -> None:
    """V4 of the strip, not of the median, taken from the text here and times 5 uV; all limb lead relations hold."""
    path = sample_data / "cardiosoft_xml_ml4h" / "ukbb_scrubbed.xml"
    strip = path.read_text(encoding="latin-1").split("<StripData>")[1]
    steps = [int(value) for value in re.search(r'lead="V4">([^<]*)<', strip)[1].split(",")]
    waveform = read_cardiosoft(path)
    assert waveform.leads == LEADS
    assert waveform.sampling_rate == 500
    assert len(steps) == 5000
    np.testing.assert_allclose(waveform.signal[9], np.array(steps) * 0.005, rtol=1e-12)
    assert waveform.device == Device("CardioSoft", 0.01, 100.0)
    assert to_record(waveform).flags["header_relation_error"] < 0.02


def test_real_aecg_file(sample_data: Path) -> None:
    """V2 of the rhythm taken from the text here and times 2.5 uV; the rate fits the stated start and end, 10 s."""
    path = sample_data / "hl7_aecg_fda" / "subject1_0.xml"
    text = path.read_text()
    steps = [int(value) for value in re.search(r"LEAD_V2\".*?<digits>([^<]*)<", text, re.DOTALL)[1].split()]
    waveform = read_aecg(path)
    assert [name.removeprefix("MDC_ECG_LEAD_") for name in map(str, waveform.leads)] == [
        *EIGHT,
        *("III", "AVR", "AVL", "AVF"),
    ]
    assert len(steps) == 5000
    assert waveform.sampling_rate == 500 == len(steps) / 10
    np.testing.assert_allclose(waveform.signal[3], np.array(steps) * 0.0025, rtol=1e-12)
    assert waveform.device == Device("ELI250", None, 150.0)
    assert to_record(waveform).flags["header_relation_error"] < 0.02


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("1_03__129DYPRG.XML", "HeartstartMRx"),
        ("1_04__3191723_ZZDEMOPTONLY_1-04_orig.xml", "PageWriter Touch"),
        ("1_04__ad4d3d80-d165_1-04_orig.xml", "PageWriter Touch"),
        ("1_04_01__2020-5-18_15-48-11.xml", "PageWriter TC"),
    ],
)
def test_real_philips_files(sample_data: Path, name: str, device: str) -> None:
    """Ten of the eleven seconds that sierraecg reads, times 5 uV; the pulse lies in the eleventh and nowhere else.

    There it is: all twelve leads exactly 200 steps, 1 mV, for 0.2 s. In what remains no two samples have the leads
    alike, and it ends with ECG, in which the limb leads fit each other.
    """
    sierraecg = pytest.importorskip("sierraecg")
    path = sample_data / "philips_xml" / name
    steps = np.stack([lead.samples for lead in sierraecg.read_file(str(path)).leads]).astype(np.int64)
    assert steps.shape == (12, 5500)
    alike = (steps == steps[0]).all(axis=0)
    assert (steps[:, 5350:5450] == 200).all()
    assert (alike & (steps[0] == 200)).sum() == 100
    waveform = read_philips(path)
    assert waveform.leads == LEADS
    assert waveform.sampling_rate == 500
    np.testing.assert_allclose(waveform.signal, steps[:, :5000] * 0.005, rtol=1e-12)
    assert not alike[:5000].any()
    assert np.abs(steps[0] + steps[2] - steps[1])[4500:5000].max() <= 2
    assert waveform.device == Device(device, 0.05, 150.0)
    assert not to_record(waveform).flags["limb_leads_break"]


def test_a_converted_recording_equals_its_original(sample_data: Path) -> None:
    """The aECG that Philips software made of one of the files: the same ten seconds within its rounding, no pulse."""
    pytest.importorskip("sierraecg")
    folder = sample_data / "philips_xml"
    original = read_philips(folder / "1_04__ad4d3d80-d165_1-04_orig.xml")
    converted = read_aecg(folder / "1_04__ad4d3d80-d165_1-04_converted.xml")
    assert converted.signal.shape == (12, 5000)
    assert np.abs(converted.signal - original.signal).max() <= 0.0201
    assert converted.device == original.device


# Synthetic files


@pytest.mark.parametrize("kind", KINDS)
def test_known_integers_come_back_in_millivolts(tmp_path: Path, digital: dict[str, Digital], kind: str) -> None:
    """Every dialect, 500 Hz: the integers written, times their scale; twelve leads that fit each other."""
    read, text, encoding = KINDS[kind]
    if kind == "philips":
        pytest.importorskip("sierraecg")
    waveform = read(write(tmp_path, text(digital), encoding))
    names = [str(name).removeprefix("MDC_ECG_LEAD_").casefold() for name in waveform.leads]
    assert names == [name.casefold() for name in (EIGHT if kind == "muse" else LEADS)]
    scale = 0.00488 if kind == "muse" else 0.005
    stored = {name.casefold(): values for name, values in digital.items()}
    for row, name in zip(waveform.signal, names, strict=True):
        np.testing.assert_allclose(row, stored[name] * scale, rtol=1e-12)
    assert waveform.sampling_rate == 500
    record = to_record(waveform)
    assert record.values.shape == (12, SAMPLES)
    expected = np.stack([digital[name] for name in LEADS]) * scale
    assert np.abs(record.signal() - (expected - np.median(expected, axis=1, keepdims=True))).max() < 0.00051


@pytest.mark.parametrize("kind", KINDS)
def test_no_patient_leaves_a_reader(tmp_path: Path, digital: dict[str, Digital], kind: str) -> None:
    """Name, number, date, free text and staff of a file are in no field of the waveform and no flag of the record."""
    read, text, encoding = KINDS[kind]
    if kind == "philips":
        pytest.importorskip("sierraecg")
    written = text(digital)
    assert all(private in written for private in PRIVATE)
    waveform = read(write(tmp_path, written, encoding))
    shown = f"{vars(waveform)} {waveform!r} {to_record(waveform).flags}"
    assert not [private for private in (*PRIVATE, "1951", str(tmp_path)) if private in shown]


def test_muse_device_is_a_product_or_nothing(tmp_path: Path, digital: dict[str, Digital]) -> None:
    """What the field holds that is no recorder of the maker is dropped; the filter is in hundredths of a hertz."""
    wave = muse_wave("Rhythm", [muse_lead(name, digital[name]) for name in EIGHT])
    for stated in ("MAC", "MAC55", "MAC5K", "MAC VU360", "MAC 5500 HD", "CASE8000", "CardioSoft"):
        assert read_muse(write(tmp_path, muse_file(wave, stated))).device == Device(stated, 0.16, 150.0)
    for stated in ("", "Mustermann", "MACDONALD JOHN", "CASE of Mr Smith", "MAC 12-03-1951", "MAC 4711-0815"):
        assert read_muse(write(tmp_path, muse_file(wave, stated))).device.model is None


def test_muse_takes_the_rhythm_by_lead_and_scale(tmp_path: Path, digital: dict[str, Digital]) -> None:
    """Median before Rhythm, two leads swapped, another scale and unit per lead, 25 * 10**1 Hz."""
    order = ["V1", "I", "II", "V2", "V3", "V4", "V5", "V6"]
    scales = {name: (str(1 + number), 1 + number) for number, name in enumerate(order)}
    median = muse_wave("Median", [muse_lead(name, np.full(600, 7)) for name in EIGHT], base="1000")
    rhythm = muse_wave(
        "RHYTHM",
        [
            muse_lead(
                name,
                digital[name],
                scales[name][0] if name != "V6" else "0.008",
                "MICROVOLTS" if name != "V6" else "MILLIVOLTS",
            )
            for name in order
        ],
        base="25",
        exponent="1",
    )
    waveform = read_muse(write(tmp_path, muse_file(median + rhythm)))
    assert waveform.leads == tuple(order)
    assert waveform.sampling_rate == 250
    for row, name in zip(waveform.signal, order, strict=True):
        np.testing.assert_allclose(row, digital[name] * scales[name][1] / 1000, rtol=1e-12)


def test_muse_wave_that_states_no_type(tmp_path: Path, digital: dict[str, Digital]) -> None:
    """The only waveform of a file is taken for the rhythm; of two that say nothing, neither is."""
    wave = muse_wave("", [muse_lead(name, digital[name]) for name in EIGHT])
    found = read_muse(write(tmp_path, muse_file(wave)))
    np.testing.assert_allclose(found.signal[1], digital["II"] * 0.00488, rtol=1e-12)
    assert "0 rhythm waveforms among 2" in refusal(read_muse, write(tmp_path, muse_file(2 * wave)))


def test_base64_without_its_padding(tmp_path: Path, digital: dict[str, Digital]) -> None:
    """1199 samples take 2398 bytes and two signs of padding, which some programs leave out."""
    text = muse_file(muse_wave("Rhythm", [muse_lead(name, digital[name][:-1]) for name in EIGHT]))
    assert text.count("==\n") == len(EIGHT)
    found = read_muse(write(tmp_path, text.replace("==\n", "\n")))
    np.testing.assert_allclose(found.signal[0], digital["I"][:-1] * 0.00488, rtol=1e-12)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<WaveformType>Rhythm", "<WaveformType>Median", "0 rhythm waveforms among"),
        ("</Waveform>", "</Waveform><Waveform><WaveformType>Rhythm</WaveformType></Waveform>", "2 rhythm waveforms"),
        ("<SampleBase>500<", "<SampleBase>0<", "sampling rate 0 Hz; expected 1 Hz to 1 MHz"),
        ("<SampleBase>500<", "<SampleBase>-500<", "sampling rate -500 Hz"),
        ("<SampleBase>500<", "<SampleBase>nan<", "SampleBase is missing or no number"),
        ("<SampleBase>500<", "<SampleBase>Erika<", "SampleBase is missing or no number"),
        ("<SampleExponent>0<", "<SampleExponent>6<", r"sampling rate 5e\+08 Hz"),
        ("<SampleExponent>0<", "<SampleExponent>999999999<", "SampleExponent is 1e"),
        ("<SampleExponent>0<", "<SampleExponent>0.5<", "SampleExponent is 0.5; expected a whole number"),
        ("CountTotal>1200<", "CountTotal>1000000000000<", "8 leads x 1000000000000 samples; at most"),
        ("CountTotal>1200<", "CountTotal>1199<", "2400 bytes; its header states 1199 samples"),
        ("CountTotal>1200<", "CountTotal><", "LeadSampleCountTotal is missing"),
        ("<LeadSampleSize>2<", "<LeadSampleSize>4<", "4 bytes per sample; expected 2"),
        ("<WaveFormData>\n", "<WaveFormData>\n*", "WaveFormData is no valid base64"),
        ("<WaveFormData>\n", "<WaveFormData>\nA", "WaveFormData is no valid base64"),
        ("<WaveFormData>\n", "<WaveFormData>\n\u00e9", "WaveFormData is no valid base64"),
        ("<WaveFormData>\n", "<WaveFormData><x/>", "0 bytes; its header states 1200"),
        ("<LeadDataCRC32>", "<LeadDataCRC32>1", "does not fit its LeadDataCRC32"),
        (">MICROVOLTS<", ">FURLONGS<", "the unit is not known"),
        (">MICROVOLTS<", "><", "the unit is not stated"),
        (">4.88<", ">0<", "LeadAmplitudeUnitsPerBit is 0; expected more"),
        (">4.88<", ">-10<", "LeadAmplitudeUnitsPerBit is -10"),
        (">4.88<", ">1e999<", "LeadAmplitudeUnitsPerBit is missing or no number"),
        ("<LeadTimeOffset>0<", "<LeadTimeOffset>2500<", "start at different times"),
    ],
)
def test_damaged_muse_files_are_refused(
    tmp_path: Path, digital: dict[str, Digital], old: str, new: str, message: str
) -> None:
    """One place changed, in the first lead or above the leads."""
    text = muse_text(digital)
    assert old in text
    assert re.search(message, refusal(read_muse, write(tmp_path, text.replace(old, new, 1))))


def test_muse_gaps_and_checksums_that_nobody_computed(tmp_path: Path, digital: dict[str, Digital]) -> None:
    """The lowest 16-bit integer is a missing sample, not -160 mV; a checksum of 0 refuses nothing."""
    digital["V1"][100:150] = -32768
    text = muse_text(digital)
    waveform = read_muse(write(tmp_path, re.sub("<LeadDataCRC32>[0-9]+<", "<LeadDataCRC32>0<", text)))
    gaps = np.isnan(waveform.signal)
    assert gaps[EIGHT.index("V1"), 100:150].all()
    assert gaps.sum() == 50
    record = to_record(waveform)
    assert np.nanmax(np.abs(record.signal())) < 10
    assert record.flags["missing_share"] == pytest.approx(50 / (12 * SAMPLES))


def test_muse_without_leads_or_with_uneven_ones(tmp_path: Path, digital: dict[str, Digital]) -> None:
    """No lead; leads of two lengths; seven leads are a matter of the record; no checksum is no fault."""
    assert "0 leads" in refusal(read_muse, write(tmp_path, muse_file(muse_wave("Rhythm", []))))
    rows = [muse_lead(name, digital[name]) for name in EIGHT]
    uneven = muse_wave("Rhythm", [*rows[:7], muse_lead("V6", digital["V6"][:-1])])
    assert "leads of 1199 to 1200 samples" in refusal(read_muse, write(tmp_path, muse_file(uneven)))
    seven = read_muse(write(tmp_path, muse_file(muse_wave("Rhythm", rows[:7]))))
    with pytest.raises(ReaderError, match=r"lead III aVR aVL aVF V6 missing .*V6 cannot be derived"):
        to_record(seven)
    bare = re.sub(r"<LeadDataCRC32>\d+</LeadDataCRC32>", "", muse_text(digital))
    assert read_muse(write(tmp_path, bare)).leads == EIGHT


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<StripData>", "<StripData><ChannelSampleCountTotal>1199</ChannelSampleCountTotal>", "1200 samples; .* 1199"),
        (
            "<StripData>",
            "<StripData><ChannelSampleCountTotal>999999999999</ChannelSampleCountTotal>",
            "12 leads x 9999",
        ),
        ("<StripData>", "<StripData><SampleRate units='Hz'>0</SampleRate>", "SampleRate is 0; expected more than 0"),
        ("<StripData>", "<StripData><SampleRate units='Hz'>1e9</SampleRate>", r"sampling rate 1e\+09 Hz"),
        ("<SampleRate units='Hz'>", "<SampleRate units='bpm'>", "no SampleRate in Hz"),
        ("<StripData>", "<StripData><Resolution units='ells'>5</Resolution>", "no Resolution in a unit per step"),
        ("<StripData>", "<StripData><Resolution units='ellsperLsb'>5</Resolution>", "the unit is not known"),
        ("<StripData>", "<StripData><Resolution units='uVperLsb'>-5</Resolution>", "Resolution is -5"),
        ("<StripData>", "<StripData><WaveformData lead='Z'>1,2</WaveformData>", "leads of 2 to 1200 samples"),
        ("</StripData>", "</StripData><StripData></StripData>", "2 strips; expected one"),
        ("StripData>", "OtherData>", "0 strips; expected one"),
        ("StripData>", "FullDisclosureData>", "0 strips and a full disclosure, which is not read"),
        ("\t\t", "\t\tErika,", "holds something that is no number"),
        ("\t\t", "\t\tnan,", "holds something that is no number"),
        ("\t\t", "\t\t,,7,", "leads of 1200 to 1201 samples"),
    ],
)
def test_damaged_cardiosoft_files_are_refused(
    tmp_path: Path, digital: dict[str, Digital], old: str, new: str, message: str
) -> None:
    """One thing changed in the strip."""
    median, strip = cardiosoft_text(digital).split("</RestingECGMeasurements>")
    assert old in strip
    changed = strip.replace(old, new) if old == "StripData>" else strip.replace(old, new, 1)
    assert re.search(message, refusal(read_cardiosoft, write(tmp_path, median + "</RestingECGMeasurements>" + changed)))


def test_cardiosoft_text_may_end_with_a_comma(tmp_path: Path, digital: dict[str, Digital]) -> None:
    """A trailing comma, as numpy's own parser of such text would turn into one more sample."""
    text = cardiosoft_text(digital)
    plain = read_cardiosoft(write(tmp_path, text)).signal
    ended = read_cardiosoft(write(tmp_path, text.replace("\r\n</WaveformData>", ",\r\n</WaveformData>"))).signal
    np.testing.assert_array_equal(ended, plain)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        ('<increment value="0.004" unit="s"/>', 250),
        ('<increment value="1" unit="ms"/>', 1000),
        ('<increment value="2000" unit="us"/>', 500),
        ('<increment value="2000" unit="&#181;s"/>', 500),
        ('<increment value="2000" unit="&#956;s"/>', 500),
        ('<increment value="3.90625" unit="ms"/>', 256),
    ],
)
@pytest.mark.parametrize("kind", ["GLIST_TS", "GLIST_PQ"])
def test_aecg_rates(tmp_path: Path, digital: dict[str, Digital], step: str, rate: float, kind: str) -> None:
    """Absolute and relative times, seconds to microseconds."""
    assert read_aecg(write(tmp_path, aecg_file(aecg_set(digital, step, kind)))).sampling_rate == rate


def test_aecg_origin_scale_and_units(tmp_path: Path, digital: dict[str, Digital]) -> None:
    """An origin in one unit and a scale in another: value = origin + scale * digit."""
    text = aecg_file(aecg_set(digital))
    text = text.replace(
        '<origin value="0" unit="uV"/><scale value="5" unit="uV"/>',
        '<origin value="2" unit="mV"/><scale value="2.5E2" unit="nV"/>',
    )
    waveform = read_aecg(write(tmp_path, text))
    np.testing.assert_allclose(waveform.signal, 2 + np.stack(list(digital.values())) * 0.00025, rtol=1e-12)


def test_aecg_origin_of_nothing_needs_no_unit(tmp_path: Path, digital: dict[str, Digital]) -> None:
    """0 is 0 in any unit; any other number without one is refused."""
    text = aecg_text(digital)
    waveform = read_aecg(write(tmp_path, text.replace('<origin value="0" unit="uV"/>', '<origin value="0"/>')))
    np.testing.assert_allclose(waveform.signal, np.stack(list(digital.values())) * 0.005, rtol=1e-12)
    other = write(tmp_path, text.replace('<origin value="0" unit="uV"/>', '<origin value="1"/>', 1))
    assert "the unit is not stated" in refusal(read_aecg, other)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('code="RHYTHM"', 'code="Rhythm"'),
        ('code="RHYTHM"', 'code="OTHER"'),
        ('<series><code code="RHYTHM"/>', "<series>"),
        ("MDC_ECG_LEAD_", "MINDRAY_ECG_LEAD_"),
        ("MDC_ECG_LEAD_", ""),
    ],
)
def test_aecg_of_writers_with_their_own_codes(tmp_path: Path, digital: dict[str, Digital], old: str, new: str) -> None:
    """A series in other words or none, leads under a vendor's prefix or none; a lead computed from others is left."""
    computed = aecg_set({"dI": digital["V1"][:9], "II": digital["II"]})
    text = aecg_file(aecg_set(digital) + computed)
    assert old in text
    waveform = read_aecg(write(tmp_path, text.replace(old, new)))
    np.testing.assert_allclose(waveform.signal, np.stack(list(digital.values())) * 0.005, rtol=1e-12)


def test_aecg_takes_the_set_with_most_leads(tmp_path: Path, digital: dict[str, Digital]) -> None:
    """A rhythm strip of one lead before the twelve is passed over; two sets of twelve are refused."""
    strip = aecg_set({"II": -digital["II"]})
    waveform = read_aecg(write(tmp_path, aecg_file(strip + aecg_set(digital))))
    np.testing.assert_allclose(waveform.signal[1], digital["II"] * 0.005, rtol=1e-12)
    twice = aecg_file(2 * aecg_set(digital))
    assert "2 sets of rhythm leads and none has the most" in refusal(read_aecg, write(tmp_path, twice))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('code="RHYTHM"', 'code="REPRESENTATIVE_BEAT"', "0 sets of rhythm leads"),
        ("TIME_ABSOLUTE", "OTHER", "0 time increments"),
        ('unit="s"', 'unit="min"', "time increment is in no known unit; expected s, ms or us"),
        ('unit="s"', "", "time increment is in no known unit"),
        ('value="0.002"', 'value="0"', "time increment is 0; expected more than 0"),
        ('value="0.002"', 'value="-0.002"', "time increment is -0.002"),
        ('value="0.002"', 'value="1e-300"', "sampling rate 1e"),
        ('value="0.002"', 'value="1e9"', "sampling rate 1e-09 Hz"),
        ('<origin value="0" unit="uV"/>', "", "lacks its origin or scale"),
        ('<scale value="5" unit="uV"/>', "", "lacks its origin or scale"),
        ('<scale value="5" unit="uV"/>', '<scale value="0" unit="uV"/>', "scale is 0"),
        ('<scale value="5" unit="uV"/>', '<scale value="5"/>', "the unit is not stated"),
        ('<scale value="5" unit="uV"/>', '<scale value="5" unit="mmHg"/>', "the unit is not known"),
        ("<digits>", "<digits>Erika ", "holds something that is no number"),
        ("<digits>", "<digits>inf ", "holds something that is no number"),
        ("<digits>", "<digits>1 ", "leads of 1200 to 1201 samples"),
        ("<digits>", "<nothing/><digits xsi:nil='1'/><digits>", "leads of 0 to 1200 samples"),
        ("MDC_ECG_LEAD", "MDC_ECG_TEETH", "no lead"),
    ],
)
def test_damaged_aecg_files_are_refused(
    tmp_path: Path, digital: dict[str, Digital], old: str, new: str, message: str
) -> None:
    """One thing changed; the twelve leads' names are changed in all."""
    text = aecg_text(digital)
    assert old in text
    changed = text.replace(old, new, -1 if "TEETH" in new else 1)
    assert re.search(message, refusal(read_aecg, write(tmp_path, changed)))


def test_philips_versions(tmp_path: Path, digital: dict[str, Digital]) -> None:
    """1.03, without lead names and attributes of the rate, gives what 1.04 gives; halves are rounded down."""
    pytest.importorskip("sierraecg")
    odd = {name: values + number for number, (name, values) in enumerate(digital.items())}
    new = read_philips(write(tmp_path, philips_text(odd), "utf-16"))
    old = read_philips(write(tmp_path, philips_text(odd, version="1.03"), "utf-16"))
    np.testing.assert_allclose(new.signal, np.stack(list(odd.values())) * 0.005, rtol=1e-12)
    np.testing.assert_array_equal(new.signal, old.signal)
    assert (new.leads, new.sampling_rate, new.device) == (old.leads, old.sampling_rate, old.device)


def test_the_calibration_pulse_and_nothing_else_is_cut(digital: dict[str, Digital]) -> None:
    """A pulse as carts write it goes with its second, also when it is noisy; ECG stays to the last sample.

    So do leads that are all flat at the end, a pacing spike, a wave on one lead, and low ones on a common offset.
    """
    signal = np.stack(list(digital.values())) * 0.005
    pulse = np.repeat([0.0, 1.0, 0.0], [50, 100, 50])
    marked = np.concatenate([signal, np.tile(pulse, (12, 1))], axis=1)
    np.testing.assert_array_equal(without_calibration(marked, 500), marked[:, :900])
    np.testing.assert_array_equal(without_calibration(marked + 2, 500), marked[:, :900] + 2)
    noisy = marked + np.random.default_rng(0).uniform(-0.02, 0.02, marked.shape)
    assert without_calibration(noisy, 500).shape == (12, 900)
    flat, high, one_lead = marked.copy(), signal.copy(), signal.copy()
    flat[:, -200:] = 0
    high[:, -200:-190] = 1  # 20 ms
    one_lead[3, -300:] = 1
    for other in (signal, flat, high, one_lead, 5 * signal, 1 + 0.01 * signal):
        np.testing.assert_array_equal(without_calibration(other, 500), other)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<documentversion>1.04<", "<documentversion>2.0<", "no waveforms of a known version; expected 1.03, 1.04"),
        ("parsedwaveforms", "otherwaveforms", "no waveforms of a known version"),
        ('compression="XLI"', 'compression="ZIP"', "stored in an unusual way; expected 16 bits, XLI and base64"),
        ('compression="XLI"', "", "stored in an unusual way"),
        ('dataencoding="Base64"', 'dataencoding="Plain"', "stored in an unusual way"),
        ('bitspersample="16"', 'bitspersample="14"', "stored in an unusual way"),
        ('samplespersecond="500"', 'samplespersecond="0"', "sampling rate is 0; expected more than 0"),
        ('samplespersecond="500"', 'samplespersecond="1e7"', r"sampling rate 1e\+07 Hz"),
        ('samplespersecond="500"', 'samplespersecond="Erika"', "sampling rate is missing or no number"),
        ('samplespersecond="500"', 'samplespersecond="250"', "does not hold the 600 samples"),
        ('durationperchannel="2400"', 'durationperchannel="2e15"', "12 leads x 1000000000000000 samples; at most"),
        ('durationperchannel="2400"', 'durationperchannel="2400000"', "1200000 samples per lead; expected 2 to"),
        ('durationperchannel="2400"', 'durationperchannel="1"', "0 samples"),
        ('resolution="5"', 'resolution="0"', "resolution is 0"),
        ('leadlabels="I II', 'leadlabels="II I', "unusual order; expected I II III aVR aVL aVF first"),
        ('numberofleads="12"', 'numberofleads="Erika"', "numberofleads is missing or no whole number"),
        ('numberofleads="12" leadlabels="I II III', 'numberofleads="99" leadlabels="I II III' + " X" * 9, "ends after"),
        (f'leadlabels="{" ".join(LEADS)}"', "", ""),
        (
            'dataencoding="Base64" durationperchannel="2400">',
            'dataencoding="Base64" durationperchannel="2400">*',
            "no valid base64",
        ),
        (
            'dataencoding="Base64" durationperchannel="2400">',
            'dataencoding="Base64" durationperchannel="2400">////',
            "ends after 0 of 12",
        ),
    ],
)
def test_damaged_philips_files_are_refused(
    tmp_path: Path, digital: dict[str, Digital], old: str, new: str, message: str
) -> None:
    """One thing changed."""
    pytest.importorskip("sierraecg")
    text = philips_text(digital)
    assert old in text
    path = write(tmp_path, text.replace(old, new), "utf-16")
    if not message:  # names from the lead set instead
        assert read_philips(path).leads == LEADS
        return
    assert re.search(message, refusal(read_philips, path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends after 0 of 12 leads"),
        (xli(np.arange(SAMPLES) % 7)[:-1], "ends after 0 of 12 leads"),
        (struct.pack("<ihh", 5, 1, 0) + codes([300, 300, 300, 300]), "cannot be decompressed"),
        (struct.pack("<ihh", 1500 + 3, 1, 0) + codes([127] * 1202) + b"\0" * 2000, "does not hold the 1200 samples"),
        (struct.pack("<ihh", 3000, 1, 0) + codes([127] * 2400), "cannot be decompressed"),
        # Each code but the first stands for one byte more than the last: 600 times as much out as in.
        (struct.pack("<ihh", 37500, 1, 0) + codes([0, *range(256, 1023)] + [1022] * 29232), "does not hold the 1200"),
    ],
)
def test_damaged_compression_is_refused(
    tmp_path: Path, digital: dict[str, Digital], content: bytes, message: str
) -> None:
    """No chunk, a short one, codes out of order, too few and overflowing samples, and codes that grow without end."""
    pytest.importorskip("sierraecg")
    start = time.process_time()
    assert re.search(message, refusal(read_philips, write(tmp_path, philips_text(digital, content), "utf-16")))
    assert time.process_time() - start < 1


def test_philips_without_the_package(
    tmp_path: Path, digital: dict[str, Digital], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the command that installs it."""
    for module in ("sierraecg", "sierraecg.lzw", "sierraecg.xli"):
        monkeypatch.setitem(sys.modules, module, None)
    message = refusal(read_philips, write(tmp_path, philips_text(digital), "utf-16"))
    assert 'pip install "stence_dist[philips]"' in message


# Any XML


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
@pytest.mark.parametrize(
    ("prolog", "root"),
    [
        ("", "RestingECG"),
        (" \n", "RestingECG"),
        ('<?xml version="1.0"?>\n<!-- <AnnotatedECG> \u00e9 -->\n<?style x="<y>"?>', "RestingECG"),
        ('<!DOCTYPE RestingECG SYSTEM "restecg.dtd">', "RestingECG"),
        ('<!DOCTYPE a [\n<!ELEMENT a (#PCDATA)>\n<!ENTITY b "c">\n]\n>', "RestingECG"),
        ("<!-- never closed", None),
        ("text", None),
        ("<", None),
    ],
)
def test_roots(prolog: str, root: str | None, encoding: str) -> None:
    """Past all that may stand before a root, in each encoding, with and without namespace; None for other files."""
    for tag in ("<RestingECG>", '<n:RestingECG xmlns:n="x">', "<RestingECG/>"):
        assert root_of((prolog + tag).encode(encoding)) == root


@pytest.mark.parametrize(
    ("declared", "before", "encoding", "after"),
    [
        ("utf-16", b"", "utf-8", b""),
        ("UTF-8", b"", "utf-16", b""),
        ("ISO-8859-1", b"\r\n", "latin-1", b"\0\0"),
        ("UTF-16", b"\xef\xbb\xbf", "utf-8", b"\n\0"),
        ("utf8", b"", "utf-8", b""),
        ("UTF-8", b"", "latin-1", b"<!-- \xfc -->"),
        ("GB2312", b"", "gb2312", "<!-- \u738b -->".encode("gb2312")),
        ("EUC-KR", b"", "euc-kr", "<!-- \uae40 -->".encode("euc-kr")),
        ("Shift_JIS", b"", "shift_jis", "<!-- \u8868 \x85 -->".encode("shift_jis", errors="ignore") + b"<!-- \x81 -->"),
    ],
    ids=["says utf-16", "is utf-16", "surrounded", "with a mark", "no hyphen", "latin", "China", "Korea", "damaged"],
)
def test_declarations_that_contradict_the_bytes(
    tmp_path: Path, digital: dict[str, Digital], declared: str, before: bytes, encoding: str, after: bytes
) -> None:
    """Programs that save a text anew leave its first line; copies leave blanks; many write in their own letters."""
    text = muse_text(digital).replace('encoding="ISO-8859-1"', f'encoding="{declared}"')
    path = tmp_path / "a.xml"
    path.write_bytes(before + text.encode(encoding) + after)
    assert is_muse(path, path.read_bytes()[:65536])
    np.testing.assert_allclose(read_muse(path).signal[0], digital["I"] * 0.00488, rtol=1e-12)


def test_other_files_have_no_root() -> None:
    """Nothing, zeros, a zip archive, JSON, half a character of UTF-16, 64 KiB that could keep a pattern busy."""
    for start in (
        b"",
        bytes(65536),
        b"PK\x03\x04<",
        b'{"a": 1}',
        b"\xff\xfe<\0R",
        b"<!--" * 16384,
        b"<!DOCTYPE [" + b"] " * 32000,
    ):
        assert root_of(start) is None


def bomb(declaration: str, use: str, root: str = "RestingECG") -> bytes:
    return f'<?xml version="1.0"?><!DOCTYPE {root} [{declaration}]><{root}>{use}</{root}>'.encode()


def laughs() -> bytes:
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    return bomb(f'<!ENTITY l0 "lol">{levels}', "&l9;")


HOSTILE = {
    "billion laughs": (laughs, "declares entities"),
    "quadratic blow-up": (lambda: bomb(f'<!ENTITY a "{"x" * 100_000}">', "&a;" * 30_000), "declares entities"),
    "local file": (lambda: bomb('<!ENTITY a SYSTEM "file:///etc/passwd">', "&a;"), "declares entities"),
    "parameter entity": (lambda: bomb('<!ENTITY % a SYSTEM "http://127.0.0.1:9/x">%a;', ""), "declares entities"),
    "attribute defaults": (
        lambda: bomb(f'<!ATTLIST a b CDATA "{"x" * 100_000}">', "<a/>" * 30_000),
        "declares attributes",
    ),
    "undeclared entity": (lambda: b'<!DOCTYPE a SYSTEM "x.dtd"><a>&b;</a>', "undefined entity"),
    "many elements": (lambda: b"<a>" + b"<b/>" * 12_000_000 + b"</a>", "more than 200000 elements"),
    "many attributes": (lambda: b"<a " + b" ".join(b"b%d=''" % n for n in range(300_000)) + b"/>", "more than 200000"),
    "one long comment": (lambda: b"<a><!--" + b"x" * 40_000_000, "comment of more than 1000000 bytes"),
    "one long attribute": (lambda: b'<a b="' + b"x" * 40_000_000 + b'"/>', "tag or a comment of more than 1000000"),
    "truncated": (lambda: b"<RestingECG><Waveform>", "truncated or damaged"),
    "truncated tag": (lambda: b"<RestingECG", "truncated or damaged"),
    "empty": (lambda: b"", "truncated or damaged"),
    "zeros": (lambda: bytes(1000), "truncated or damaged"),
    "unknown encoding": (lambda: b'<?xml version="1.0" encoding="x-none"?><a/>', "encoding"),
    "odd UTF-16": (lambda: "<a>".encode("utf-16") + b"x", "truncated or damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_at_once(tmp_path: Path, name: str) -> None:
    """Well under a second, and no more memory than the file's few copies."""
    content, message = HOSTILE[name][0](), HOSTILE[name][1]
    path = tmp_path / "Erika.xml"
    path.write_bytes(content)
    start = time.process_time()  # of this process alone: others may have the processor
    assert message in refusal(read_muse, path)
    assert time.process_time() - start < 1
    tracemalloc.start()
    try:
        refusal(parse_xml, path)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(content) + 10_000_000
    finally:
        tracemalloc.stop()


def test_large_files_are_refused_unread(tmp_path: Path) -> None:
    """60 MB that the disk does not even hold; no byte of them is read."""
    path = tmp_path / "a.xml"
    with open(path, "wb") as file:
        file.truncate(60_000_000)
    tracemalloc.start()
    try:
        assert "60000000 bytes; at most 50000000" in refusal(read_aecg, path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_deep_elements_do_no_harm(tmp_path: Path) -> None:
    """50 000 elements in each other, opened and closed."""
    path = write(tmp_path, "<RestingECG>" + "<a>" * 50_000 + "</a>" * 50_000 + "</RestingECG>")
    assert "0 rhythm waveforms" in refusal(read_muse, path)


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files_are_refused(tmp_path: Path, digital: dict[str, Digital], kind: str) -> None:
    """At twenty places."""
    read, text, encoding = KINDS[kind]
    path = write(tmp_path, text(digital), encoding)
    whole = path.read_bytes()
    for place in range(1, len(whole), len(whole) // 20):
        path.write_bytes(whole[:place])
        assert "truncated or damaged" in refusal(read, path)


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bytes_give_a_waveform_or_a_refusal(tmp_path: Path, digital: dict[str, Digital], kind: str) -> None:
    """Sixty files with three bytes changed: never another error, and what is read has finite values."""
    if kind == "philips":
        pytest.importorskip("sierraecg")
    read, text, encoding = KINDS[kind]
    short = {name: values[:40] for name, values in digital.items()}
    written = text(short).replace(str(SAMPLES), "40")
    path = write(tmp_path, written, encoding)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            content[place] = rng.integers(32, 127)
        path.write_bytes(content)
        with contextlib.suppress(ReaderError):
            assert np.isfinite(read(path).signal).all()


def test_numbers_in_text() -> None:
    """White space of any kind and length between numbers; nothing else passes."""
    np.testing.assert_array_equal(samples_of("\n 1\t-2  3.5\r\n+4e1 ", "x"), [1, -2, 3.5, 40])
    assert len(samples_of("", "x")) == len(samples_of(None, "x")) == 0
    for text in ("1 2 x", "x", "1,2", "1 2 nan", "-inf", "1_0", "0x10", "1 2 \u0663"):
        with pytest.raises(ReaderError, match="x holds something that is no number"):
            samples_of(text, "x")
