"""Which package decodes which transfer syntax of a run: the one answer that the reader, the doctor and a check give.

| transfer syntax | codec |
|---|---|
| uncompressed, big endian, deflated, RLE | pydicom |
| JPEG baseline and 8-bit extended, JPEG 2000 | Pillow |
| JPEG lossless, JPEG-LS, 12-bit extended | python-gdcm, of the extra `dicom` |

pyjpegls, too, decodes JPEG-LS, but never comes back from some damaged frames; it is not used.
"""

import importlib
from types import ModuleType

from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, JPEGExtended12Bit

# How angiograms are stored, by the names that people use: transfer syntax and bits per pixel.
COMMON = {
    "uncompressed": ("1.2.840.10008.1.2.1", 8),
    "RLE": ("1.2.840.10008.1.2.5", 8),
    "JPEG baseline": ("1.2.840.10008.1.2.4.50", 8),
    "JPEG extended, 12 bit": (str(JPEGExtended12Bit), 12),
    "JPEG Lossless": ("1.2.840.10008.1.2.4.70", 12),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", 12),
    "JPEG 2000": ("1.2.840.10008.1.2.4.91", 12),
}
# Pydicom's names of codecs, the first that knows a syntax decodes it: what else is installed changes no pixel.
_CODECS = ("pydicom", "pillow", "gdcm", "pylibjpeg")
_IN_EXTRA = (".4.51", ".4.57", ".4.70", ".4.80", ".4.81")


def gdcm_module() -> ModuleType | None:
    """The package that decodes 12-bit JPEG, None where it cannot be imported; pydicom 3.0 does not let it."""
    try:
        return importlib.import_module("gdcm")
    except ImportError:
        return None


def codec_of(syntax: str, bits: int = 8) -> str | None:
    """The codec of frames of so many bits in a transfer syntax; None where nothing that is installed decodes them."""
    try:
        decoder = get_decoder(UID(syntax))
    except (NotImplementedError, TypeError, ValueError):  # of a syntax for other things, or none at all
        return None
    if syntax == JPEGExtended12Bit and bits > 8:
        return None if gdcm_module() is None else "gdcm"
    if not decoder.is_encapsulated:
        return "pydicom" if decoder.is_available else None
    return next((name for name in _CODECS if name in decoder.available_plugins), None)


def advice(syntax: str) -> str:
    """What to do about a transfer syntax that nothing decodes."""
    return 'pip install "stence_dist[dicom]"' if syntax.endswith(_IN_EXTRA) else "convert the files"
