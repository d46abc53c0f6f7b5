"""Files written whole or not at all, hashes, and the lock of a folder."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from crashes import every_crash

from stence_dist.errors import DataError, RefusedError
from stence_dist.files import (
    FolderLock,
    canonical_json,
    read_json,
    remove_tree,
    replacing,
    save_array,
    sha256_file,
    sha256_json,
    sweep,
    write_bytes,
    write_json,
    write_text,
)


def test_replacing_keeps_the_old_file_when_the_body_raises(tmp_path: Path) -> None:
    """An error halfway through leaves the old bytes and no temporary file."""
    path = tmp_path / "value.bin"
    path.write_bytes(b"old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["value.bin"]


def test_a_reader_meets_the_old_or_the_new_file(tmp_path: Path) -> None:
    """While the body writes, the path still holds the old bytes; afterwards the new ones and the mode asked for."""
    path = tmp_path / "folder" / "value.bin"
    write_bytes(path, b"old")
    with replacing(path, mode=0o600) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.stat().st_mode & 0o777 == 0o600
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["value.bin"]


def test_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    """SIGKILL inside the body, in another process: the old file is whole."""
    path = tmp_path / "value.txt"
    write_text(path, "old")
    code = (
        "import os, signal, sys\n"
        "from stence_dist.files import replacing\n"
        "with replacing(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert ended.returncode == -9
    assert path.read_text() == "old"


def test_a_crash_at_any_point_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    """Die before and after every operation of a write: what a shard index, a report or a status goes through."""
    path = tmp_path / "index.json"

    def prepare() -> Callable[[], object]:
        write_json(path, {"is": "old"})
        return lambda: write_json(path, {"is": "new"})

    assert {read_json(path)["is"] for _ in every_crash(prepare)} == {"old", "new"}


def test_json_is_strict(tmp_path: Path) -> None:
    """Round trip; NaN is refused rather than written, and the file stays as it was."""
    path = tmp_path / "value.json"
    write_json(path, {"b": [1, None], "a": "ä"})
    assert read_json(path) == {"a": "ä", "b": [1, None]}
    before = path.read_bytes()
    with pytest.raises(ValueError):
        write_json(path, {"loss": float("nan")})
    assert path.read_bytes() == before


def test_unreadable_json_is_refused_by_name(tmp_path: Path) -> None:
    """Missing, truncated and binary files: DataError that names the file."""
    (tmp_path / "half.json").write_text('{"a": [1, 2')
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name, words in (("none.json", "does not exist"), ("half.json", "truncated"), ("binary.json", "not valid JSON")):
        with pytest.raises(DataError, match=f"{name}.*{words}"):
            read_json(tmp_path / name)


def test_arrays_are_plain_npy(tmp_path: Path) -> None:
    """numpy reads it without pickle; an object array is refused and leaves nothing."""
    path = tmp_path / "array.npy"
    save_array(path, np.arange(6, dtype=np.int16).reshape(2, 3))
    np.testing.assert_array_equal(np.load(path, allow_pickle=False), [[0, 1, 2], [3, 4, 5]])
    with pytest.raises(ValueError, match="allow_pickle"):
        save_array(tmp_path / "objects.npy", np.array([{}, []], dtype=object))
    assert os.listdir(tmp_path) == ["array.npy"]


def test_hashes_are_sha256(tmp_path: Path) -> None:
    """Against hashlib on the same bytes; the order of a dict's keys does not matter, its values do."""
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 5000)
    assert sha256_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert canonical_json({"b": 1, "a": [1.5, None]}) == b'{"a":[1.5,null],"b":1}'
    assert sha256_json({"b": 1, "a": 2}) == hashlib.sha256(b'{"a":2,"b":1}').hexdigest()
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})


def test_remove_tree_leaves_nothing(tmp_path: Path) -> None:
    """The folder, its content and the name that it was moved to are gone."""
    folder = tmp_path / "step-1"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text("x")
    remove_tree(folder)
    assert os.listdir(tmp_path) == []


def test_sweep_takes_files_and_folders_that_were_left(tmp_path: Path) -> None:
    """Temporary files and folders, trash and links to elsewhere; nothing of another name, nothing elsewhere."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    (tmp_path / ".tmp-tower-1").write_text("x")
    (tmp_path / ".tmp-step-2").mkdir()
    (tmp_path / ".tmp-step-2" / "part").write_text("x")
    (tmp_path / ".trash-step-3").mkdir()
    (tmp_path / ".tmp-link").symlink_to(kept)
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(kept) == ["file"]


def hold(folder: Path) -> "subprocess.Popen[str]":
    """Another process that holds the folder's lock until its input ends."""
    code = (
        "import sys\n"
        "from stence_dist.files import FolderLock\n"
        "lock = FolderLock(sys.argv[1], 'pretraining').acquire()\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    """A second process is named by purpose and number; when it is killed the folder is free at once."""
    holder = hold(tmp_path / "run")
    try:
        with pytest.raises(RefusedError, match=f"pretraining, process {holder.pid} on "):
            FolderLock(tmp_path / "run", "report").acquire()
    finally:
        holder.kill()
        holder.communicate()
    FolderLock(tmp_path / "run", "report").acquire().release()


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """A file in its place."""
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RefusedError, match="cannot be written to as a folder"):
        FolderLock(tmp_path / "run", "test").acquire()


def test_released_lock_is_free(tmp_path: Path) -> None:
    """Taken, released, taken again, with the second holder's name in the file."""
    first = FolderLock(tmp_path, "a longer purpose than the next").acquire()
    with pytest.raises(RefusedError, match="a longer purpose"):
        FolderLock(tmp_path, "second").acquire()
    first.release()
    second = FolderLock(tmp_path, "second").acquire()
    assert json.dumps((tmp_path / ".lock").read_text()).startswith(f'"second, process {os.getpid()} on ')
    second.release()
