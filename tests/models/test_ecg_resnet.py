import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stence_dist.config.ecg_encoder import ResNetConfig
from stence_dist.errors import ConfigError, DataError, SpecMismatchError
from stence_dist.models.ecg import ENCODERS, build_ecg_encoder, encoder_config


def _reference(weights: dict[str, Tensor], ecg: Tensor, stages: int, kernel: int) -> Tensor:
    """The network in 1-D convolutions, written out from its description."""

    def convolve(name: str, values: Tensor, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"].squeeze(2)
        return functional.conv1d(values, weight, weights[f"{name}.bias"], stride, weight.shape[2] // 2)

    def activate(name: str, values: Tensor) -> Tensor:
        # GroupNorm with 8 groups by hand; all widths here are multiples of 8.
        grouped = values.reshape(len(values), 8, -1)
        variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
        normed = ((grouped - mean) / (variance + 1e-5).sqrt()).reshape(values.shape)
        scaled = normed * weights[f"{name}.weight"][:, None] + weights[f"{name}.bias"][:, None]
        return scaled / (1 + (-scaled).exp())  # SiLU

    values = convolve("stem", ecg.reshape(*ecg.shape[:2], -1, 4).mean(dim=3))
    for stage in range(stages):
        stride, prefix = (1, 2)[stage > 0], f"stages.{stage}"
        active = activate(f"{prefix}.norm1", values)
        shortcut = values if stage == 0 else convolve(f"{prefix}.shortcut", active, stride)
        branch = convolve(f"{prefix}.conv2", activate(f"{prefix}.norm2", convolve(f"{prefix}.conv1", active, stride)))
        values = shortcut + branch
    return activate("norm", values)


def test_resnet_equals_its_description_in_one_dimension() -> None:
    """Tokens and features against 1-D convolutions and a hand-written GroupNorm, in float64."""
    config = ResNetConfig(seconds=0.5, widths=[8, 16, 24], kernel=5)
    encoder = build_ecg_encoder(config).double()
    ecg = torch.randn(3, 12, 248 + 2, dtype=torch.float64)
    expected = _reference(dict(encoder.named_parameters()), ecg[:, :, :248], 3, 5)
    tokens = encoder(ecg, return_tokens=True)
    torch.testing.assert_close(tokens, expected.transpose(1, 2), rtol=1e-10, atol=1e-10)
    soft_maximum = (4 * expected).exp().mean(2).log() / 4
    torch.testing.assert_close(encoder(ecg), torch.cat([expected.mean(2), soft_maximum], 1), rtol=1e-10, atol=1e-10)
    assert encoder.width == 48
    assert encoder.blocks == 3


def test_default_resnet_takes_three_seconds_at_500_hz() -> None:
    """The frozen phantom settings: 12 x 1500 samples in, 128 features out."""
    encoder = build_ecg_encoder(ResNetConfig(windows=3))
    assert encoder(torch.randn(2, 12, 1500)).shape == (2, 128)
    assert (encoder.spec.samples, encoder.spec.windows, encoder.spec.sampling_rate) == (1500, 3, 500.0)


@pytest.mark.parametrize("keep, factor", [(False, 0.0), (True, 1 / 0.75)])
def test_drop_path_scales_branches(keep: bool, factor: float) -> None:
    """A mask row equals the same network with the last convolution of every branch scaled by 0 or 1/(1-p)."""
    encoder = build_ecg_encoder(ResNetConfig(seconds=0.5, widths=[8, 16], kernel=5, drop_path=0.25)).double()
    ecg = torch.randn(3, 12, 250, dtype=torch.float64)
    mask = torch.full((3, 2), keep)
    masked = encoder(ecg, mask)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if ".conv2." in name:
                parameter *= factor
    torch.testing.assert_close(masked, encoder(ecg), rtol=1e-10, atol=1e-10)


def test_drop_path_is_per_sample() -> None:
    """Dropping one sample's branch leaves the other samples' features as they were."""
    encoder = build_ecg_encoder(ResNetConfig(seconds=0.5, widths=[8, 16], kernel=5, drop_path=0.5))
    ecg = torch.randn(2, 12, 250)
    kept, mixed = encoder(ecg, torch.ones(2, 2).bool()), encoder(ecg, torch.tensor([[True, True], [True, False]]))
    torch.testing.assert_close(mixed[0], kept[0])
    assert (mixed[1] - kept[1]).abs().max() > 1e-3


def test_another_length_is_refused() -> None:
    """A batch that was not cropped to the spec raises and names both shapes."""
    encoder = build_ecg_encoder(ResNetConfig(seconds=0.5))
    with pytest.raises(SpecMismatchError, match=r"12, 500.*12, 250"):
        encoder(torch.zeros(1, 12, 500))


@pytest.mark.parametrize("wrong", [{"kernel": 4}, {"widths": []}, {"drop_path": 1.0}, {"seconds": 0.0}])
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    """Each setting that cannot be built raises ConfigError naming its key."""
    with pytest.raises(ConfigError, match=f"ecg_encoder.{next(iter(wrong))}"):
        build_ecg_encoder(ResNetConfig(**wrong))


def test_every_encoder_of_the_table_is_found_by_name() -> None:
    """Config -> JSON values -> config is the identity for each row of the table."""
    import dataclasses

    for kind in ENCODERS:
        config = kind(seconds=2.5)
        assert encoder_config(dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "resnet1"}, "not known"),
        ({"name": None}, "not known"),
        ({"depth": 3}, "keys"),
        ({"widths": [24, "32"]}, "widths"),
        ({"kernel": 7.0}, "kernel"),
        ({"kernel": True}, "kernel"),
        ({"seconds": float("inf")}, "seconds"),
    ],
)
def test_foreign_configs_are_refused(change: dict[str, object], message: str) -> None:
    """Unknown names, unknown keys and other types raise DataError."""
    import dataclasses

    with pytest.raises(DataError, match=message):
        encoder_config({**dataclasses.asdict(ResNetConfig()), **change})
