import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stence_dist.config.ecg_encoder import ResNetConfig
from stence_dist.errors import DataError, SpecMismatchError
from stence_dist.models import initial_weights
from stence_dist.models.ecg_tower import build_ecg_tower, embed_windows, load_ecg_tower, save_ecg_tower

CONFIG = ResNetConfig(seconds=0.5, windows=2, widths=[8, 16], kernel=5)


@pytest.mark.parametrize("embedding", [6, None])
def test_tower_survives_its_file_bitwise(tmp_path: Path, embedding: int | None) -> None:
    """Features, projections, config, spec and width of a loaded tower are those of the saved one."""
    tower = build_ecg_tower(CONFIG, embedding, seed=3).eval()
    save_ecg_tower(tmp_path / "tower.safetensors", tower)
    loaded = load_ecg_tower(tmp_path / "tower.safetensors")
    ecg = torch.randn(2, 12, 250)
    for ours, theirs in zip(tower(ecg), loaded(ecg), strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    assert (loaded.config, loaded.spec, loaded.width, loaded.embedding) == (CONFIG, tower.spec, 32, embedding)
    assert not loaded.training


def test_file_is_what_the_contract_says(tmp_path: Path) -> None:
    """Read with safetensors alone: float32, encoder.* and projector.*, metadata JSON; equal towers, equal bytes."""
    path = tmp_path / "tower.safetensors"
    tower = build_ecg_tower(CONFIG, 6, seed=3)
    save_ecg_tower(path, tower)
    first = path.read_bytes()
    save_ecg_tower(path, tower.double(), state=build_ecg_tower(CONFIG, 6, seed=3).state_dict())
    assert path.read_bytes() == first
    with safe_open(path, framework="np") as file:
        described = json.loads(file.metadata()["stence_dist"])
    assert {name.split(".")[0] for name in load_file(path)} == {"encoder", "projector"}
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float32}
    assert (described["format"], described["embedding"], described["encoder"]["name"]) == (1, 6, "resnet")
    assert described["spec"]["seconds"] == 0.5
    assert [entry.name for entry in tmp_path.iterdir()] == ["tower.safetensors"]


def test_weights_depend_on_the_seed_alone() -> None:
    """Equal seeds, equal weights whatever torch's generator says, which is left as it was; other seeds, other ones."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_ecg_tower(CONFIG, 6, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = build_ecg_tower(CONFIG, 6, seed=3).state_dict(), build_ecg_tower(CONFIG, 6, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["encoder.stem.weight"], other["encoder.stem.weight"])
    with initial_weights(3, "one part"):
        drawn = torch.randn(4)
    with initial_weights(3, "another part"):
        assert not torch.equal(torch.randn(4), drawn)
    bare = build_ecg_tower(CONFIG, None, seed=3).state_dict()
    assert all(torch.equal(first[name], bare[name]) for name in bare)


def test_projector_starts_as_published() -> None:
    """Xavier-uniform bounds sqrt(6 / (in + out)) are reached and kept; biases are 0.01 (StenCE, models.py)."""
    projector = build_ecg_tower(CONFIG, 64, seed=0).projector
    assert projector is not None
    for linear in (projector.hidden, projector.output):
        bound = (6 / (linear.in_features + linear.out_features)) ** 0.5
        assert 0.97 * bound < linear.weight.abs().max() <= bound
        assert bool((linear.bias == 0.01).all())


def test_windows_are_averaged() -> None:
    """embed_windows against a loop over the windows."""
    tower = build_ecg_tower(CONFIG, 6, seed=0)
    ecg = torch.randn(2, 3, 12, 250)
    features, projected = embed_windows(tower, ecg)
    assert projected is not None
    torch.testing.assert_close(features, torch.stack([tower(ecg[:, window])[0] for window in range(3)]).mean(0))
    torch.testing.assert_close(projected, torch.stack([tower(ecg[:, window])[1] for window in range(3)]).mean(0))


def _rewrite(path: Path, change: dict[str, Any]) -> None:
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["stence_dist"])
    save_file(load_file(path), path, metadata={"stence_dist": json.dumps({**described, **change})})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": 2}, "format 2.*reads 1"),
        ({"encoder": {"name": "unheard"}}, "'unheard' is not known.*resnet"),
        ({"encoder": {"name": "resnet"}}, "keys"),
        ({"surplus": 1}, "surplus"),
        ({"embedding": -1}, "embedding=-1"),
        ({"embedding": None}, "unknown projector.norm.weight"),
    ],
)
def test_foreign_metadata_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Each departure from the format raises DataError that names it."""
    path = tmp_path / "tower.safetensors"
    save_ecg_tower(path, build_ecg_tower(CONFIG, 6, seed=0))
    _rewrite(path, change)
    with pytest.raises(DataError, match=message):
        load_ecg_tower(path)


def test_another_spec_is_refused(tmp_path: Path) -> None:
    """A spec that is not the encoder's own raises SpecMismatchError."""
    path = tmp_path / "tower.safetensors"
    tower = build_ecg_tower(CONFIG, 6, seed=0)
    save_ecg_tower(path, tower)
    _rewrite(path, {"spec": {**tower.spec.to_dict(), "sampling_rate": 250.0}})
    with pytest.raises(SpecMismatchError, match="250"):
        load_ecg_tower(path)


def test_wrong_tensors_are_all_listed(tmp_path: Path) -> None:
    """One message names the missing, the unknown, the reshaped and the retyped tensor."""
    path = tmp_path / "tower.safetensors"
    save_ecg_tower(path, build_ecg_tower(CONFIG, 6, seed=0))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["encoder.extra"] = torch.zeros(1)
    tensors["encoder.norm.weight"] = torch.zeros(3)
    tensors["encoder.norm.bias"] = tensors["encoder.norm.bias"].half()
    del tensors["encoder.stem.bias"]
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(DataError) as raised:
        load_ecg_tower(path)
    for part in ("missing encoder.stem.bias", "unknown encoder.extra", r"(3,), expected (16,)", "torch.float16"):
        assert part in str(raised.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    """Missing, empty, truncated, not safetensors, a folder, safetensors without our key: DataError each."""
    whole = tmp_path / "tower.safetensors"
    save_ecg_tower(whole, build_ecg_tower(CONFIG, 6, seed=0))
    cases = {"empty": b"", "text": b"not a tensor in sight", "truncated": whole.read_bytes()[:-10]}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="not a whole safetensors"):
            load_ecg_tower(tmp_path / name)
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(DataError, match="metadata"):
        load_ecg_tower(tmp_path / "foreign")
    with pytest.raises(DataError, match="does not exist"):
        load_ecg_tower(tmp_path / "nowhere")
    with pytest.raises(DataError):
        load_ecg_tower(tmp_path)
