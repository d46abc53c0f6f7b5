"""What the doctor finds, and when it fails."""

import importlib.metadata
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from stence_dist import doctor as examined
from stence_dist.config.compose import CONFIG_FOLDER
from stence_dist.config.doctor import DoctorConfig
from stence_dist.data.readers.images.codecs import COMMON
from stence_dist.doctor import EXTRAS, Finding, doctor, examine
from stence_dist.errors import CheckFailedError


def found(findings: list[Finding], part: str) -> dict[str, Finding]:
    """The findings of one part by name."""
    return {finding.name: finding for finding in findings if finding.part == part}


def test_this_machine_is_usable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Packages with their versions, every extra, codecs, storage and network; nothing is left behind in the folder."""
    doctor(DoctorConfig(json=True, folder=str(tmp_path)))
    printed = json.loads(capsys.readouterr().out)
    assert printed["usable"]
    findings = [Finding(**entry) for entry in printed["findings"]]
    assert found(findings, "packages")["torch"].text == importlib.metadata.version("torch")
    assert set(found(findings, "extras")) == set(EXTRAS)
    assert found(findings, "codecs")["RLE"].state == "ok"
    assert "gloo" in found(findings, "network")["back ends"].text
    assert list(tmp_path.iterdir()) == []


def test_every_extra_has_a_line() -> None:
    """No extra of the package is unknown to the doctor."""
    stated = set(importlib.metadata.metadata("stence_dist").get_all("Provides-Extra") or ())
    assert stated - {"dev"} == set(EXTRAS)


def test_codecs_are_those_of_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the reader decodes with, and what brings it where it is absent, even beside pyjpegls; nothing to convert."""
    pytest.importorskip("gdcm")
    codecs = found(examine(tmp_path), "codecs")
    assert {name: finding.text for name, finding in codecs.items() if finding.text == "gdcm"}.keys() == {
        "JPEG extended, 12 bit",
        "JPEG Lossless",
        "JPEG-LS",
    }
    monkeypatch.setitem(sys.modules, "gdcm", None)
    for syntax, _ in COMMON.values():
        monkeypatch.delitem(get_decoder(UID(syntax))._available, "gdcm", raising=False)
    for name, finding in found(examine(tmp_path), "codecs").items():
        absent = codecs[name].text == "gdcm"
        assert finding.state == ("missing" if absent else "ok"), name
        assert ('pip install "stence_dist[dicom]"' in finding.text) == absent


def test_bf16_is_computed_not_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of ones says that it works; one that comes out as zeros is a problem."""
    assert found(examine(tmp_path), "devices")["CPU bf16"].state == "ok"
    monkeypatch.setattr(torch, "ones", torch.zeros)
    finding = found(examine(tmp_path), "devices")["CPU bf16"]
    assert (finding.state, "bf16 matrices is wrong" in finding.text) == ("problem", True)


def test_an_absent_extra_is_named_and_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, the command that installs it, and what it is for."""
    version = examined._version
    monkeypatch.setattr(examined, "_version", lambda name: None if name == "h5py" else version(name))
    finding = found(examine(tmp_path), "extras")["hdf5"]
    assert finding.state == "missing"
    assert 'h5py not installed; pip install "stence_dist[hdf5]"' in finding.text
    doctor(DoctorConfig(folder=str(tmp_path)))


def test_unlimited_files_are_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit the system says -1; with a small one there is a warning."""
    for limit, state in ((resource.RLIM_INFINITY, "ok"), (256, "warning")):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert found(examine(tmp_path), "storage")["open files"].state == state


def test_problems_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A package that is too old and a folder that cannot be written end with the names of both."""
    version = examined._version
    monkeypatch.setattr(examined, "_version", lambda name: "3.0.1" if name == "pydicom" else version(name))
    with pytest.raises(CheckFailedError, match=r"2 problems \(pydicom, writing\)"):
        doctor(DoctorConfig(folder=str(tmp_path / "absent")))
    assert "3.0.1 is installed, >=3.0.2 is needed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("package", "error", "findings"),
    [
        ("torch", 'OSError("libcudnn.so.9: cannot open shared object file")', {"torch", "back ends"}),
        ("torch", "ModuleNotFoundError(\"No module named 'torch'\")", {"torch", "back ends"}),
        ("numpy", 'ImportError("numpy.core.multiarray failed to import")', {"writing"}),
    ],
)
def test_a_broken_package_is_a_finding_among_others(
    package: str, error: str, findings: set[str], tmp_path: Path
) -> None:
    """A package that raises when it is imported, first on the path: its error is printed, all else, too; code 1."""
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(f"raise {error}\n")
    script = [sys.executable, str(CONFIG_FOLDER.parent / "launch" / "doctor.py"), "json=true", f"folder={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    printed = json.loads(done.stdout)
    assert not printed["usable"]
    problems = {entry["name"]: entry["text"] for entry in printed["findings"] if entry["state"] == "problem"}
    assert findings <= problems.keys()
    assert all(error.partition("(")[0] in problems[name] for name in findings)
    parts = {entry["part"] for entry in printed["findings"]}
    assert parts == {"packages", "extras", "devices", "codecs", "storage", "network"}
    assert {"CPU", "threads", "disk", "open files", "ports"} <= {entry["name"] for entry in printed["findings"]}
