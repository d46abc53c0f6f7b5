"""Published checkpoints as ECG towers, and back: `otis_*.pth` of OTiS, `ecg_last.pt` and `knn_best_*.pt` of StenCE.

The layouts are those of their public code. OTiS (github.com/oetu/otis) writes {"model": state dict, "domain_offsets":
{"ecg": row, ...}, ...}: encoder, decoder and heads by their own names. StenCE writes {"ecg_model": state dict,
"angio_model": state dict}: the encoder below `model.`, its projector below `projector.`.

Names and shapes are compared whole and never stripped or guessed, also those of the tables of positions: a table that
lost a row still runs, and gives every later position the place of its neighbor. Nothing is unpickled but tensors, plain
containers, numbers, texts, and the Namespace of arguments, with a path where OTiS was started by its Slurm launcher.
"""

import argparse
import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import Any

import torch
from torch import Tensor

from stence_dist.config.ecg_encoder import OTIS_LEADS, OTIS_SIZES, OtisConfig
from stence_dist.config.import_weights import ImportWeightsConfig
from stence_dist.ecg import EcgSpec
from stence_dist.errors import ConfigError, DataError
from stence_dist.files import replacing
from stence_dist.models.ecg.otis import fit_positions
from stence_dist.models.ecg_tower import EcgTower, build_ecg_tower, save_ecg_tower

logger = logging.getLogger("stence_dist")

# What OTiS's checkpoints hold beside the encoder: whole names, and what names begin with.
_DROPPED_NAMES = ("mask_token", "decoder_pos_embed_x")
_DROPPED_PREFIXES = (
    "decoder_embed.",
    "decoder_pos_embed_y.",
    "decoder_blocks.",
    "decoder_norm.",
    "decoder_pred.",
    "projector.",
    "predictor.",
)
_PROJECTOR_LAYERS = {"norm": "0", "hidden": "1", "output": "3"}  # ours -> place in StenCE's nn.Sequential
_TABLE, _ROW_TABLE = "encoder.network.pos_embed_x", "encoder.network.pos_embed_y.weight"
# Of the published weights, where a file does not say.
_ECG_OFFSET = 4
_POSITIONS, _ROWS = OtisConfig.positions, OtisConfig.domain_rows
_STENCE_SECONDS = 3.0  # of StenCE's published settings
_MOST = 10**6  # whatever a file states beyond this is no size of a table
# Its module's name changed with Python 3.13, and the file has that of the writer's.
_POSIX_PATH = [(PosixPath, f"pathlib{module}.PosixPath") for module in ("", "._local")]
_EXACT_IN_FLOAT32 = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Checkpoint:
    """What a published file holds of an ECG tower, still under the file's own names."""

    path: Path | str
    sizes: tuple[int, int, int]  # width, depth, heads
    tensors: Mapping[str, Tensor]
    file_name: Callable[[str], str]  # from a name in `EcgTower.state_dict()`
    ecg_offset: int
    dropped: tuple[str, ...]
    positions: tuple[int, ...] = (_POSITIONS,)  # how many time positions such a file may hold
    domain_rows: tuple[int, ...] = (_ROWS,)  # how many rows its table of channels may have


def import_weights(config: ImportWeightsConfig) -> None:
    """Write config.out, an ECG tower's file, and say what was taken and what was not.

    Raises DataError where the source cannot be used, ConfigError where it would be overwritten.
    """
    if Path(config.out).resolve() == Path(config.source).resolve():
        raise ConfigError(f"out={config.out} is the source itself. Choose another file.")
    checkpoint = _read(config.source, config.as_, config.seconds)
    tower = _tower(checkpoint, config.seconds)
    save_ecg_tower(config.out, tower)
    for line in describe(checkpoint, tower):
        logger.info("%s", line)
    logger.info("%s", config.out)


def import_otis(path: Path | str, kind: str, seconds: float = 3.0) -> EcgTower:
    """The encoder of a published OTiS checkpoint for windows of `seconds`, without projector, in eval mode.

    kind: otis_base, otis_large or otis_huge. Raises DataError where the file is missing, damaged, of another layout, or
    not exactly that encoder and what is known to stand beside it; one message lists every name.
    """
    return _tower(_read(path, kind, seconds), seconds)


def import_stence(path: Path | str, seconds: float = 3.0) -> EcgTower:
    """The ECG tower of a StenCE checkpoint whose encoder is OTiS's, with its projector where the file has one.

    Raises DataError as `import_otis`.
    """
    return _tower(_read(path, "stence", seconds), seconds)


def export_weights(tower: EcgTower, path: Path | str) -> None:
    """Write the tower in StenCE's layout, whole or not at all; `import_stence` of its seconds makes it again.

    The layout holds tensors only. Raises DataError for another encoder than OTiS's, which StenCE has not, and for
    settings that the file's readers would replace by the published ones. Windows and drop-path, which are no part of
    what the encoder is, are left out. Positions are stored as the tower's windows need them: stretched.
    """
    config = tower.config
    if not isinstance(config, OtisConfig):
        raise DataError(f"StenCE's layout has no place for the encoder {config.name}. Export an OTiS tower.")
    times = max(config.positions, tower.spec.samples // config.patch)
    replaced = _replaced_by_readers(config)
    if replaced:
        raise DataError(
            f"StenCE's layout has no place for ecg_encoder.{', '.join(replaced)}: the features would be others. "
            "Give the tower's own file instead, which says all of it."
        )
    state = {stence_name(name): value.detach().cpu().clone() for name, value in tower.state_dict().items()}
    state[stence_name(_TABLE)] = fit_positions(state[stence_name(_TABLE)], times)
    with replacing(path) as temporary, open(temporary, "wb") as file:  # given a path, torch would store its name
        torch.save({"ecg_model": state}, file)


def _replaced_by_readers(config: OtisConfig) -> list[str]:
    """What a reader of StenCE's layout takes for granted, no shape shows, and `config` has otherwise."""
    heads = {(width, depth): heads for width, depth, heads in OTIS_SIZES.values()}
    read = {"ecg_offset": _ECG_OFFSET, "heads": heads.get((config.width, config.depth), config.heads)}
    return [
        f"{name}={getattr(config, name)} ({value} there)"
        for name, value in read.items()
        if getattr(config, name) != value
    ]


def otis_name(name: str) -> str:
    """A name in an OTiS tower -> in OTiS's file: `encoder.network.norm.bias` -> `norm.bias`."""
    return name.removeprefix("encoder.network.")


def stence_name(name: str) -> str:
    """A name in an OTiS tower -> in StenCE's file: `encoder.network.norm.bias` -> `model.norm.bias`."""
    part, layer, rest = name.split(".", 2)
    return f"model.{rest}" if part == "encoder" else f"projector.{_PROJECTOR_LAYERS[layer]}.{rest}"


def describe(checkpoint: Checkpoint, tower: EcgTower) -> list[str]:
    """What was imported and what was dropped, a line each."""
    config, spec = tower.config, tower.spec
    assert isinstance(config, OtisConfig)
    stored = checkpoint.tensors[checkpoint.file_name(_TABLE)].shape[1] - 1
    needed = spec.samples // config.patch
    fitted = f"stretched to {needed}" if needed > stored else f"the first {needed} are used"
    groups: dict[str, int] = {}
    for name in checkpoint.dropped:
        group = name.partition(".")[0]
        groups[group] = groups.get(group, 0) + 1
    dropped = ", ".join(f"{group} ({count})" for group, count in sorted(groups.items()))
    return [
        f"imported {len(tower.state_dict())} tensors: width {config.width}, {config.depth} blocks, "
        f"{config.heads} heads, {config.mlp}, "
        + (f"a projector to {tower.embedding}" if tower.embedding else "no projector"),
        f"leads: rows {config.ecg_offset + 1} to {config.ecg_offset + OTIS_LEADS} of {config.domain_rows}; "
        f"time positions: {stored} in the file, {fitted}",
        f"dropped: {dropped or 'nothing'}",
        f"expects {' '.join(spec.leads)}, {spec.seconds:g} s at {spec.sampling_rate:g} Hz, cleaning {spec.cleaning}, "
        f"normalization {spec.normalize}",
    ]


# ---- reading a file


def _read(path: Path | str, kind: str, seconds: float) -> Checkpoint:
    loaded = _load(path)
    return _stence(path, loaded, seconds) if kind == "stence" else _otis(path, loaded, kind)


def _load(path: Path | str) -> dict[str, Any]:
    """The file's top level. Its tensors stay on disk until they are read, so an optimizer costs nothing."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *_POSIX_PATH]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. Give a checkpoint file.") from None
    except Exception as error:  # torch raises whatever a damaged or foreign file makes of its parser
        raise DataError(
            f"{path} is not a torch checkpoint of tensors, plain values, paths and argparse.Namespace "
            f"({type(error).__name__}); nothing else in it is run. Give the published file as it was downloaded."
        ) from None
    if not isinstance(loaded, dict):
        raise DataError(f"{path} holds a {type(loaded).__name__}, expected a dict. Give the published file.")
    return loaded


def _otis(path: Path | str, loaded: dict[str, Any], kind: str) -> Checkpoint:
    if "model" not in loaded:
        advice = "That is StenCE's layout: use as=stence." if "ecg_model" in loaded else "Give the published file."
        raise DataError(f"{path} has no entry model (found: {_listed(loaded)}). {advice}")
    tensors = _state_dict(path, loaded["model"], "model")
    dropped = tuple(name for name in tensors if name in _DROPPED_NAMES or name.startswith(_DROPPED_PREFIXES))
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    return Checkpoint(
        path,
        OTIS_SIZES[kind],
        kept,
        otis_name,
        _ecg_offset(path, loaded),
        dropped,
        positions=(_POSITIONS, _stated_positions(loaded)),
        domain_rows=(_ROWS, _stated_rows(loaded)),
    )


def _stence(path: Path | str, loaded: dict[str, Any], seconds: float) -> Checkpoint:
    if "ecg_model" not in loaded:
        advice = f"That is OTiS's layout: use as={next(iter(OTIS_SIZES))}." if "model" in loaded else ""
        raise DataError(f"{path} has no entry ecg_model (found: {_listed(loaded)}). {advice}".rstrip())
    tensors = _state_dict(path, loaded["ecg_model"], "ecg_model")
    images = loaded.get("angio_model")
    dropped = tuple(f"angio_model.{name}" for name in images) if isinstance(images, Mapping) else ()
    # StenCE hard-codes the offset, and its file does not say which size the encoder has; the width does.
    shape = tensors["model.cls_token"].shape if "model.cls_token" in tensors else ()
    sizes = next((sizes for sizes in OTIS_SIZES.values() if sizes[0] in shape[2:]), OTIS_SIZES["otis_base"])
    return Checkpoint(
        path,
        sizes,
        tensors,
        stence_name,
        _ECG_OFFSET,
        dropped,
        positions=_stence_positions(seconds),
    )


def _stence_positions(seconds: float) -> tuple[int, ...]:
    """How many time positions StenCE has stored: for its own window of 3 s, or for one of `seconds`.

    It starts from OTiS's table, which longer windows have stretched and shorter ones have left as it was.
    """
    return tuple(
        max(_POSITIONS, EcgSpec(seconds=window).samples // OtisConfig.patch) for window in (seconds, _STENCE_SECONDS)
    )


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(repr, names))) or "nothing"


def _state_dict(path: Path | str, value: Any, entry: str) -> dict[str, Tensor]:
    """The tensors of one entry by name. Raises DataError for anything else in it."""
    if not isinstance(value, Mapping):
        raise DataError(f"{path}: the entry {entry} is a {type(value).__name__}, expected a state dict.")
    foreign = [name for name, held in value.items() if not isinstance(name, str) or not _plain(held)]
    if foreign:
        raise DataError(f"{path}: the entry {entry} holds other things than dense tensors: {_listed(foreign)}.")
    return dict(value)


def _plain(held: object) -> bool:
    """True for a dense tensor whose values are in the file."""
    return (
        isinstance(held, Tensor) and held.layout is torch.strided and not held.is_nested and held.device.type == "cpu"
    )


def _ecg_offset(path: Path | str, loaded: dict[str, Any]) -> int:
    """Rows of other domains before the ECG's. Raises DataError where the file knows other domains only."""
    if "domain_offsets" not in loaded:
        return _ECG_OFFSET
    offsets = loaded["domain_offsets"]
    offset = offsets.get("ecg") if isinstance(offsets, dict) else None
    if type(offset) is not int or not 0 <= offset < _MOST:
        raise DataError(f"{path}: domain_offsets has no row for ecg. Give a checkpoint that was trained on ECGs.")
    return offset


def _stated_positions(loaded: dict[str, Any]) -> int:
    """Time positions that OTiS has made for the samples in its arguments; the published ones where it says nothing."""
    steps = getattr(loaded.get("args"), "time_steps", None)
    if not isinstance(steps, int) or not OtisConfig.patch <= steps < _MOST:
        return _POSITIONS
    return steps // OtisConfig.patch


def _stated_rows(loaded: dict[str, Any]) -> int:
    """Padding and one row per channel of OTiS's domains, {name: (1, channels, samples)}; else the published rows."""
    domains = loaded.get("domains")
    shapes = list(domains.values()) if isinstance(domains, dict) else []
    channels = [shape[-2] for shape in shapes if isinstance(shape, tuple) and len(shape) > 1]
    stated = bool(shapes) and len(channels) == len(shapes) and all(type(count) is int for count in channels)
    return 1 + sum(channels) if stated and 0 < sum(channels) < _MOST else _ROWS


# ---- from a file's tensors to a tower


def _tower(checkpoint: Checkpoint, seconds: float) -> EcgTower:
    """Raises DataError with every name that is missing, unknown, of another shape or type, or not finite."""
    config, embedding = _configuration(checkpoint, seconds)
    with torch.device("meta"):  # names and shapes only
        expected = build_ecg_tower(config, embedding, seed=0).state_dict()
    _check(checkpoint, {checkpoint.file_name(name): tensor.shape for name, tensor in expected.items()})
    state = {name: checkpoint.tensors[checkpoint.file_name(name)].detach().float() for name in expected}
    needed = EcgSpec(seconds=seconds).samples // config.patch
    if needed > config.positions:  # as published: the stretched table is what is trained further
        config = dataclasses.replace(config, positions=needed)
        state[_TABLE] = fit_positions(state[_TABLE], needed)
    tower = build_ecg_tower(config, embedding, seed=0)
    tower.load_state_dict(state)
    return tower.eval()


def _configuration(checkpoint: Checkpoint, seconds: float) -> tuple[OtisConfig, int | None]:
    """The encoder's config and the projector's width: published, or what the file says beside its tensors.

    From tensors alone come the form of the MLPs, and which of the possible sizes its tables have. Where they say what
    cannot be, the stated size stands, so that the comparison of shapes tells.
    """

    def size(name: str, dimensions: int, axis: int, published: int) -> int:
        tensor = checkpoint.tensors.get(checkpoint.file_name(name))
        return published if tensor is None or tensor.ndim != dimensions else tensor.shape[axis]

    width, depth, heads = checkpoint.sizes
    swiglu = any(".mlp.fc1_g." in name for name in checkpoint.tensors)
    positions, rows = size(_TABLE, 3, 1, 0) - 1, size(_ROW_TABLE, 2, 0, 0)
    config = OtisConfig(
        seconds=seconds,
        width=width,
        depth=depth,
        heads=heads,
        mlp="swiglu" if swiglu else "gelu",
        # OTiS's code leaves the hidden width of this form to a setting.
        mlp_hidden=size("encoder.network.blocks.0.mlp.fc2.weight", 2, 1, 0) if swiglu else 0,
        positions=positions if positions in checkpoint.positions else checkpoint.positions[-1],
        domain_rows=max(
            checkpoint.ecg_offset + OTIS_LEADS + 1,
            rows if rows in checkpoint.domain_rows else checkpoint.domain_rows[-1],
        ),
        ecg_offset=checkpoint.ecg_offset,
    )
    projected = any(name.startswith("projector.") for name in checkpoint.tensors)  # OTiS's own is dropped by now
    return config, size("projector.output.weight", 2, 0, 256) if projected else None


def _check(checkpoint: Checkpoint, expected: Mapping[str, torch.Size]) -> None:
    tensors = checkpoint.tensors
    wrong = [f"missing {name}" for name in expected if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            wrong.append(f"unknown {name}")
        elif tensor.shape != expected[name]:
            wrong.append(f"{name} has the shape {tuple(tensor.shape)}, expected {tuple(expected[name])}")
        elif tensor.dtype not in _EXACT_IN_FLOAT32:
            wrong.append(f"{name} is {tensor.dtype}, expected torch.float32")
        elif tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            wrong.append(f"{name} is not stored whole")
        elif not torch.isfinite(tensor).all():
            wrong.append(f"{name} has values that are not finite")
    if wrong:
        width, depth, heads = checkpoint.sizes
        raise DataError(
            f"{checkpoint.path} is not the published encoder of width {width}, {depth} blocks and {heads} heads: "
            f"{'; '.join(wrong)}. Check what as= and seconds= say, or give the published file."
        )
