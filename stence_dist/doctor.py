"""What this machine can do, and what is missing for what.

torch and numpy are imported where they are used, so that a broken one is a finding and hides no other.
"""

import importlib.metadata
import json
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from stence_dist.config.doctor import DoctorConfig
from stence_dist.errors import CheckFailedError, RefusedError

# extra -> what it is for; its packages stand in the package's own metadata.
EXTRAS = {
    "dicom": "angiograms in JPEG Lossless, JPEG-LS and 12-bit JPEG, as most cath labs store them",
    "hdf5": "ECGs in HDF5 (CODE-15, SPH)",
    "philips": "ECGs in Philips XML",
    "parquet": "cohort tables in Parquet",
}
_SMALL_SHARED_MEMORY = 2**30  # bytes; loader processes pass batches through it
_SMALL_DISK = 10 * 2**30


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `state`: ok, missing (something optional is absent), warning, or problem."""

    part: str
    name: str
    state: str
    text: str


def _attempt(part: str, name: str, look: Callable[[], str]) -> Finding:
    """What `look` says, or the problem that it raises."""
    try:
        return Finding(part, name, "ok", look())
    except RefusedError as error:
        return Finding(part, name, "problem", str(error))
    except Exception as error:  # whatever a broken installation raises is the finding
        return _broken(part, name, error)


def _broken(part: str, name: str, error: Exception) -> Finding:
    return Finding(part, name, "problem", f"{type(error).__name__}: {str(error)[:200]}")


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in importlib.metadata.requires("stence_dist") or ()]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> list[Finding]:
    """Core packages against the versions that this one needs."""
    findings = [Finding("packages", "python", "ok", platform.python_version())]
    for needed in _requirements():
        if needed.marker is not None:
            continue
        found = _version(needed.name)
        if found is None:
            findings.append(Finding("packages", needed.name, "problem", f"not installed; pip install '{needed}'"))
        elif Version(found) not in needed.specifier:
            text = f"{found} is installed, {needed.specifier} is needed; pip install '{needed}'"
            findings.append(Finding("packages", needed.name, "problem", text))
        else:
            findings.append(Finding("packages", needed.name, "ok", found))
    return findings


def _extras() -> list[Finding]:
    findings = []
    for extra, purpose in EXTRAS.items():
        marked = [needed for needed in _requirements() if needed.marker is not None]
        packages = [
            needed.name
            for needed in marked
            if needed.marker is not None and needed.marker.evaluate({"extra": extra}) and needed.name != "stence_dist"
        ]
        absent = [name for name in packages if _version(name) is None]
        if absent:
            text = f'{", ".join(absent)} not installed; pip install "stence_dist[{extra}]" for {purpose}'
            findings.append(Finding("extras", extra, "missing", text))
        else:
            versions = ", ".join(f"{name} {_version(name)}" for name in packages)
            findings.append(Finding("extras", extra, "ok", f"{versions}: {purpose}"))
    return findings


def _devices() -> list[Finding]:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    findings = [Finding("devices", "CPU", "ok", f"{cores} cores, {memory / 2**30:.0f} GiB of memory")]
    threads = os.environ.get("OMP_NUM_THREADS")
    told = f"OMP_NUM_THREADS={threads}" if threads else "OMP_NUM_THREADS is not set: ranks of a node share its cores"
    findings.append(Finding("devices", "threads", "ok", told))
    return [*findings, *_gpus()]


def _try_bf16() -> str:
    import torch

    ones = torch.ones(64, 64, dtype=torch.bfloat16)
    if float((ones @ ones).float().mean()) != 64.0:
        raise RuntimeError("a product of bf16 matrices is wrong; set engine.precision=fp32")
    return "computes; engine.precision=auto takes fp32 on CPUs"


def _gpus() -> list[Finding]:
    try:
        import torch
    except Exception as error:  # absent, or without a library of its own
        return [_broken("devices", "torch", error)]
    findings = [_attempt("devices", "CPU bf16", _try_bf16)]
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        findings.append(Finding("devices", "GPU", "missing", f"none that torch can use (torch is {built})"))
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(number)
        with torch.cuda.device(number):
            half = (
                "bf16"
                if torch.cuda.is_bf16_supported(including_emulation=False)
                else "no bf16: set engine.precision=fp16 (ZeRO 0) or fp32"
            )
        text = f"{about.name}, {about.total_memory / 2**30:.0f} GiB, capability {about.major}.{about.minor}, {half}"
        findings.append(Finding("devices", f"GPU {number}", "ok", text))
    return findings


def _codecs() -> list[Finding]:
    from stence_dist.data.readers.images.codecs import COMMON, advice, codec_of  # imports pydicom

    findings = []
    for name, (syntax, bits) in COMMON.items():
        codec = codec_of(syntax, bits)
        state, text = ("ok", codec) if codec else ("missing", f"no codec; {advice(syntax)}")
        findings.append(Finding("codecs", name, state, text))
    return findings


def _try_writing(folder: Path) -> str:
    from stence_dist import files  # imports numpy

    with tempfile.TemporaryDirectory(prefix=".stence-doctor-", dir=folder) as place:
        files.write_text(Path(place) / "file", "text")
        lock = files.FolderLock(Path(place), "doctor").acquire()
        lock.release()
    return "durable writes, renames and locks work"


def _storage(folder: Path) -> list[Finding]:
    findings = [_attempt("storage", "writing", lambda: _try_writing(folder))]
    for name, place, small in (
        ("disk", folder, _SMALL_DISK),
        ("shared memory", Path("/dev/shm"), _SMALL_SHARED_MEMORY),
    ):
        if not place.is_dir():
            continue
        free = shutil.disk_usage(place).free
        text = f"{free / 2**30:.1f} GiB free"
        if free < small:
            advice = "loader processes may fail: data.workers=0, or a larger /dev/shm" if name != "disk" else "little"
            findings.append(Finding("storage", name, "warning", f"{text}: {advice}"))
        else:
            findings.append(Finding("storage", name, "ok", text))
    findings.append(_open_files())
    return findings


def _open_files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return Finding("storage", "open files", "ok", "without limit")
    return Finding("storage", "open files", "ok" if soft >= 1024 else "warning", f"at most {soft} per process")


def _try_port() -> str:
    with socket.socket() as listening, socket.socket() as calling:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        calling.settimeout(5)
        calling.connect(listening.getsockname())
    return "ranks of this machine can reach each other"


def _try_name() -> str:
    name = socket.gethostname()
    return f"this host's name resolves to {socket.gethostbyname(name)}"


def _try_back_ends() -> str:
    from stence_dist import distributed  # imports torch

    return ", ".join(distributed.backends())


def _network() -> list[Finding]:
    findings = [_attempt("network", "back ends", _try_back_ends)]
    findings.append(_attempt("network", "ports", _try_port))
    by_name = _attempt("network", "host name", _try_name)
    if by_name.state != "ok":  # only runs over several nodes meet by name
        by_name = Finding("network", "host name", "warning", "it does not resolve: give --master_addr by number")
    return [*findings, by_name]


def examine(folder: Path) -> list[Finding]:
    """Everything looked at, in the order of a report."""
    parts: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("packages", _packages),
        ("extras", _extras),
        ("devices", _devices),
        ("codecs", _codecs),
        ("storage", lambda: _storage(folder)),
        ("network", _network),
    ]
    findings: list[Finding] = []
    for part, look in parts:
        try:
            findings += look()
        except Exception as error:  # a package that cannot be imported must not hide what else is wrong
            findings.append(_broken(part, part, error))
    return findings


def doctor(config: DoctorConfig) -> None:
    """Print what was found. Raises CheckFailedError where training would fail."""
    folder = Path(config.folder)
    findings = examine(folder)
    problems = [finding for finding in findings if finding.state == "problem"]
    if config.json:
        found: dict[str, Any] = {"usable": not problems, "findings": [vars(finding) for finding in findings]}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        part = ""
        for finding in findings:
            if finding.part != part:
                part = finding.part
                sys.stdout.write(f"{part}\n")
            sys.stdout.write(f"  {finding.state:8} {finding.name:22} {finding.text}\n")
    if problems:
        names = ", ".join(finding.name for finding in problems)
        raise CheckFailedError(f"{len(problems)} problems ({names}): training would fail here.")
