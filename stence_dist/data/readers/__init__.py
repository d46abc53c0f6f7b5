"""From files to records: one reader per format, chosen by content, in `ecg/` and `images/`."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

from stence_dist.data.frames import FrameSettings
from stence_dist.data.readers.ecg import read_waveform
from stence_dist.data.readers.ecg.waveform import to_record
from stence_dist.data.readers.images import read_views
from stence_dist.data.readers.record import EcgRecord, ImageStudy, ReaderError, View
from stence_dist.errors import RefusedError

__all__ = ["EcgRecord", "ImageStudy", "ReaderError", "View", "read_ecg", "read_study"]


# It quotes the values that it stumbles over, and nothing of a header may end in a log.
logging.getLogger("pydicom").disabled = True


@contextlib.contextmanager
def _only_reader_errors(field: str) -> Iterator[None]:
    """Turn whatever a reader raises on a file that nobody foresaw into a ReaderError: one file never ends a build."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # parsers quote here, too
            yield
    except RefusedError:
        raise
    except OSError as error:
        raise ReaderError(f"a file cannot be opened ({error.strerror}).", field) from None
    except Exception as error:
        raise ReaderError(f"the file is damaged or of an unusual make ({type(error).__name__}).", field) from error


def read_ecg(path: Path, *, wfdb_scale: str = "auto") -> EcgRecord:
    """The 12 leads of an ECG file, quantized as shards store them.

    A WFDB record is named with or without `.hea`, one of many recordings as `FILE#17`. `wfdb_scale` as in `to_record`.
    Raises ReaderError, whose message holds no path.
    """
    with _only_reader_errors("ecg_path"):
        return to_record(read_waveform(path), wfdb_scale)


def read_study(path: Path, settings: FrameSettings) -> ImageStudy:
    """The views of an imaging study; see `read_views`. Raises ReaderError, whose message holds no path."""
    with _only_reader_errors("study_path"):
        return read_views(path, settings)
