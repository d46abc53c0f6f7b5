"""Published checkpoints, written here in their layouts: what is taken, what is dropped, what is refused, and back."""

import argparse
import dataclasses
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recordings import sine_ecg, write_wfdb
from torch import Tensor

from stence_dist.config.compose import CONFIG_FOLDER
from stence_dist.config.ecg_encoder import OTIS_SIZES, OtisConfig, ResNetConfig
from stence_dist.config.embed import EmbedConfig
from stence_dist.config.import_weights import ImportWeightsConfig
from stence_dist.config.load import load
from stence_dist.data.readers import read_ecg
from stence_dist.ecg import LEADS, prepare_windows
from stence_dist.embed import embed
from stence_dist.errors import ConfigError, DataError
from stence_dist.models import import_weights as importing
from stence_dist.models.ecg_tower import EcgTower, build_ecg_tower, load_ecg_tower
from stence_dist.models.import_weights import export_weights, import_otis, import_stence, import_weights

# domain_offsets of the published weights, from their authors' notebook (github.com/oetu/otis, notebooks/read_out.ipynb)
OFFSETS = {
    "audio_mono": 0,
    "audio_stereo": 1,
    "banking": 3,
    "ecg": 4,
    "economics": 16,
    "eeg_10-20": 17,
    "electromechanics": 36,
    "temperature": 37,
}
# Channels of each: what lies between the offsets. With the row of padding they are the 39 rows of the published table.
CHANNELS = dict(zip(OFFSETS, (1, 2, 1, 12, 1, 19, 1, 1), strict=True))
TINY = (16, 2, 2)  # width, depth, heads
Tensors = dict[str, Tensor]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """otis_base is a small thing."""
    monkeypatch.setitem(OTIS_SIZES, "otis_base", TINY)


def encoder_shapes(
    sizes: tuple[int, int, int], *, mlp: str = "gelu", hidden: int = 0, positions: int = 42, rows: int = 39
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an OTiS encoder, as its code makes them."""
    width, depth, _ = sizes
    hidden = hidden or 4 * width
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed_x": (1, positions + 1, width // 2),
        "patch_embed.proj.weight": (width, 1, 1, 24),
        "patch_embed.proj.bias": (width,),
        "pos_embed_y.weight": (rows, width // 2),
    }
    linear = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "attn.mha.out_proj": (width, width),
        "mlp.fc2": (width, hidden),
    }
    linear |= dict.fromkeys(("mlp.fc1",) if mlp == "gelu" else ("mlp.fc1_g", "mlp.fc1_x"), (hidden, width))
    norms = ["patch_embed.norm", "norm"]
    for block in range(depth):
        for name, shape in linear.items():
            shapes[f"blocks.{block}.{name}.weight"], shapes[f"blocks.{block}.{name}.bias"] = shape, shape[:1]
        shapes[f"blocks.{block}.attn.mha.in_proj_weight"] = (3 * width, width)
        shapes[f"blocks.{block}.attn.mha.in_proj_bias"] = (3 * width,)
        norms += [f"blocks.{block}.norm1", f"blocks.{block}.norm2"]
    return shapes | {f"{name}.{kind}": (width,) for name in norms for kind in ("weight", "bias")}


def filled(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    """Random values."""
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=random) / 4 for name, shape in shapes.items()}


def beside(width: int) -> Tensors:
    """What pretraining leaves beside the encoder, one name of each kind."""
    names = ["decoder_embed.weight", "decoder_blocks.3.attn.mha.in_proj_weight", "decoder_norm.bias"]
    names += ["decoder_pos_embed_y.weight", "decoder_pred.bias", "projector.1.running_mean", "predictor.0.weight"]
    names += ["mask_token", "decoder_pos_embed_x"]
    counter = {"projector.1.num_batches_tracked": torch.tensor(7)}
    return {name: torch.zeros(1, 43, width) for name in names} | counter


def otis_file(path: Path, model: Tensors, **changes: Any) -> Path:
    """A file of OTiS's pretraining."""
    top = {
        "model": model,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "epoch": 199,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(blr=3e-5, time_steps=1008, patch_size=(1, 24), output_dir="", wandb=True),
        "domains": {name: torch.Size([1, count, 1008]) for name, count in CHANNELS.items()},
        "domain_offsets": OFFSETS,
        **changes,
    }
    torch.save({name: value for name, value in top.items() if value is not None}, path)
    return path


def stence_tensors(encoder: Tensors, embedding: int | None = 6) -> Tensors:
    """An `ecg_model` of StenCE."""
    width = encoder["norm.bias"].numel()
    state = {f"model.{name}": value for name, value in encoder.items()}
    if embedding is not None:
        shapes = {"0": (width,), "1": (width, width), "3": (embedding, width)}
        for place, shape in shapes.items():
            state |= filled({f"projector.{place}.weight": shape, f"projector.{place}.bias": shape[:1]}, int(place))
    return state


def stence_file(path: Path, ecg_model: Tensors) -> Path:
    """A file of StenCE's pretraining."""
    torch.save({"ecg_model": ecg_model, "angio_model": {"classifier.bias": torch.zeros(1)}}, path)
    return path


def weights_of(tower: EcgTower) -> Tensors:
    """The encoder's weights under their published names."""
    return {name.removeprefix("network."): value for name, value in tower.encoder.state_dict().items()}


def same(ours: Tensors, theirs: Tensors) -> bool:
    """Equal names, equal bits."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---- what is taken


def test_the_base_checkpoint_is_imported(tmp_path: Path) -> None:
    """All 201 tensors of the published size, bit for bit; at 1008 samples the 42 positions fit as they are."""
    encoder = filled(encoder_shapes(OTIS_SIZES["otis_base"]))
    assert len(encoder) == 201
    path = otis_file(tmp_path / "otis_base.pth", encoder | beside(160))
    tower = import_otis(path, "otis_base", seconds=2.016)
    assert same(weights_of(tower), encoder)
    assert not tower.training
    assert (tower.width, tower.embedding, tower.spec.samples, tower.spec.leads) == (192, None, 1008, LEADS)
    assert (tower.spec.cleaning, tower.spec.normalize, tower.spec.sampling_rate) == ("stence", "lead_groups", 500.0)
    with torch.inference_mode():
        features, _ = tower(torch.randn(1, 12, 1008))
    assert bool(features.isfinite().all())


@pytest.mark.parametrize("kind", ["otis_large", "otis_huge"])
@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_large_and_huge_have_the_published_names_and_shapes(kind: str, mlp: str) -> None:
    """On the meta device: the tower's names and shapes are those of `encoder_shapes`, and sizes stand for heads."""
    shapes = encoder_shapes(OTIS_SIZES[kind], mlp=mlp)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    checkpoint = importing.Checkpoint("file", OTIS_SIZES[kind], tensors, importing.otis_name, 4, ())
    config, embedding = importing._configuration(checkpoint, 3.0)
    assert (config.width, config.depth, config.heads, config.mlp, embedding) == (*OTIS_SIZES[kind], mlp, None)
    with torch.device("meta"):
        tower = build_ecg_tower(config, None, seed=0)
    assert {name: tuple(value.shape) for name, value in weights_of(tower).items()} == shapes


@pytest.mark.usefixtures("tiny")
def test_what_stands_beside_the_encoder_may_be_absent(tmp_path: Path) -> None:
    """With and without decoder, optimizer, arguments and domains: the same tower."""
    encoder = filled(encoder_shapes(TINY))
    full = otis_file(tmp_path / "full.pth", encoder | beside(8))
    torch.save({"model": encoder}, tmp_path / "bare.pth")
    towers = [import_otis(path, "otis_base") for path in (full, tmp_path / "bare.pth")]
    assert same(towers[0].state_dict(), towers[1].state_dict())
    assert towers[0].config == towers[1].config


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("hidden", [64, 40])
def test_swiglu_is_known_by_its_names(hidden: int, tmp_path: Path) -> None:
    """fc1_g and fc1_x make the other MLP, of whatever hidden width the file has."""
    encoder = filled(encoder_shapes(TINY, mlp="swiglu", hidden=hidden))
    tower = import_otis(otis_file(tmp_path / "file.pth", encoder), "otis_base", seconds=2.0)
    assert same(weights_of(tower), encoder)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("offsets", "first"), [(OFFSETS, 5), (None, 5), ({"eeg": 0, "ecg": 19}, 20), ({"ecg": 0}, 1)])
def test_leads_have_the_rows_that_the_file_says(offsets: dict[str, int] | None, first: int, tmp_path: Path) -> None:
    """The gradient of a feature reaches twelve rows of the table, from 1 + the stored offset, else 1 + 4."""
    path = otis_file(tmp_path / "file.pth", filled(encoder_shapes(TINY)), domain_offsets=offsets)
    tower = import_otis(path, "otis_base", seconds=0.5)
    tower(torch.randn(2, 12, 250))[0].square().sum().backward()
    gradient = tower.encoder.get_parameter("network.pos_embed_y.weight").grad
    assert gradient.abs().sum(dim=1).nonzero().squeeze(1).tolist() == list(range(first, first + 12))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("seconds", "stored"), [(3.0, 62), (10.0, 208), (1.0, 42)])
def test_positions_are_stretched_and_never_squeezed(seconds: float, stored: int, tmp_path: Path) -> None:
    """A table whose rows are their own numbers, k, becomes (k + 1/2) 42 / T' - 1/2 + 1, held at both ends."""
    encoder = filled(encoder_shapes(TINY))
    encoder["pos_embed_x"] = torch.arange(0.0, 43.0)[None, :, None].expand(1, 43, 8).clone()
    tower = import_otis(otis_file(tmp_path / "file.pth", encoder), "otis_base", seconds=seconds)
    table = weights_of(tower)["pos_embed_x"]
    assert table.shape == (1, stored + 1, 8)
    expected = 1 + np.clip((np.arange(stored) + 0.5) * 42 / stored - 0.5, 0, 41)
    np.testing.assert_allclose(table[0, 1:, 0].numpy(), expected, atol=1e-5)
    assert not table[0, 0].any()
    assert tower(torch.randn(1, 12, tower.spec.samples))[0].shape == (1, 16)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("embedding", [6, None])
def test_stence_keeps_its_projector(embedding: int | None, tmp_path: Path) -> None:
    """LayerNorm, Linear, ReLU, Linear under 0, 1 and 3, worked out by hand; none where the file has none."""
    encoder = filled(encoder_shapes(TINY, positions=62))
    state = stence_tensors(encoder, embedding)
    tower = import_stence(stence_file(tmp_path / "ecg_last.pt", state))
    assert same(weights_of(tower), encoder)
    assert tower.embedding == embedding
    features, projected = tower(torch.randn(2, 12, 1500))
    if embedding is None:
        assert projected is None
        return
    centered = features - features.mean(1, keepdim=True)
    values = centered / (centered.square().mean(1, keepdim=True) + 1e-5).sqrt()
    values = values * state["projector.0.weight"] + state["projector.0.bias"]
    values = (values @ state["projector.1.weight"].T + state["projector.1.bias"]).clamp(min=0)
    values = values @ state["projector.3.weight"].T + state["projector.3.bias"]
    torch.testing.assert_close(projected, values, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("embedding", [6, None])
def test_export_gives_back_what_was_imported(embedding: int | None, tmp_path: Path) -> None:
    """Every tensor of ecg_model bit for bit, a second file byte for byte, and the tower again."""
    state = stence_tensors(filled(encoder_shapes(TINY, positions=62)), embedding)
    tower = import_stence(stence_file(tmp_path / "ecg_last.pt", state))
    export_weights(tower, tmp_path / "back.pt")
    export_weights(tower, tmp_path / "again.pt")
    assert (tmp_path / "back.pt").read_bytes() == (tmp_path / "again.pt").read_bytes()
    exported = torch.load(tmp_path / "back.pt", weights_only=True)
    assert exported.keys() == {"ecg_model"}
    assert same(exported["ecg_model"], state)
    again = import_stence(tmp_path / "back.pt")
    assert same(again.state_dict(), tower.state_dict())
    assert again.config == tower.config
    with pytest.raises(DataError, match="resnet"):
        export_weights(build_ecg_tower(ResNetConfig(), None, seed=0), tmp_path / "other.pt")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("seconds", "stored"), [(0.5, 42), (3.0, 62), (10.0, 208)])
def test_an_exported_tower_has_the_same_features(seconds: float, stored: int, tmp_path: Path) -> None:
    """Also where it stretches 42 positions itself: the file has what its windows need, as StenCE's have."""
    tower = build_ecg_tower(OtisConfig(seconds=seconds, width=16, depth=2, heads=2), None, seed=3).eval()
    export_weights(tower, tmp_path / "file.pt")
    again = import_stence(tmp_path / "file.pt", seconds)
    ecg = torch.randn(2, 12, tower.spec.samples)
    assert weights_of(again)["pos_embed_x"].shape[1] == 1 + stored
    assert torch.equal(again(ecg)[0], tower(ecg)[0])


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"ecg_offset": 9}, r"ecg_offset=9 \(4 there\)"),
        ({"heads": 4}, r"heads=4 \(2 there\)"),
    ],
)
def test_what_the_layout_cannot_carry_is_not_exported(changes: dict[str, int], part: str, tmp_path: Path) -> None:
    """Imported again, each of these would be the published value without a word, and the features others; all else
    shows in a shape."""
    config = dataclasses.replace(OtisConfig(width=16, depth=2, heads=2), **changes)
    with pytest.raises(DataError, match=part):
        export_weights(build_ecg_tower(config, None, seed=0), tmp_path / "file.pt")
    assert not (tmp_path / "file.pt").exists()


@pytest.mark.usefixtures("tiny")
def test_tables_of_positions_may_have_what_the_file_states(tmp_path: Path) -> None:
    """Other samples in OTiS's arguments, other channels in its domains: tables of these sizes or of the published
    ones, and no others."""
    stated = {
        "args": argparse.Namespace(time_steps=2400, job_dir=Path("/checkpoint/experiments/%j")),  # of a Slurm launcher
        "domains": {"ecg": torch.Size([1, 12, 2400])},
        "domain_offsets": {"ecg": 0},
    }
    encoder = filled(encoder_shapes(TINY, positions=100, rows=13))
    tower = import_otis(otis_file(tmp_path / "own.pth", encoder, **stated), "otis_base")
    assert same(weights_of(tower), encoder)
    other = filled(encoder_shapes(TINY, positions=62, rows=14))
    with pytest.raises(DataError) as caught:
        import_otis(otis_file(tmp_path / "other.pth", other, **stated), "otis_base")
    assert "pos_embed_x has the shape (1, 63, 8), expected (1, 101, 8)" in str(caught.value)
    assert "pos_embed_y.weight has the shape (14, 8), expected (13, 8)" in str(caught.value)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("seconds", "legal"), [(3.0, {62}), (10.0, {62, 208}), (1.0, {42, 62})], ids=["3 s", "10 s", "1 s"]
)
def test_stence_stores_what_its_windows_need(seconds: float, legal: set[int], tmp_path: Path) -> None:
    """62 positions, or those of the windows that are asked for."""
    for positions in (11, 41, 42, 61, 62, 63, 208):
        encoder = filled(encoder_shapes(TINY, positions=positions))
        path = stence_file(tmp_path / "file.pt", stence_tensors(encoder))
        if positions in legal:
            import_stence(path, seconds)
            continue
        with pytest.raises(DataError, match=rf"model.pos_embed_x has the shape \(1, {positions + 1}, 8\)"):
            import_stence(path, seconds)
    with pytest.raises(DataError, match=r"\(30, 8\), expected \(39, 8\)"):
        import_stence(stence_file(path, stence_tensors(filled(encoder_shapes(TINY, positions=62, rows=30)))), seconds)


# ---- what is refused


def edited(tensors: Tensors, **changes: Tensor | None) -> Tensors:
    """With tensors added or replaced, and those that are None removed."""
    return {name: value for name, value in {**tensors, **changes}.items() if value is not None}


def moved(tensors: Tensors, old: str, new: str) -> Tensors:
    """With one name changed."""
    return {new if name == old else name: value for name, value in tensors.items()}


MISTAKES: dict[str, tuple[Callable[[Tensors], Tensors], list[str]]] = {
    "missing": (lambda t: edited(t, **{"norm.bias": None}), ["missing norm.bias"]),
    "extra": (lambda t: edited(t, **{"head.weight": torch.zeros(2)}), ["unknown head.weight"]),
    "almost a decoder": (lambda t: edited(t, decoder_embedding=torch.zeros(2)), ["unknown decoder_embedding"]),
    "almost a mask": (lambda t: edited(t, mask_token_encoder=torch.zeros(2)), ["unknown mask_token_encoder"]),
    "almost a projector": (lambda t: edited(t, **{"projector_x.0": torch.zeros(2)}), ["unknown projector_x.0"]),
    "reshaped": (
        lambda t: edited(t, **{"patch_embed.proj.weight": torch.zeros(16, 1, 1, 25)}),
        ["patch_embed.proj.weight has the shape (16, 1, 1, 25), expected (16, 1, 1, 24)"],
    ),
    "a prefix": (
        lambda t: moved(t, "cls_token", "model.cls_token"),
        ["missing cls_token", "unknown model.cls_token"],
    ),
    "another depth": (
        lambda t: {name: value for name, value in t.items() if not name.startswith("blocks.1.")},
        ["missing blocks.1.norm1.weight", "missing blocks.1.mlp.fc2.bias"],
    ),
    "both MLPs": (
        lambda t: moved(t, "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1_g.weight"),
        ["missing blocks.0.mlp.fc1_x.weight", "unknown blocks.0.mlp.fc1.bias", "unknown blocks.1.mlp.fc1.weight"],
    ),
    "no rows for the leads": (
        lambda t: edited(t, **{"pos_embed_y.weight": torch.zeros(16, 8)}),
        ["pos_embed_y.weight has the shape (16, 8), expected (39, 8)"],
    ),
    "fewer rows": (
        lambda t: edited(t, **{"pos_embed_y.weight": t["pos_embed_y.weight"][:30].clone()}),
        ["pos_embed_y.weight has the shape (30, 8), expected (39, 8)"],
    ),
    "fewer positions": (
        lambda t: edited(t, pos_embed_x=t["pos_embed_x"][:, :11].clone()),
        ["pos_embed_x has the shape (1, 11, 8), expected (1, 43, 8)"],
    ),
    "no row of the class token": (
        lambda t: edited(t, pos_embed_x=t["pos_embed_x"][:, 1:].clone()),
        ["pos_embed_x has the shape (1, 42, 8), expected (1, 43, 8)"],
    ),
    "a flat table": (
        lambda t: edited(t, pos_embed_x=torch.zeros(43, 8)),
        ["pos_embed_x has the shape (43, 8), expected (1, 43, 8)"],
    ),
    "integers": (
        lambda t: edited(t, **{"norm.bias": torch.zeros(16, dtype=torch.int64)}),
        ["norm.bias is torch.int64"],
    ),
    "not finite": (lambda t: edited(t, **{"norm.bias": torch.full((16,), torch.nan)}), ["norm.bias has values"]),
    "not stored": (
        lambda t: edited(t, pos_embed_x=torch.zeros(1, 1, 8).expand(1, 43, 8)),
        ["pos_embed_x is not stored whole"],
    ),
    "not dense": (lambda t: edited(t, **{"norm.bias": torch.zeros(16).to_sparse()}), ["'norm.bias'"]),
}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_other_tensors_are_refused(mistake: str, tmp_path: Path) -> None:
    """Each departure from the published table is named, whatever else is dropped."""
    change, parts = MISTAKES[mistake]
    path = otis_file(tmp_path / "file.pth", change(filled(encoder_shapes(TINY)) | beside(8)))
    with pytest.raises(DataError) as caught:
        import_otis(path, "otis_base")
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        # What `lstrip("model.")` would make of these names are names of the encoder.
        (lambda t: moved(t, "model.norm.bias", "model.odel.norm.bias"), ["unknown model.odel.norm.bias"]),
        (lambda t: moved(t, "model.norm.bias", "model.model.norm.bias"), ["unknown model.model.norm.bias"]),
        (lambda t: moved(t, "model.norm.bias", "norm.bias"), ["missing model.norm.bias", "unknown norm.bias"]),
        (lambda t: edited(t, **{"model.mask_token": torch.zeros(2)}), ["unknown model.mask_token"]),
        (lambda t: edited(t, **{"projector.3.weight": None}), ["missing projector.3.weight"]),
        (lambda t: moved(t, "projector.1.bias", "projector.2.bias"), ["missing projector.1.bias", "unknown proj"]),
        (lambda t: edited(t, **{"model.cls_token": torch.zeros(1, 1, 20)}), ["(1, 1, 20), expected (1, 1, 16)"]),
        (lambda t: edited(t, **{"model.cls_token": torch.tensor(1.0)}), ["shape (), expected (1, 1, 16)"]),
        (lambda t: {}, ["missing model.cls_token"]),
    ],
)
def test_other_stence_tensors_are_refused(
    change: Callable[[Tensors], Tensors], parts: list[str], tmp_path: Path
) -> None:
    """Names are compared whole, and nothing of OTiS's pretraining belongs here."""
    path = stence_file(tmp_path / "ecg_last.pt", change(stence_tensors(filled(encoder_shapes(TINY)))))
    with pytest.raises(DataError) as caught:
        import_stence(path)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.usefixtures("tiny")
def test_one_message_lists_everything(tmp_path: Path) -> None:
    """Missing, unknown, reshaped, retyped."""
    encoder = filled(encoder_shapes(TINY))
    del encoder["cls_token"], encoder["blocks.1.norm2.bias"]
    encoder |= {"extra": torch.zeros(1), "norm.bias": torch.zeros(3), "norm.weight": torch.zeros(16).double()}
    with pytest.raises(DataError) as caught:
        import_otis(otis_file(tmp_path / "file.pth", encoder), "otis_base")
    for part in (
        "missing cls_token",
        "missing blocks.1.norm2.bias",
        "unknown extra",
        "(3,), expected (16,)",
        "float64",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("top", "kind", "part"),
    [
        ({"ecg_model": {}}, "otis_base", "as=stence"),
        ({"model": {}}, "stence", "as=otis_base"),
        ({"state_dict": {}}, "otis_base", "found: 'state_dict'"),
        ({"model": [1]}, "otis_base", "is a list"),
        ({"model": {"norm.bias": 3, 4: torch.zeros(1)}}, "otis_base", "'norm.bias', 4"),
        ({"model": {}, "domain_offsets": {"eeg": 0}}, "otis_base", "no row for ecg"),
        ({"model": {}, "domain_offsets": {"ecg": "4"}}, "otis_base", "no row for ecg"),
        ({"model": {}, "domain_offsets": 4}, "otis_base", "no row for ecg"),
        ([torch.zeros(1)], "otis_base", "holds a list"),
    ],
)
def test_other_layouts_are_refused(top: object, kind: str, part: str, tmp_path: Path) -> None:
    """A hint at the other layout, or what was found instead."""
    torch.save(top, tmp_path / "file.pth")
    with pytest.raises(DataError) as caught:
        import_stence(tmp_path / "file.pth") if kind == "stence" else import_otis(tmp_path / "file.pth", kind)
    assert part in str(caught.value)


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def repacked(path: Path, content: bytes) -> None:
    """Replace the pickle inside a torch file."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, old in members.items():
            archive.writestr(name, content if name.endswith("data.pkl") else old)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("place", ["args", "model", "raw pickle", "protocol 0", "legacy file"])
def test_foreign_objects_are_never_run(place: str, tmp_path: Path) -> None:
    """Beside or among the tensors, in a bare pickle, in another protocol, in torch's old format: refused, not run."""
    path, trap = tmp_path / "file.pth", tmp_path / "trap"
    harmful, encoder = Harmful(trap), filled(encoder_shapes(TINY))
    if place == "args":
        otis_file(path, encoder, args=argparse.Namespace(hidden=harmful))
    elif place == "model":
        otis_file(path, {**encoder, "norm.bias": harmful})
    elif place == "raw pickle":
        path.write_bytes(pickle.dumps({"model": harmful}))
    elif place == "protocol 0":
        otis_file(path, encoder)
        repacked(path, pickle.dumps({"model": harmful}, protocol=0))
    else:
        torch.save({"model": harmful}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match="nothing else in it is run"):
        import_otis(path, "otis_base")
    assert not trap.exists()
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.usefixtures("tiny")
def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Missing, empty, text, a folder, cut anywhere: DataError each."""
    whole = otis_file(tmp_path / "whole.pth", filled(encoder_shapes(TINY))).read_bytes()
    contents = [b"", b"not a checkpoint", b"PK\x03\x04", *(whole[: len(whole) * part // 8] for part in range(1, 8))]
    for content in contents:
        (tmp_path / "file.pth").write_bytes(content)
        with pytest.raises(DataError, match="not a torch checkpoint"):
            import_otis(tmp_path / "file.pth", "otis_base")
    with pytest.raises(DataError, match="does not exist"):
        import_otis(tmp_path / "nowhere.pth", "otis_base")
    with pytest.raises(DataError):
        import_otis(tmp_path, "otis_base")


# ---- the command


@pytest.fixture
def quiet_logs(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the command says."""
    with caplog.at_level("INFO", logger="stence_dist"):
        yield caplog


@pytest.mark.usefixtures("tiny")
def test_an_imported_tower_embeds(tmp_path: Path, quiet_logs: pytest.LogCaptureFixture) -> None:
    """Checkpoint -> import -> file -> tower -> features of a recording, equal to the imported tower's own."""
    state = stence_tensors(filled(encoder_shapes(TINY, positions=62)))
    source, out = stence_file(tmp_path / "ecg_last.pt", state), tmp_path / "weights.safetensors"
    import_weights(ImportWeightsConfig(source=str(source), as_="stence", out=str(out)))
    tower, loaded = import_stence(source), load_ecg_tower(out)
    assert same(loaded.state_dict(), tower.state_dict())
    assert (loaded.config, loaded.spec) == (tower.config, tower.spec)
    write_wfdb(tmp_path, "record", sine_ecg(1))
    embed(EmbedConfig(weights=str(out), ecg=str(tmp_path / "record"), out=str(tmp_path / "emb.npz")))
    with np.load(tmp_path / "emb.npz", allow_pickle=False) as arrays:
        assert arrays["features"].shape == (1, 16)
        np.testing.assert_allclose(np.linalg.norm(arrays["embeddings"], axis=1), 1, atol=1e-5)
        features = arrays["features"]
    record = read_ecg(tmp_path / "record")
    windows = prepare_windows(record.signal(), leads=record.leads, sampling_rate=record.sampling_rate, spec=tower.spec)
    with torch.inference_mode():
        np.testing.assert_allclose(features, tower(torch.from_numpy(windows))[0].numpy(), atol=1e-5)


@pytest.mark.usefixtures("tiny")
def test_the_command_says_what_it_did(tmp_path: Path, quiet_logs: pytest.LogCaptureFixture) -> None:
    """Sizes, rows of the leads, positions, what was dropped by kind, the spec, the file."""
    source = otis_file(tmp_path / "otis.pth", filled(encoder_shapes(TINY)) | beside(8))
    out = tmp_path / "weights.safetensors"
    import_weights(ImportWeightsConfig(source=str(source), as_="otis_base", out=str(out)))
    said = "\n".join(quiet_logs.messages)
    for part in (
        "imported 41 tensors: width 16, 2 blocks, 2 heads, gelu, no projector",
        "rows 5 to 16 of 39",
        "42 in the file, stretched to 62",
        "decoder_blocks (1)",
        "projector (2)",
        "mask_token (1)",
        "3 s at 500 Hz, cleaning stence",
        str(out),
    ):
        assert part in said
    with pytest.raises(ConfigError, match="is the source itself"):
        import_weights(ImportWeightsConfig(source=str(source), as_="otis_base", out=f"{tmp_path}/./otis.pth"))
    assert source.read_bytes()[:2] == b"PK"


def test_as_is_typed_without_its_underscore() -> None:
    """`as` is a word of Python's, not a field's name; the user types as=."""
    config = load(ImportWeightsConfig, "import_weights", ["source=S", "as=otis_huge", "out=O", "seconds=10"])
    assert (config.source, config.as_, config.out, config.seconds) == ("S", "otis_huge", "O", 10.0)
    for arguments, part in (
        (["source=S", "out=O"], "as= must be given"),
        (["source=S", "out=O", "as=otis"], "as=otis. Use one of: otis_base"),
        (["source=S", "out=O", "as=stence", "seconds=0"], "seconds=0"),
        (["source=S", "out=O", "ass=stence"], "Did you mean as="),
    ):
        with pytest.raises(ConfigError) as caught:
            load(ImportWeightsConfig, "import_weights", arguments)
        assert part in str(caught.value)


def test_the_script_ends_with_the_right_code(tmp_path: Path) -> None:
    """0 with a file for a checkpoint of the published size, 2 with one line for a layout that is not known."""
    script = [sys.executable, str(CONFIG_FOLDER.parent / "launch" / "import_weights.py")]
    source = otis_file(tmp_path / "otis_base.pth", filled(encoder_shapes(OTIS_SIZES["otis_base"])))
    arguments = [f"source={source}", "as=otis_base", f"out={tmp_path / 'weights.safetensors'}"]
    done = subprocess.run([*script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "imported 201 tensors" in done.stderr
    assert load_ecg_tower(tmp_path / "weights.safetensors").width == 192
    refused = subprocess.run([*script, "source=S", "as=moment", "out=O"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: as=moment. Use one of: otis_base")
    assert "Traceback" not in refused.stderr
