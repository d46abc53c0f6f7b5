"""init_from: which weights a pretraining run starts from, what it refuses, and that they are part of its identity."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from forks import run_script
from safetensors.torch import load_file

from stence_dist import files
from stence_dist.config.data import DataConfig
from stence_dist.config.ecg_encoder import EcgEncoderConfig, OtisConfig, ResNetConfig
from stence_dist.config.engine import EngineConfig
from stence_dist.config.load import load
from stence_dist.config.loss import LossConfig
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.errors import ConfigError, DataError
from stence_dist.models.ecg_tower import build_ecg_tower, save_ecg_tower
from stence_dist.train.plan import _started_encoder, plan, starting_weights
from stence_dist.train.run_folder import check_same_run

TINY = ResNetConfig(seconds=1.0, widths=[8, 16])


def tower_file(path: Path, *, seed: int = 7, embedding: int | None = 16) -> Path:
    """A tower of other weights than a run of seed 0 starts with."""
    save_ecg_tower(path, build_ecg_tower(TINY, embedding, seed=seed))
    return path


def pretraining(shards: Path | str, init_from: Path | None, **changes: object) -> PretrainConfig:
    """A run of one step."""
    values = {
        "run_dir": "unused",
        "steps": 1,
        "embedding": 16,
        "init_from": str(init_from) if init_from else None,
        "data": DataConfig(shards=str(shards)),
        "ecg_encoder": TINY,
        "loss": LossConfig(stenosis_weight=0),
        "engine": EngineConfig(global_batch_size=4),
        **changes,
    }
    return PretrainConfig(**values)


@pytest.mark.parametrize("embedding", [16, 8, None])
def test_the_projector_is_taken_where_its_width_fits(tmp_path: Path, embedding: int | None) -> None:
    """The whole file at the run's own width; the encoder alone at another one and without a projector."""
    path = tower_file(tmp_path / "tower.safetensors", embedding=embedding)
    stored = load_file(path)
    taken = starting_weights(pretraining("S", path))
    names = {name for name in stored if embedding == 16 or name.startswith("encoder.")}
    assert set(taken) == names
    assert all(torch.equal(taken[name], stored[name]) for name in names)
    assert starting_weights(pretraining("S", None)) == {}


def test_how_an_encoder_is_trained_may_differ(tmp_path: Path) -> None:
    """Windows and drop-path are the run's own; memory saving is, too (OTiS)."""
    path = tower_file(tmp_path / "tower.safetensors")
    starting_weights(pretraining("S", path, ecg_encoder=dataclasses.replace(TINY, windows=3, drop_path=0.2)))
    otis = OtisConfig(width=12, depth=1, heads=1, positions=3, seconds=0.2)
    save_ecg_tower(path, build_ecg_tower(otis, None, seed=0))
    starting_weights(pretraining("S", path, ecg_encoder=dataclasses.replace(otis, checkpointing=True)))
    with pytest.raises(ConfigError, match="heads=1 there and 2 here"):  # tensors of equal shapes
        starting_weights(pretraining("S", path, ecg_encoder=dataclasses.replace(otis, width=12, heads=2)))


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (dataclasses.replace(TINY, widths=[8, 24]), r"widths=\[8, 16\] there and \[8, 24\] here"),
        (
            dataclasses.replace(TINY, seconds=2.0, kernel=5),
            r"kernel=7 there and 5 here, seconds=1.0 there and 2.0 here",
        ),
        (OtisConfig(), r"name=resnet there and otis here"),
    ],
)
def test_another_encoder_is_refused_by_key(tmp_path: Path, encoder: ResNetConfig, message: str) -> None:
    """The message has the file, and both values of every key that differs."""
    path = tower_file(tmp_path / "tower.safetensors")
    with pytest.raises(ConfigError, match=rf"init_from={path} .*{message}"):
        starting_weights(pretraining("S", path, ecg_encoder=encoder))


# 1 s at 500 Hz are ten patches of 48 samples.
OTIS = OtisConfig(seconds=1.0, width=12, depth=1, heads=1, patch=48)


@pytest.mark.parametrize(
    ("given", "there", "added"),
    [
        ("", OtisConfig(), "ecg_encoder=otis_base"),
        ("", OtisConfig(seconds=10.0, positions=208), "ecg_encoder=otis_base ecg_encoder.seconds=10.0"),
        ("ecg_encoder=otis_huge", OtisConfig(positions=62), "ecg_encoder=otis_base"),
        ("recipe=stence_otis", OtisConfig(width=384, depth=18, heads=6), "ecg_encoder=otis_large"),
        ("recipe=stence_otis", OtisConfig(seconds=10.0, positions=208), "ecg_encoder.seconds=10.0"),
        ("ecg_encoder=otis_base", OtisConfig(heads=2, patch=48), "ecg_encoder.heads=2 ecg_encoder.patch=48"),
        ("", OtisConfig(width=12, heads=1), "ecg_encoder=otis_base ecg_encoder.width=12 ecg_encoder.heads=1"),
        ("ecg_encoder=otis_base", ResNetConfig(widths=[8, 16]), "ecg_encoder=resnet ecg_encoder.widths=[8,16]"),
        ("", ResNetConfig(kernel=5), "ecg_encoder.kernel=5"),
    ],
)
def test_the_refusal_says_what_to_type(given: str, there: EcgEncoderConfig, added: str) -> None:
    """With exactly these keys behind those that were typed, the command has the file's encoder and its tables."""
    with torch.device("meta"):
        tower = build_ecg_tower(there, None, seed=0)
    keys = ["data.shards=S", "run_dir=R", "init_from=F", *given.split()]
    with pytest.raises(ConfigError, match=re.escape(f" Add {added}, or give another file.")):
        _started_encoder(tower, load(PretrainConfig, "pretrain", keys))
    encoder = _started_encoder(tower, load(PretrainConfig, "pretrain", [*keys, *added.split()]))
    assert encoder == dataclasses.replace(there, drop_path=encoder.drop_path)


@pytest.mark.parametrize(
    "tables",
    [
        {"positions": 62},
        {"positions": 208, "domain_rows": 60, "ecg_offset": 9},
        {"mlp": "swiglu", "mlp_hidden": 20},
    ],
)
def test_the_tables_of_an_encoder_come_from_its_file(
    small_shards: Path, tmp_path: Path, tables: dict[str, object]
) -> None:
    """The plan's config, and so config.yaml and the hash, are those of a run whose config has the same values."""
    path = tmp_path / "tower.safetensors"
    save_ecg_tower(path, build_ecg_tower(dataclasses.replace(OTIS, **tables), 16, seed=7))
    here = dataclasses.replace(OTIS, drop_path=0.2, windows=3)
    prepared = plan(pretraining(small_shards, path, ecg_encoder=here), torch.device("cpu"))
    resolved = dataclasses.replace(here, **tables)
    assert prepared.config.ecg_encoder == resolved
    typed = plan(pretraining(small_shards, path, ecg_encoder=resolved), torch.device("cpu"))
    assert prepared.identity == typed.identity
    assert prepared.config_hash == typed.config_hash
    taken, stored = starting_weights(prepared.config), load_file(path)
    assert all(torch.equal(taken[name], stored[name]) for name in stored)
    model = build_ecg_tower(prepared.config.ecg_encoder, 16, seed=0)
    model.load_state_dict(taken)


def test_files_that_are_no_towers_are_refused(small_shards: Path, tmp_path: Path) -> None:
    """Before any work: a missing file, and one that holds something else."""
    with pytest.raises(DataError, match="does not exist"):
        plan(pretraining(small_shards, tmp_path / "none.safetensors"), torch.device("cpu"))
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(DataError, match="not a whole safetensors file"):
        plan(pretraining(small_shards, tmp_path / "text"), torch.device("cpu"))


def test_the_file_is_part_of_the_identity_by_content(small_shards: Path, tmp_path: Path) -> None:
    """Its sha256 is, its path is not; a run without one has the identity that it always had."""

    def identity(path: Path | None) -> dict[str, object]:
        return plan(pretraining(small_shards, path), torch.device("cpu")).identity

    first, second = (tower_file(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (7, 8))
    moved = tmp_path / "moved.safetensors"
    shutil.copy(first, moved)
    assert identity(first)["init_from"] == files.sha256_file(first)
    assert identity(moved) == identity(first)
    assert identity(second) != identity(first)
    assert "init_from" not in identity(None)


def arguments(shards: Path, run: Path, init_from: Path, *more: str) -> list[str]:
    """The keys of a small run; an ECG rate of 0 unless `more` says otherwise."""
    return [
        f"data.shards={shards}",
        f"run_dir={run}",
        f"init_from={init_from}",
        "steps=1",
        "embedding=16",
        "ecg_encoder.seconds=1",
        "ecg_encoder.widths=[8,16]",
        "image_tower.width=16",
        "image_tower.channels=[4,8]",
        "image_tower.feedforward=32",
        "loss.stenosis_weight=0",
        "engine.global_batch_size=4",
        "optimizer.ecg_lr=0",
        "data.workers=0",
        "pictures_every=0",
        *more,
    ]


def run_pretraining(keys: list[str], expected: int = 0) -> None:
    """`launch/pretrain.py` in a process of its own, as a user starts it."""
    run_script("launch/pretrain.py", keys, expected)


def test_a_run_starts_from_the_file(small_shards: Path, tmp_path: Path) -> None:
    """At a rate of 0 the ECG tower stays, bit by bit, what the file holds. The folder then takes the same bytes under
    any path, and refuses others by name."""
    path, run = tower_file(tmp_path / "tower.safetensors"), tmp_path / "run"
    run_pretraining(arguments(small_shards, run, path))
    assert f"starting at step 0 from {path}" in (run / "log.txt").read_text()
    stored, found = load_file(path), load_file(run / "ecg_tower.safetensors")
    assert set(found) == set(stored)
    assert all(torch.equal(found[name], stored[name]) for name in stored)

    def state(file: Path) -> str | None:
        config = load(PretrainConfig, "pretrain", arguments(small_shards, run, file))
        return check_same_run(run, plan(config, torch.device("cpu")).identity)

    moved, other = tmp_path / "moved.safetensors", tower_file(tmp_path / "other.safetensors", seed=8)
    shutil.copy(path, moved)
    assert state(moved) == "finished"
    message = rf"init_from \({files.sha256_file(path)} there, {files.sha256_file(other)} now\)"
    with pytest.raises(ConfigError, match=message):
        state(other)


def otis_arguments(shards: Path, run: Path, init_from: Path, *more: str) -> list[str]:
    """The keys of a small run of OTiS's encoder, without a word of its tables."""
    keys = [key for key in arguments(shards, run, init_from) if not key.startswith("ecg_encoder.widths")]
    sizes = [f"ecg_encoder.{name}={getattr(OTIS, name)}" for name in ("width", "depth", "heads", "patch")]
    return [*keys, "ecg_encoder=otis_base", *sizes, *more]


def test_a_run_of_an_imported_encoder_resumes(small_shards: Path, tmp_path: Path) -> None:
    """Stopped after step 1 of 2 and continued by the same command; config.yaml has the file's tables, the tower its
    weights, and a table of another size is another run."""
    path, run = tmp_path / "tower.safetensors", tmp_path / "run"
    tables = {"positions": 30, "domain_rows": 50, "ecg_offset": 7}
    save_ecg_tower(path, build_ecg_tower(dataclasses.replace(OTIS, **tables), None, seed=7))
    keys = otis_arguments(small_shards, run, path, "steps=2")
    run.mkdir()
    (run / "STOP").touch()
    run_pretraining(keys, expected=75)
    run_pretraining(keys)
    encoder = yaml.safe_load((run / "config.yaml").read_text())["ecg_encoder"]
    assert {name: encoder[name] for name in tables} == tables
    assert "going on after step 1" in (run / "log.txt").read_text()
    found, stored = load_file(run / "ecg_tower.safetensors"), load_file(path)
    assert all(torch.equal(found[name], stored[name]) for name in stored)


@pytest.mark.slow
def test_a_resumed_run_does_not_start_again(small_shards: Path, tmp_path: Path) -> None:
    """Stopped after step 1 of 2 and continued, the tower has the bits of the uninterrupted run."""
    path = tower_file(tmp_path / "tower.safetensors")
    keys = ["steps=2", "optimizer.ecg_lr=0.01"]
    run_pretraining(arguments(small_shards, tmp_path / "whole", path, *keys))
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "STOP").touch()
    run_pretraining(arguments(small_shards, tmp_path / "parts", path, *keys), expected=75)
    run_pretraining(arguments(small_shards, tmp_path / "parts", path, *keys))
    whole, parts = (load_file(tmp_path / name / "ecg_tower.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not torch.equal(whole["encoder.stem.weight"], load_file(path)["encoder.stem.weight"])
