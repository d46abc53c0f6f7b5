"""Files written whole or not at all, their hashes, and the lock of a run folder.

Every artifact that someone may read later goes through `write_bytes` / `write_text` / `write_json` or the
`replacing` context: a temporary name in the same folder, fsync, rename, fsync of the folder. A crash at any
point leaves the old file or the new one.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stence_dist.errors import DataError, RefusedError

TEMPORARY_PREFIX = ".tmp-"
TRASH_PREFIX = ".trash-"


def refuse_pipe(path: str | Path, what: str) -> Path:
    """`path`, unless webdataset tools would run it as a shell command: then DataError. Shards are local files."""
    if "pipe:" in str(path):
        raise DataError(f"{what} holds 'pipe:', which other tools would run as a command. Use a local folder.")
    return Path(path)


def sync_folder(folder: Path) -> None:
    """Make the entries of `folder` (renames, removals) durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path | str, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it is synced and renamed over `path`.

    Raises whatever the body raises, after removing the temporary file; `path` is then untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(4)}"
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # until it is whole
        yield temporary
        descriptor = os.open(temporary, os.O_RDWR)
        try:
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path | str, content: bytes, mode: int = 0o644) -> None:
    """Write `content` to `path` atomically and durably."""
    with replacing(path, mode) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, text: str, mode: int = 0o644) -> None:
    """Write UTF-8 `text` to `path` atomically and durably."""
    write_bytes(path, text.encode(), mode)


def write_json(path: Path | str, value: Any, mode: int = 0o644) -> None:
    """Write `value` as strict JSON (no NaN: use None) to `path` atomically and durably."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", mode)


def read_json(path: Path | str) -> Any:
    """The value in a JSON file. Raises DataError with the path's name where it is missing or malformed."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); it may be truncated. Make it again.") from None


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl file; a last line that a running process has not finished is left out."""
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def save_array(path: Path | str, array: np.ndarray[Any, Any], mode: int = 0o644) -> None:
    """Write one plain `.npy` array (never pickled) to `path` atomically and durably."""
    with replacing(path, mode) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def sha256_file(path: Path | str) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """One byte string per JSON value: sorted keys, no spaces. What hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256_json(value: Any) -> str:
    """Hex sha256 of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def remove_tree(folder: Path) -> None:
    """Remove a folder so that no reader ever meets it half-removed: rename away, then delete.

    What cannot be deleted stays under its new name, which begins with TRASH_PREFIX.
    """
    doomed = folder.parent / f"{TRASH_PREFIX}{folder.name}-{secrets.token_hex(4)}"
    os.rename(folder, doomed)
    sync_folder(folder.parent)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what an interrupted write or removal left in `folder`, where it lets itself be removed."""
    for prefix in (TEMPORARY_PREFIX, TRASH_PREFIX):
        for leftover in folder.glob(f"{prefix}*"):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    leftover.unlink()


class FolderLock:
    """The right to write into a folder, held while the process lives (an OS lock, so a crash frees it).

    `FolderLock(folder, purpose).acquire()` raises RefusedError naming the holder's host and process.
    """

    def __init__(self, folder: Path | str, purpose: str) -> None:
        self.path = Path(folder) / ".lock"
        self.purpose = purpose
        self._descriptor: int | None = None

    def acquire(self, patience_s: float = 0.0) -> "FolderLock":
        """Take the lock, within `patience_s` seconds, or raise RefusedError naming who has it."""
        import fcntl

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RefusedError(
                f"{self.path.parent} cannot be written to as a folder ({error.strerror}). Choose another one."
            ) from None
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                taken = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
                if taken and time.monotonic() < deadline:
                    time.sleep(0.5)
                    continue
                holder = os.read(descriptor, 4096).decode(errors="replace").strip() or "an unknown process"
                os.close(descriptor)
                if taken:
                    raise RefusedError(
                        f"{self.path.parent} is in use by {holder}. Wait until it ends, stop it, or choose another "
                        "folder."
                    ) from None
                raise RefusedError(
                    f"{self.path.parent} cannot be locked ({error.strerror}). Choose a folder on a file system with "
                    "locks (flock), or have it mounted with them."
                ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{self.purpose}, process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._descriptor = descriptor
        return self

    def release(self) -> None:
        """Free the lock; a process that ends frees it by itself."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
