"""Search whatever a program wrote for words that it must not have written, packed and encoded ones included."""

import base64
import gzip
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_PNG = b"\x89PNG\r\n\x1a\n"
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{40,}={0,2}")


def unfolded(content: bytes) -> Iterator[bytes]:
    """`content`, and what its zip members, gzip streams, base64 texts and PNG texts hold."""
    yield content
    if content.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from unfolded(archive.read(name))
    elif content.startswith(b"\x1f\x8b"):
        yield from unfolded(gzip.decompress(content))
    for text in _BASE64.findall(content):
        packed = text.rstrip(b"=")
        yield from _of_pictures(base64.b64decode(packed[: len(packed) // 4 * 4]))
    yield from _of_pictures(content)


def _of_pictures(content: bytes) -> Iterator[bytes]:
    """Bytes themselves, and the inflated texts of every PNG in them; pixels are none."""
    yield content
    for start in re.finditer(re.escape(_PNG), content):
        place = start.end()
        while place + 8 <= len(content):
            length, kind = struct.unpack_from(">L4s", content, place)
            data = content[place + 8 : place + 8 + length]
            if kind in (b"zTXt", b"iTXt"):
                yield zlib.decompress(data[data.index(b"\0") + 2 :])
            place += 12 + length
            if kind == b"IEND":
                break


def _texts(word: str) -> set[bytes]:
    """A word in small letters and the encodings of files; both orders of UTF-16 and -32 hold those given here."""
    encoded = set()
    for text in (word.lower(), word.upper()):  # bytes beyond ASCII have no case
        encoded |= {text.encode("utf-8"), text.encode("latin-1", "replace")}
        encoded |= {text.encode("utf-16-le")[:-1], text.encode("utf-32-le")[:-3]}  # the latter is numpy's
        encoded |= {text.encode("ascii", how) for how in ("backslashreplace", "xmlcharrefreplace")}
    return {form.lower() for form in encoded}


def _numbers(word: str) -> set[bytes]:
    return {struct.pack(kind, int(word)) for kind in ("<q", ">q", "<d") if word.isdecimal()}


def leaked(content: bytes, words: Iterable[str]) -> set[str]:
    """Those of `words` that `content` holds: as texts in any encoding and case, or as 64-bit numbers."""
    whole = b"\n".join(unfolded(content))
    small = whole.lower()
    return {
        word
        for word in words
        if any(form in small for form in _texts(word)) or any(form in whole for form in _numbers(word))
    }


def leaked_by_files(folder: Path, words: Iterable[str]) -> dict[str, set[str]]:
    """File below `folder` -> what of `words` its bytes or its name hold; {} where nothing is found."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    assert files, folder
    found = {name: leaked(path.read_bytes(), words) | leaked(name.encode(), words) for name, path in files.items()}
    return {name: words for name, words in found.items() if words}
