"""ECG encoders: what they share, and the visible table of them."""

import dataclasses
import importlib
import math
from typing import Any

from torch import Tensor, nn

from stence_dist.config.ecg_encoder import EcgEncoderConfig, OtisConfig, ResNetConfig
from stence_dist.ecg import EcgSpec
from stence_dist.errors import DataError, SpecMismatchError


class EcgEncoder(nn.Module):
    """A network over prepared ECGs.

    `forward(ecg (B, L, T), keep_path (B, K) | None = None, return_tokens=False)` gives features (B, width), or tokens
    (B, N, D'): one method, because ZeRO-3 fills parameters only inside forward.
    """

    spec: EcgSpec  # what it expects of a signal
    width: int  # of its features
    blocks: int  # K residual branches that drop-path may skip
    drop_rates: tuple[float, ...]  # (K,), how often it skips each
    fixed_with_labels: tuple[str, ...] = ()  # parameters that training on labels leaves alone

    def check_shape(self, ecg: Tensor) -> None:
        """Raise SpecMismatchError where a batch (B, L, T) has not the leads and samples of `spec`."""
        if ecg.shape[1:] != (len(self.spec.leads), self.spec.samples):
            raise SpecMismatchError(
                f"An ECG batch has the shape {tuple(ecg.shape)}, the encoder expects (B, {len(self.spec.leads)}, "
                f"{self.spec.samples}): {self.spec.seconds:g} s at {self.spec.sampling_rate:g} Hz. Prepare it with "
                "prepare_ecg and the encoder's own spec."
            )


# config class -> (module, class). A new encoder is a dataclass, a class that takes it, a row here and a YAML.
ENCODERS: dict[type[EcgEncoderConfig], tuple[str, str]] = {
    OtisConfig: ("stence_dist.models.ecg.otis", "Otis"),
    ResNetConfig: ("stence_dist.models.ecg.resnet", "ResNet"),
}


def build_ecg_encoder(config: EcgEncoderConfig) -> EcgEncoder:
    """The encoder that `config` describes, with fresh weights. Raises ConfigError for values that cannot work."""
    module, name = ENCODERS[type(config)]
    encoder: EcgEncoder = getattr(importlib.import_module(module), name)(config)
    return encoder


def encoder_config(values: Any) -> EcgEncoderConfig:
    """The config dataclass that `dataclasses.asdict` made `values` of; the inverse for JSON.

    Raises DataError for an encoder that is not in the table, and for unknown, missing or mistyped keys.
    """
    known = {str(kind.name): kind for kind in ENCODERS}
    if not isinstance(values, dict) or values.get("name") not in known:
        found = values.get("name") if isinstance(values, dict) else values
        raise DataError(f"The ECG encoder {found!r} is not known. This version has: {', '.join(sorted(known))}.")
    default = known[values["name"]]()
    expected = dataclasses.asdict(default)
    if set(values) != set(expected):
        raise DataError(
            f"The ECG encoder's config has the keys {sorted(values)}, expected {sorted(expected)}. "
            "It was written by another version of stence_dist."
        )
    for field, value in values.items():
        if not _alike(value, expected[field]):
            raise DataError(f"The ECG encoder's config has {field}={value!r}, expected one like {expected[field]!r}.")
    return type(default)(**values)


def _alike(value: Any, example: Any) -> bool:
    """True where a JSON value has the type of `example`; an integer may stand for a float."""
    if isinstance(example, list):
        return isinstance(value, list) and all(_alike(item, example[0]) for item in value)
    if isinstance(example, float):
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(example)
