"""Which kinds of identifying fields the header of a file fills, format by format. No value leaves this module."""

import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from stence_dist.check.identifiers import (
    AGE_SEX,
    BIRTH,
    DATE,
    DATES,
    DEVICE,
    DIAGNOSIS,
    NOT_SEARCHED,
    ORDER,
    OTHER,
    OVERLAY,
    PATIENT_NAME,
    PATIENT_NUMBER,
    PATIENT_OTHER,
    PLACE,
    PRIVATE,
    STAFF,
    TEXT,
    UNIQUE,
)
from stence_dist.data.readers.ecg.declared import FIELDS
from stence_dist.data.readers.ecg.waveform import millivolts_per_unit
from stence_dist.data.readers.ecg.wfdb_record import header_of
from stence_dist.data.readers.ecg.xml_file import parse_xml, root_of
from stence_dist.data.readers.record import ReaderError

_HDF5_MAGIC, _ZIP_MAGIC = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
_LARGEST_HEADER = 1_000_000  # bytes of a text header
_DEFERRED = 65536  # bytes from which the value of a DICOM element stays on disk
_DEEPEST = 6  # sequences within sequences
_LONGEST_PATH = 1000  # characters of names of nested elements; patterns may take quadratic time
_DEFLATED = "1.2.840.10008.1.2.1.99"

_DICOM_KINDS = {
    PATIENT_NAME: "PatientName OtherPatientNames PatientBirthName PatientMotherBirthName ResponsiblePerson",
    PATIENT_NUMBER: "PatientID OtherPatientIDs IssuerOfPatientID MedicalRecordLocator",
    BIRTH: "PatientBirthDate PatientBirthDateInAlternativeCalendar",
    AGE_SEX: "PatientAge PatientSex",
    PATIENT_OTHER: "PatientAddress PatientTelephoneNumbers PatientTelecomInformation CountryOfResidence "
    "RegionOfResidence EthnicGroup Occupation MilitaryRank BranchOfService PatientReligiousPreference",
    STAFF: "OperatorIdentificationSequence PhysiciansReadingStudyIdentificationSequence",
    PLACE: "InstitutionName InstitutionAddress InstitutionalDepartmentName CurrentPatientLocation "
    "PatientInstitutionResidence PerformedLocation RequestingService ResponsibleOrganization",
    ORDER: "AccessionNumber StudyID AdmissionID ServiceEpisodeID RequestedProcedureID ScheduledProcedureStepID "
    "PerformedProcedureStepID FillerOrderNumberImagingServiceRequest PlacerOrderNumberImagingServiceRequest",
    UNIQUE: "StudyInstanceUID SeriesInstanceUID SOPInstanceUID FrameOfReferenceUID",
    DEVICE: "StationName PerformedStationName DeviceSerialNumber DeviceUID GantryID DetectorID PlateID CassetteID",
    TEXT: "StudyDescription SeriesDescription ProtocolName RequestedProcedureDescription "
    "PerformedProcedureStepDescription AdmittingDiagnosesDescription ReasonForStudy",
}
_DICOM_WORDS = {word: kind for kind, words in _DICOM_KINDS.items() for word in words.split()}
_BY_REPRESENTATION = {"PN": STAFF, "DA": DATE, "DT": DATE, "LT": TEXT, "ST": TEXT, "UT": TEXT}

# What a path of element names, in lower case, means in MUSE, CardioSoft, Philips and HL7 exports; the first that fits.
_XML_ROOTS = ("RestingECG", "CardiologyXML", "restingecgdata", "AnnotatedECG")
_XML_KINDS = [
    (None, r"manufacturerorganization|criteriaversion|measurement|/(parsed|strip)?waveforms?(data|/|$)|/medians?"),
    (BIRTH, r"birth|/dob"),
    (PATIENT_NAME, r"patient(first|last|middle)?name|patientinfo/name|generalpatientdata/name|demographicperson/name"),
    (PATIENT_NUMBER, r"/patientid$|/pid$|uniquepatientid|/mrn$|/ssn$|patient(alternate|secondary)id|trialsubject/id@"),
    (AGE_SEX, r"patientage|/age(/years)?$|/gender$|/sex$|administrativegendercode"),
    (PATIENT_OTHER, r"/race|ethnic|patient.*(address|phone|occupation)|occupation"),
    (
        STAFF,
        r"(overreader|editor|tech(nician)?|ordering(md|provider)|referring(md|doctor)|attending(md|doctor)|admittingmd|"
        r"consultingmd|fellow|physician|operator|performer|investigator|assignedperson|assignedentity).*"
        r"(name|id|@id|@extension|person)$|mdsignatureline|/editor$|/operatorid$",
    ),
    (
        ORDER,
        r"order(number|id|billingcode)|uniqueorderid|accession|visitnumber|admission(id|number)|requisition|/order/",
    ),
    (ORDER, r"clinicaltrial(protocol)?/(id@extension|title)|studyid|jobnumber"),
    (UNIQUE, r"uid$|annotatedecg/id@|/series/id@|/uuid"),
    (DEVICE, r"machineid|machine@|serial|cartnumber|device/id@"),
    (
        PLACE,
        r"/site(name)?$|institution|facility|department|hospital|location|/room|patientroom|/addr|(site|tion)/name$",
    ),
    (DATE, r"(?<!up)date|observationdatetime|(effective|activity)time|sequence/value/head@value"),
    (
        TEXT,
        r"comment|remarks?$|reason|history|stmttext|(left|right|lhs|rhs)statement|userdefine/|extraquestions/content|"
        r"reportlabel|medications/|/filename$|/note|annotation/text|subjectfinding",
    ),
]
_XML_PATTERNS = [(kind, re.compile(pattern)) for kind, pattern in _XML_KINDS]
_XML_ATTRIBUTES = ("value", "extension", "root", "date", "id", "machineid", "detaildescription")


def of_ecg(path: Path) -> tuple[frozenset[str], tuple[str, ...]]:
    """The kinds of fields that an ECG file fills, and the units that its header states; what fails is a kind, too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # parsers quote what they stumble over
            kinds, units = _of_ecg(path)
    except Exception:  # headers are damaged in many ways, and whoever reads the signal says so
        return frozenset({NOT_SEARCHED}), ()
    return frozenset(kinds), tuple(sorted({_known_unit(unit) for unit in units}))


def _of_ecg(path: Path) -> tuple[set[str], set[str]]:
    header = header_of(path)
    if header.is_file():
        return _of_wfdb(header)
    with open(path, "rb") as file:
        start = file.read(65536)
    if root_of(start) in _XML_ROOTS:
        return _of_xml(parse_xml(path))
    if start[128:132] == b"DICM":
        dataset = read_header(path)
        return ({NOT_SEARCHED}, set()) if dataset is None else (of_dicom(dataset), _dicom_units(dataset))
    if start.startswith((b"0       ", b"\xffBIOSEMI")):
        return _of_edf(path, start)
    kinds, units = _of_sidecar(path)
    if start.startswith(_HDF5_MAGIC):
        kinds |= _of_hdf5(path)
    elif start.startswith(_ZIP_MAGIC):
        kinds |= _of_archive(path)
    return kinds, units


def _known_unit(unit: str) -> str:
    """A unit in one spelling; never a header's own text."""
    try:
        factor = millivolts_per_unit(unit)
    except ReaderError:
        return "unknown"
    return {1e3: "V", 1.0: "mV", 1e-3: "uV", 1e-6: "nV"}[factor]


def _of_wfdb(header: Path) -> tuple[set[str], set[str]]:
    with open(header, "rb") as file:
        lines = file.read(_LARGEST_HEADER).decode("latin-1").splitlines()
    kinds = set()
    for line in lines:
        comment = line.partition("#")[2].strip() if line.startswith("#") else ""
        word, _, value = comment.partition(":")
        if word.strip().casefold() in ("age", "sex", "gender"):
            kinds |= {AGE_SEX} if value.strip() else set()
        elif word.strip().casefold() in ("dx", "rx", "hx", "sx"):
            kinds |= {DIAGNOSIS} if value.strip() else set()
        elif comment:
            kinds |= {TEXT, DATE} if DATES.search(comment) else {TEXT}
    described = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if len(described[0]) > 4:  # name, signals, rate, samples, time of day, date
        kinds.add(DATE)
    units = {fields[2].partition("/")[2] or "mV" for fields in described[1:] if len(fields) > 2}
    return kinds, units


def _xml_entries(element: Element, path: str) -> Iterator[tuple[str, str, Element]]:
    """(path of names in lower case, text, element) of every text and every telling attribute below an element."""
    here = f"{path}/{element.tag.casefold()}"
    if len(here) > _LONGEST_PATH:
        raise ReaderError("names of nested elements are too long.")
    if (element.text or "").strip():
        yield here, (element.text or "").strip(), element
    for name, value in element.attrib.items():
        if name.casefold() in _XML_ATTRIBUTES and value.strip():
            yield f"{here}@{name.casefold()}", value.strip(), element
    for child in element:
        yield from _xml_entries(child, here)


def _of_xml(root: Element) -> tuple[set[str], set[str]]:
    kinds = set()
    units = {"uV"} if root.tag == "restingecgdata" else set()  # the schema knows no other
    for path, text, element in _xml_entries(root, ""):
        kind = next((kind for kind, pattern in _XML_PATTERNS if pattern.search(path)), None)
        if kind is not None and not (path.endswith("head@value") and len(text) < 8):  # relative times are short
            kinds.add(kind)
        if path.endswith("/leadamplitudeunits"):
            units.add({"MICROVOLTS": "uV", "MILLIVOLTS": "mV"}.get(text.upper(), text))
        elif path.endswith("stripdata/resolution"):
            units.add(re.sub("perLsb$", "", element.get("units", ""), flags=re.IGNORECASE))
        elif path.endswith("sequence/value/scale@value"):
            units.add(element.get("unit", ""))
    return kinds, units


def _of_edf(path: Path, start: bytes) -> tuple[set[str], set[str]]:
    """By the fixed header; EDF+ writes X for what it leaves out, and 01.01.85 stands for no date."""
    patient, recording = (start[low : low + 80].decode("latin-1").split() for low in (8, 88))
    kinds = set()
    if any(word != "X" for word in patient):
        kinds.add(PATIENT_NAME)
    if recording[1:2] not in ([], ["X"]) or start[168:176] not in (b"01.01.85", b" " * 8):
        kinds.add(DATE)
    if any(word != "X" for word in (recording[2:] if recording[:1] == ["Startdate"] else recording)):
        kinds.add(STAFF)
    count = int(start[252:256])
    place = 256 + (16 + 80) * count
    with open(path, "rb") as file:
        file.seek(place)
        cells = file.read(8 * count)
    names = [cells[low : low + 8].decode("latin-1").strip() for low in range(0, len(cells), 8)]
    return kinds, {name for name in names if _known_unit(name) != "unknown"}


def _of_sidecar(path: Path) -> tuple[set[str], set[str]]:
    """Arrays and tables: what is declared beside them, and what else is."""
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file() or sidecar.stat().st_size > _LARGEST_HEADER:
        return set(), set()
    declared = json.loads(sidecar.read_text(encoding="utf-8"))
    kinds = {OTHER} if set(declared) - {*FIELDS, "axes", "dataset"} else set()
    return kinds, {str(declared["unit"])} if "unit" in declared else set()


def _of_hdf5(path: Path) -> set[str]:
    """Texts, lists of numbers (of exams, say) and attributes beside the signals; links are not followed."""
    h5py: Any = import_module("h5py")
    found: list[bool] = []
    with h5py.File(path, "r") as file:
        found.append(len(file.attrs) > 0)
        file.visititems(lambda _, item: found.append(len(item.attrs) > 0 or len(getattr(item, "shape", (1, 1))) < 2))
    return {OTHER} if any(found) else set()


def _of_archive(path: Path) -> set[str]:
    """Arrays of a .npz file beside the declared ones; what a torch file calls its tensors is not read."""
    with zipfile.ZipFile(path) as archive:
        names = [Path(name).stem for name in archive.namelist() if name.endswith(".npy")]
    if not names:
        return {NOT_SEARCHED}
    return {OTHER} if set(names) - {"signal", "axes", *FIELDS} else set()


def read_header(path: Path) -> Any:
    """The data set of a DICOM file without pixels, long values left on disk; None for a deflated one.

    Raises whatever pydicom raises for a damaged file.
    """
    import pydicom  # a second that only DICOM files need
    from pydicom.filereader import read_file_meta_info

    if read_file_meta_info(path).get("TransferSyntaxUID") == _DEFLATED:
        return None  # it may unfold to any size
    return pydicom.dcmread(path, stop_before_pixels=True, defer_size=_DEFERRED)


def _is_filled(element: Any) -> bool:
    value = element.value
    if isinstance(value, bytes):
        return bool(value.strip(b" \0"))
    if value is None:
        return bool(getattr(element, "length", 0))  # left on disk
    return str(value).strip() != "" if isinstance(value, str) else bool(value)


def of_dicom(dataset: Any, depth: int = 0) -> set[str]:
    """The kinds of fields that a DICOM data set fills, those of its sequences included.

    Values are looked at as they are stored: none is parsed.
    """
    from pydicom.datadict import dictionary_VR, keyword_for_tag

    kinds = set()
    for tag in dataset.keys():  # noqa: SIM118  (items would be parsed)
        element = dataset.get_item(tag, keep_deferred=True)
        word = keyword_for_tag(tag)
        representation = element.VR or (dictionary_VR(tag) if word else "UN")
        if tag.is_private:
            kinds |= {PRIVATE} if _is_filled(element) else set()
        elif 0x5000 <= tag.group <= 0x50FF or 0x6000 <= tag.group <= 0x60FF:
            kinds.add(OVERLAY)
        elif representation == "SQ":
            if word in _DICOM_WORDS:
                kinds.add(_DICOM_WORDS[word])
            kinds |= _of_sequence(dataset, tag, depth)
        elif _is_filled(element):
            kind = _DICOM_WORDS.get(word) or _BY_REPRESENTATION.get(representation)
            # Sequences refer to other objects by the same words.
            kinds |= {kind} if kind is not None and not (depth and kind == UNIQUE) else set()
    return kinds


def _of_sequence(dataset: Any, tag: Any, depth: int) -> set[str]:
    if depth >= _DEEPEST:
        return {NOT_SEARCHED}
    try:
        items = list(dataset[tag].value)
    except Exception:  # a malformed sequence must not hide what the others hold
        return {NOT_SEARCHED}
    return {kind for item in items for kind in of_dicom(item, depth + 1)}


def _dicom_units(dataset: Any) -> set[str]:
    units = set()
    for group in dataset.get("WaveformSequence") or ():
        for channel in group.get("ChannelDefinitionSequence") or ():
            for unit in channel.get("ChannelSensitivityUnitsSequence") or ():
                units.add(str(unit.get("CodeValue") or ""))
    return units
