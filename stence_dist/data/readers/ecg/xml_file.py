"""XML that anybody may have written: its root, its elements, and the numbers in its text.

A small file can grow without end in a parser, or make it open others, by entities, references and attribute defaults
of its document type. No ECG needs one of them, so all are refused (defusedxml); a document type alone is not, because
every MUSE file names one. What a parser may build is bounded before it starts.
"""

import base64
import codecs
import re
import warnings
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, ParseError, TreeBuilder
from xml.parsers.expat import ErrorString

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import XMLParser
from numpy.typing import NDArray

from stence_dist.data.readers.record import ReaderError

_LARGEST = 50_000_000  # bytes
_MOST_MARKS = 200_000  # of "<" and of "=", so of elements and of attributes; real files have a few thousand
_LONGEST_MARK = 1_000_000  # bytes from "<" to the next ">"; the parser reads an unfinished one twice
_PROLOG = re.compile(r"\s+|<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^<>\[]*(?:\[.*?\]\s*)?>", re.DOTALL)
_ROOT = re.compile(r"<(?:[\w.-]+:)?(?P<name>[\w.-]+)[\s/>]")
_NUMBER = re.compile(r"[+-]?([0-9]{1,20}\.?[0-9]{0,20}|\.[0-9]{1,20})([eE][+-]?[0-9]{1,3})?")
_WHOLE = re.compile(r"[0-9]{1,18}")
_BOMS_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_DECLARED = re.compile(rb"<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.:-]{1,40})[\"']")
# What expat cannot decode itself, as its characters have several bytes, and exports of Asian hospitals are in.
_ASIAN = ("gb2312", "gbk", "gb18030", "big5", "euc-kr", "cp949", "ks_c_5601-1987", "shift_jis", "cp932", "euc-jp")


class _LocalNames(TreeBuilder):
    """Elements without their namespaces: files of one kind differ in whether they declare them."""

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:
        return super().start(tag.rpartition("}")[2], attrs)


def root_of(start: bytes) -> str | None:
    """The name of the root element, without its namespace, from a file's first bytes; None where they are no XML."""
    if start.startswith(_BOMS_UTF16):
        text = start.decode("utf-16", errors="ignore")
    else:
        text = start.removeprefix(codecs.BOM_UTF8).decode("latin-1")  # the names that matter are ASCII
    position = 0
    while prolog := _PROLOG.match(text, position):
        position = prolog.end()
    root = _ROOT.match(text, position)
    return root["name"] if root else None


def parse_xml(path: Path) -> Element:
    """The root of an XML file; no tag has a namespace. Raises ReaderError, which names the kind of fault only."""
    size = path.stat().st_size
    if size > _LARGEST:
        raise ReaderError(f"the XML file has {size} bytes; at most {_LARGEST} are read.")
    content = path.read_bytes()
    if content.count(b"<") > _MOST_MARKS or content.count(b"=") > _MOST_MARKS:
        raise ReaderError(f"the XML file has more than {_MOST_MARKS} elements or attributes; an ECG has thousands.")
    end = 0
    while end >= 0 and (start := content.find(b"<", end)) >= 0:
        end = content.find(b">", start)
        if (end if end >= 0 else len(content)) - start > _LONGEST_MARK:
            raise ReaderError(f"the XML file has a tag or a comment of more than {_LONGEST_MARK} bytes.")
    if not content.startswith(_BOMS_UTF16):
        content = content.strip(b"\0\r\n\t ")  # what copies leave before the declaration and after the end
    encoding = _encoding(content)
    if encoding in _ASIAN:
        # Names hold such characters, numbers none: one that is damaged does no harm.
        content, encoding = content.decode(encoding, errors="replace").encode(), "utf-8"
    parser = XMLParser(target=_LocalNames(), encoding=encoding)
    # A default is copied into every element that lacks the attribute: length times count, and no entity is needed.
    parser.parser.AttlistDeclHandler = _refuse_defaults
    try:
        parser.feed(content)  # in one piece: a long token that arrives in many takes quadratic time
        root: Element = parser.close()
    except DefusedXmlException:
        raise ReaderError("the XML file declares entities or refers to other files; an ECG needs neither.") from None
    except ParseError as error:
        raise ReaderError(f"the XML file is truncated or damaged ({ErrorString(error.code)}).") from None
    except (ValueError, LookupError):
        raise ReaderError(
            "the XML file is in an encoding that is not known; expected UTF-8, UTF-16 or Latin-1."
        ) from None
    return root


def _encoding(content: bytes) -> str | None:
    """The encoding of XML where its declaration contradicts its bytes, or names it as expat does not; else None.

    Programs that save a text anew leave the first, and those that write names in the letters of their system.
    """
    if content.startswith(_BOMS_UTF16):
        return "utf-16"
    stated = _DECLARED.match(content.removeprefix(codecs.BOM_UTF8))
    declared = stated[1].decode().lower() if stated else "utf-8"
    if not declared.startswith(("utf-8", "utf8", "utf-16", "utf16")):  # as ASCII shows, it is no UTF-16
        return declared if declared in _ASIAN else None
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "iso-8859-1"
    return "utf-8"


def _refuse_defaults(*_: object) -> NoReturn:
    raise ReaderError("the XML file declares attributes in its document type; an ECG needs none.")


def text_at(element: Element, path: str) -> str:
    """The text of the first element at `path`, without white space around it; empty where there is none."""
    return (element.findtext(path) or "").strip()


def number(text: str | None, what: str) -> float:
    """The finite number that `text` is. Raises ReaderError, which names `what` it is but not the text."""
    text = (text or "").strip()
    if not _NUMBER.fullmatch(text) or not isfinite(float(text)):
        raise ReaderError(f"{what} is missing or no number.")
    return float(text)


def positive(text: str | None, what: str) -> float:
    """As `number`, above 0."""
    value = number(text, what)
    if value <= 0:
        raise ReaderError(f"{what} is {value:g}; expected more than 0.")
    return value


def whole(text: str | None, what: str) -> int:
    """The count that `text` is, 0 or more. Raises ReaderError, which names `what` it is but not the text."""
    text = (text or "").strip()
    if not _WHOLE.fullmatch(text):
        raise ReaderError(f"{what} is missing or no whole number.")
    return int(text)


def frequency(text: str | None) -> float | None:
    """A filter's corner in Hz, in the unit of `text`; None where it is not stated as a number above 0."""
    text = (text or "").strip()
    value = float(text) if _NUMBER.fullmatch(text) else 0.0
    return value if isfinite(value) and value > 0 else None


def sampling_rate(rate: float) -> float:
    """`rate` in Hz, checked. Raises ReaderError."""
    if not 1 <= rate <= 1e6:
        raise ReaderError(f"sampling rate {rate:g} Hz; expected 1 Hz to 1 MHz.")
    return rate


def decode_base64(text: str | None, what: str) -> bytes:
    """The bytes that `text` encodes, white space and missing padding aside. Raises ReaderError for anything else."""
    packed = "".join((text or "").split())
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except ValueError:
        raise ReaderError(f"{what} is no valid base64; is the file truncated or damaged?") from None


def samples_of(text: str | None, what: str) -> NDArray[np.float64]:
    """(T,) numbers that stand in `text` between white space. Raises ReaderError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # older numpy warns of a bad number and stops before it
            values = np.fromstring(text or "", dtype=np.float64, sep=" ")
    except (ValueError, DeprecationWarning):
        values = np.array([np.nan])
    if not np.isfinite(values).all():
        raise ReaderError(f"{what} holds something that is no number.")
    return values


def stacked(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(n, T) of n leads (T,). Raises ReaderError where there are none, or where they differ in length."""
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1:
        found = f"leads of {lengths[0]} to {lengths[-1]} samples" if lengths else "no lead"
        raise ReaderError(f"the XML file holds {found}; expected leads of one length.")
    return np.stack(rows)
