"""Embedding files: the numbers that the tower gives, folders with bad files, arrays that are prepared already."""

import csv
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hospital import Person, write_dicom_ecg, write_muse_ecg
from recordings import sine_ecg, write_wfdb

from stence_dist.config.ecg_encoder import ResNetConfig
from stence_dist.config.embed import EmbedConfig
from stence_dist.data.readers import read_ecg
from stence_dist.ecg import LEADS, prepare_windows
from stence_dist.embed import embed
from stence_dist.errors import ConfigError, DataError
from stence_dist.models.ecg_tower import build_ecg_tower, load_ecg_tower, save_ecg_tower


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tower with a projector; two windows of one second."""
    path = tmp_path_factory.mktemp("weights") / "ecg_tower.safetensors"
    save_ecg_tower(path, build_ecg_tower(ResNetConfig(seconds=1.0, windows=2, widths=[4, 8]), 6, seed=1))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two records at two depths, and one whose signal file is cut short."""
    for name, place in (("a", tmp_path), ("b", tmp_path / "deeper"), ("broken", tmp_path)):
        write_wfdb(place, name, sine_ecg(ord(name[0])))
    signal = tmp_path / "broken.dat"
    signal.write_bytes(signal.read_bytes()[:100])
    return tmp_path


def loaded(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a result."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def by_hand(weights: Path, record: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features and unit-norm embedding of one record, window by window."""
    tower, ecg = load_ecg_tower(weights), read_ecg(record)
    windows = prepare_windows(ecg.signal(), leads=ecg.leads, sampling_rate=ecg.sampling_rate, spec=tower.spec)
    with torch.inference_mode():
        parts = [tower(torch.from_numpy(window[None])) for window in windows]
    features = np.mean([part[0][0].numpy() for part in parts], axis=0)
    projected = np.mean([part[1][0].numpy() for part in parts], axis=0)
    return features, projected / np.linalg.norm(projected)


@pytest.mark.parametrize("name", ["a", "a.hea"])
def test_a_record_is_embedded(name: str, folder: Path, weights: Path, tmp_path: Path) -> None:
    """One row, named with or without .hea; equal to the tower's output averaged over windows."""
    embed(EmbedConfig(weights=str(weights), ecg=str(folder / name), out=str(tmp_path / "emb.npz")))
    arrays = loaded(tmp_path / "emb.npz")
    features, embedding = by_hand(weights, folder / "a")
    np.testing.assert_allclose(arrays["features"], features[None], atol=1e-5)
    np.testing.assert_allclose(arrays["embeddings"], embedding[None], atol=1e-5)
    assert arrays["record"].tolist() == ["a"]
    assert stat.S_IMODE((tmp_path / "emb.npz").stat().st_mode) == 0o600  # the name may be a patient's


@pytest.mark.parametrize("batch_size", [1, 64])
def test_a_folder_goes_on_past_bad_files(batch_size: int, folder: Path, weights: Path, tmp_path: Path) -> None:
    """Good records in the order of their names; the bad one is listed with a reason, for the owner's eyes only."""
    out = tmp_path / "emb.npz"
    embed(EmbedConfig(weights=str(weights), ecg=str(folder), out=str(out), batch_size=batch_size))
    arrays = loaded(out)
    assert arrays["record"].tolist() == ["a", "deeper/b"]
    np.testing.assert_allclose(arrays["features"][1], by_hand(weights, folder / "deeper" / "b")[0], atol=1e-5)
    with open(f"{out}.rejects.csv", newline="", encoding="utf-8") as file:
        rejects = list(csv.DictReader(file))
    assert [row["record"] for row in rejects] == ["broken"]
    assert rejects[0]["reason"]
    assert stat.S_IMODE(Path(f"{out}.rejects.csv").stat().st_mode) == 0o600


def test_a_folder_is_searched_by_content(folder: Path, weights: Path, tmp_path: Path) -> None:
    """DICOM and MUSE XML whatever they are called; no notes, table of numbers, signal file, or companion of macOS."""
    person = Person(0)
    write_dicom_ecg(folder, person, 1).rename(folder / "c.bin")
    write_muse_ecg(folder, person, 2).rename(folder / "d.txt")
    (folder / "notes.xml").write_text("<note/>")
    (folder / "._a.hea").write_bytes(b"\0\5\x16\7")  # macOS writes these
    (folder / "rates.csv").write_text("1,2\n3,4\n")
    embed(EmbedConfig(weights=str(weights), ecg=str(folder), out=str(tmp_path / "emb.npz")))
    assert loaded(tmp_path / "emb.npz")["record"].tolist() == ["a", "c.bin", "d.txt", "deeper/b"]
    with open(f"{tmp_path / 'emb.npz'}.rejects.csv", newline="", encoding="utf-8") as file:
        assert [row["record"] for row in csv.DictReader(file)] == ["broken"]


def test_a_folder_counts_no_recording_twice(
    folder: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Segments of a WFDB record are parts of it; a table with its sidecar is an ECG; files of many are named."""
    (folder / "whole.hea").write_text("whole/2 12 500 4000\na 2000\nlast 2000\n")
    write_wfdb(folder, "last", sine_ecg(3))
    np.savetxt(folder / "t.csv", sine_ecg(4).T, delimiter=",", fmt="%.4f", header=",".join(LEADS), comments="")
    (folder / "t.json").write_text('{"sampling_rate": 500, "unit": "mV"}')
    (folder / "many.h5").write_bytes(b"")
    with caplog.at_level("WARNING", "stence_dist"):
        embed(EmbedConfig(weights=str(weights), ecg=str(folder), out=str(tmp_path / "emb.npz")))
    assert loaded(tmp_path / "emb.npz")["record"].tolist() == ["deeper/b", "t.csv", "whole"]
    assert "1 HDF5 or .pt files may hold many recordings" in caplog.text


def test_a_single_bad_file_is_an_error(folder: Path, weights: Path, tmp_path: Path) -> None:
    """Named as it was typed; nothing is written. So is a folder without any ECG, or without a good one."""
    for name in ("broken", "missing"):
        with pytest.raises(DataError, match=name):
            embed(EmbedConfig(weights=str(weights), ecg=str(folder / name), out=str(tmp_path / "emb.npz")))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no ECG"):
        embed(EmbedConfig(weights=str(weights), ecg=str(empty), out=str(tmp_path / "emb.npz")))
    (empty / "x.hea").write_text("")
    with pytest.raises(DataError, match=r"None of the 1 recordings"):
        embed(EmbedConfig(weights=str(weights), ecg=str(empty), out=str(tmp_path / "emb.npz")))
    assert not (tmp_path / "emb.npz").exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_prepared_arrays_are_not_prepared_again(suffix: str, weights: Path, tmp_path: Path) -> None:
    """Rows go through the tower as they are, one window each, float64 as well."""
    ecg = np.random.default_rng(0).normal(size=(3, 12, 500))
    source = tmp_path / f"ecg{suffix}"
    np.save(source, ecg) if suffix == ".npy" else np.savez(source, ecg=ecg)
    embed(EmbedConfig(weights=str(weights), ecg=str(source), out=str(tmp_path / "emb.npz"), prepared=True))
    arrays = loaded(tmp_path / "emb.npz")
    with torch.inference_mode():
        features, _ = load_ecg_tower(weights)(torch.from_numpy(ecg.astype(np.float32)))
    np.testing.assert_allclose(arrays["features"], features.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(arrays["embeddings"], axis=1), 1, atol=1e-5)
    assert arrays["record"].tolist() == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("ecg", "part"),
    [
        (np.zeros((3, 12, 499), dtype=np.float32), r"\(n, 12, 500\)"),
        (np.zeros((3, 12, 500), dtype=np.int16), "floats"),
        (np.full((3, 12, 500), np.nan, dtype=np.float32), "NaN"),
    ],
)
def test_unfit_arrays_are_refused(ecg: np.ndarray, part: str, weights: Path, tmp_path: Path) -> None:
    """Another length, integers, missing values."""
    np.save(tmp_path / "ecg.npy", ecg)
    with pytest.raises(DataError, match=part):
        embed(
            EmbedConfig(weights=str(weights), ecg=str(tmp_path / "ecg.npy"), out=str(tmp_path / "o.npz"), prepared=True)
        )


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY"])
def test_damaged_arrays_are_refused(content: bytes, weights: Path, tmp_path: Path) -> None:
    """Empty, not a zip archive, cut in its header."""
    (tmp_path / "ecg.npy").write_bytes(content)
    with pytest.raises(DataError, match="no whole"):
        embed(
            EmbedConfig(weights=str(weights), ecg=str(tmp_path / "ecg.npy"), out=str(tmp_path / "o.npz"), prepared=True)
        )


def test_an_unknown_scale_is_refused() -> None:
    """A misspelt wfdb_scale never means another one."""
    with pytest.raises(ConfigError, match="Use auto, header or raw"):
        EmbedConfig(weights="w", ecg="e", out="o", wfdb_scale="raws")


def test_a_tower_without_projector_gives_features_only(folder: Path, tmp_path: Path) -> None:
    """No embeddings array where there is no projector."""
    plain = tmp_path / "plain.safetensors"
    save_ecg_tower(plain, build_ecg_tower(ResNetConfig(seconds=1.0, widths=[4, 8]), None, seed=1))
    embed(EmbedConfig(weights=str(plain), ecg=str(folder / "a"), out=str(tmp_path / "emb.npz")))
    assert set(loaded(tmp_path / "emb.npz")) == {"features", "record"}


def test_sample_recordings_embed(sample_data: Path, weights: Path, tmp_path: Path) -> None:
    """Real recordings of the LUDB give finite rows of two different patients that differ."""
    out = tmp_path / "emb.npz"
    embed(EmbedConfig(weights=str(weights), ecg=str(sample_data / "ludb" / "data"), out=str(out)))
    arrays = loaded(out)
    assert len(arrays["record"]) > 1
    assert np.isfinite(arrays["features"]).all()
    assert np.abs(arrays["features"][0] - arrays["features"][1]).max() > 1e-3
