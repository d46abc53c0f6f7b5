"""The ECG tower, encoder and projector, and the file that it travels in.

The file is a safetensors of float32 tensors `encoder.*` and `projector.*`; its metadata key `stence_dist` holds JSON
{format, encoder, spec, embedding}: what a reader needs to build the same network and to prepare its input.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stence_dist.config.ecg_encoder import EcgEncoderConfig
from stence_dist.ecg import EcgSpec
from stence_dist.errors import ConfigError, DataError, SpecMismatchError
from stence_dist.files import replacing
from stence_dist.models import initial_weights
from stence_dist.models.ecg import EcgEncoder, build_ecg_encoder, encoder_config
from stence_dist.models.projector import Projector

FORMAT = 1
METADATA_KEY = "stence_dist"


class EcgTower(nn.Module):
    """An ECG encoder and, where it was pretrained, the projector to the joint space."""

    def __init__(self, config: EcgEncoderConfig, encoder: EcgEncoder, projector: Projector | None) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.projector = projector
        self.pretraining: dict[str, Any] = {}  # what its file says that it was trained on

    @property
    def spec(self) -> EcgSpec:
        """What the encoder expects of a signal."""
        return self.encoder.spec

    @property
    def width(self) -> int:
        """D: width of the features."""
        return self.encoder.width

    @property
    def embedding(self) -> int | None:
        """E: width of the projector's output, None without a projector."""
        return None if self.projector is None else self.projector.output.out_features

    def forward(self, ecg: Tensor, keep_path: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Features (B, D) and the projector's output (B, E) before normalization, None without a projector.

        ecg (B, L, T) prepared as `spec` says; keep_path (B, K) as in `EcgEncoder`.
        """
        features = self.encoder(ecg, keep_path)
        return features, None if self.projector is None else self.projector(features)


def embed_windows(tower: EcgTower, ecg: Tensor) -> tuple[Tensor, Tensor | None]:
    """Features (B, D) and projected (B, E) | None, each averaged over the windows of ecg (B, windows, L, T)."""
    count, windows = ecg.shape[:2]
    features, projected = tower(ecg.flatten(0, 1))
    features = features.unflatten(0, (count, windows)).mean(dim=1)
    return features, None if projected is None else projected.unflatten(0, (count, windows)).mean(dim=1)


def build_ecg_tower(config: EcgEncoderConfig, embedding: int | None, seed: int) -> EcgTower:
    """A tower whose weights depend on (config, embedding, seed) alone. embedding=None: no projector."""
    with initial_weights(seed, "ecg_encoder"):
        encoder = build_ecg_encoder(config)
    with initial_weights(seed, "ecg_projector"):
        projector = None if embedding is None else Projector(encoder.width, embedding)
    return EcgTower(config, encoder, projector)


def save_ecg_tower(
    path: Path | str,
    tower: EcgTower,
    *,
    state: Mapping[str, Tensor] | None = None,
    pretraining: Mapping[str, Any] | None = None,
) -> None:
    """Write the tower to `path`, whole or not at all.

    `state` holds the tensors where the tower's own are sharded; `pretraining` says what it was trained on.
    """
    state = tower.state_dict() if state is None else state
    names = set(tower.state_dict())
    assert set(state) == names, f"not the tower's tensors: {sorted(set(state) ^ names)}"
    tensors = {name: state[name].detach().to("cpu", torch.float32).contiguous() for name in sorted(names)}
    description = {
        "format": FORMAT,
        "encoder": dataclasses.asdict(tower.config),
        "spec": tower.spec.to_dict(),
        "embedding": tower.embedding,
    } | ({"pretraining": dict(pretraining)} if pretraining else {})
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(description, sort_keys=True)})


def load_ecg_tower(path: Path | str) -> EcgTower:
    """The tower in a file that `save_ecg_tower` wrote, on the CPU, in eval mode.

    Raises DataError where the file is missing, no safetensors, of another format version, of an encoder that this
    version does not have, or where its tensors are not exactly the tower's; SpecMismatchError where the stored spec
    is not the encoder's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            description = _description(path, file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. Give the ecg_tower.safetensors of a finished run.") from None
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path} is not a whole safetensors file ({error}). Give the ecg_tower.safetensors of a finished run."
        ) from None
    try:
        config = encoder_config(description["encoder"])
        tower = build_ecg_tower(config, description["embedding"], seed=0)
    except (ConfigError, DataError) as error:
        raise DataError(f"{path}: {error}") from None
    if EcgSpec.from_dict(description["spec"]) != tower.spec:
        raise SpecMismatchError(
            f"{path} was trained on {description['spec']}, the encoder here expects {tower.spec.to_dict()}. "
            "Use the version of stence_dist that wrote the file."
        )
    _check_tensors(path, tensors, tower.state_dict())
    tower.load_state_dict(tensors)
    tower.pretraining = description.get("pretraining", {})
    return tower.eval()


def _description(path: Path | str, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """The parsed metadata of a tower's file. Raises DataError where it is not ours, or of another format."""
    if not metadata or METADATA_KEY not in metadata:
        raise DataError(
            f"{path} has no metadata key {METADATA_KEY!r}: it is not an ECG tower of this system. "
            "Give the ecg_tower.safetensors of a finished run."
        )
    try:
        parsed = json.loads(metadata[METADATA_KEY])
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: the metadata is not valid JSON ({error}). Write the file again.") from None
    description: dict[str, Any] = parsed if isinstance(parsed, dict) else {}
    found = description.get("format")
    if found != FORMAT:
        raise DataError(
            f"{path} has format {found!r}, this version reads {FORMAT}. Use the version of stence_dist that wrote it."
        )
    wanted = {"format", "encoder", "spec", "embedding"}
    embedding = description.get("embedding")
    parts = (description.get("spec"), description.get("pretraining", {}))
    if set(description) - {"pretraining"} != wanted or not all(isinstance(part, dict) for part in parts):
        raise DataError(f"{path}: the metadata has the keys {sorted(description)}, expected {sorted(wanted)}.")
    if embedding is not None and (type(embedding) is not int or embedding < 1):
        raise DataError(f"{path}: the metadata has embedding={embedding!r}, expected a width or null.")
    return description


def _check_tensors(path: Path | str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise DataError that lists every missing, unknown, reshaped or retyped tensor."""
    wrong = [f"missing {name}" for name in expected if name not in found]
    for name, tensor in found.items():
        if name not in expected:
            wrong.append(f"unknown {name}")
        elif tensor.shape != expected[name].shape:
            wrong.append(f"{name} has the shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
        elif tensor.dtype != torch.float32:
            wrong.append(f"{name} is {tensor.dtype}, expected torch.float32")
    if wrong:
        raise DataError(f"{path} does not fit its own encoder config: {'; '.join(wrong)}. Export the tower again.")
