"""The OTiS encoder against its description in float64, and what memory, ranks and drop-path ask of it."""

import dataclasses
import math

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional

from stence_dist.config.compose import CONFIG_FOLDER
from stence_dist.config.ecg_encoder import OTIS_SIZES, OtisConfig
from stence_dist.errors import ConfigError, SpecMismatchError
from stence_dist.models.ecg import build_ecg_encoder
from stence_dist.models.ecg.otis import Otis, fit_positions, position_code
from stence_dist.models.ecg_tower import build_ecg_tower

# 0.5 s at 500 Hz are five patches of 48 and ten samples that nobody sees; the three stored positions are stretched.
SMALL = OtisConfig(seconds=0.5, width=64, depth=4, heads=2, patch=48, positions=3, drop_path=0.3)
BASE = OtisConfig(seconds=0.5)


def shaken(config: OtisConfig, seed: int = 0) -> Otis:
    """An encoder whose every weight matters: at the start attention hardly contributes and biases are zero."""
    encoder = build_ecg_encoder(config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if ".norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(noise / (parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 4))
    return encoder


def interpolated(rows: Tensor, count: int) -> Tensor:
    """(count, F) from (stored, F): the middle of cell k of `count` lies at (k + 1/2) stored / count - 1/2."""
    stored = len(rows)
    new = []
    for k in range(count):
        place = min(max((k + 0.5) * stored / count - 0.5, 0.0), stored - 1.0)
        low = min(int(place), stored - 2)
        new.append((1 - (place - low)) * rows[low] + (place - low) * rows[low + 1])
    return torch.stack(new)


def described(config: OtisConfig, weights: dict[str, Tensor], ecg: Tensor, scale: Tensor | None = None) -> Tensor:
    """All tokens (B, 1 + L T', D) as the encoder's description says; torch's own attention with its matrix of weights.

    scale (B, 2 depth) multiplies the branches.
    """

    def norm(name: str, values: Tensor, epsilon: float) -> Tensor:
        centered = values - values.mean(-1, keepdim=True)
        deviation = (centered.square().mean(-1, keepdim=True) + epsilon).sqrt()
        return centered / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(name: str, values: Tensor) -> Tensor:
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def gelu(values: Tensor) -> Tensor:
        return values / 2 * (1 + torch.erf(values / math.sqrt(2)))

    width, half = config.width, config.width // 2
    times = ecg.shape[2] // config.patch
    kernel = weights["patch_embed.proj.weight"].reshape(width, config.patch)
    table = weights["pos_embed_x"][0]
    rows = table[1 : times + 1] if times < len(table) else interpolated(table[1:], times)
    tokens = [(weights["cls_token"][0, 0] + torch.cat([torch.zeros(half), table[0]])).expand(len(ecg), width)]
    for lead in range(12):
        for time in range(times):
            patch = ecg[:, lead, time * config.patch : (time + 1) * config.patch]
            token = gelu(norm("patch_embed.norm", patch @ kernel.T + weights["patch_embed.proj.bias"], 1e-5))
            code = [weights["pos_embed_y.weight"][lead + 1 + config.ecg_offset], rows[time]]
            tokens.append(token + torch.cat(code))
    values = torch.stack(tokens, dim=1)
    scale = torch.ones(len(ecg), 2 * config.depth) if scale is None else scale
    for number in range(config.depth):
        block = f"blocks.{number}"
        parts = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", values, 1e-6)).chunk(3, dim=2)
        mixed, _ = functional.multi_head_attention_forward(
            *(part.transpose(0, 1) for part in parts),
            width,
            config.heads,
            weights[f"{block}.attn.mha.in_proj_weight"],
            weights[f"{block}.attn.mha.in_proj_bias"],
            None,
            None,
            False,
            0.0,
            weights[f"{block}.attn.mha.out_proj.weight"],
            weights[f"{block}.attn.mha.out_proj.bias"],
            need_weights=True,
        )
        values = values + scale[:, 2 * number, None, None] * linear(f"{block}.attn.proj", mixed.transpose(0, 1))
        normed = norm(f"{block}.norm2", values, 1e-6)
        if config.mlp == "swiglu":
            gate = linear(f"{block}.mlp.fc1_g", normed)
            inner = gate / (1 + (-gate).exp()) * linear(f"{block}.mlp.fc1_x", normed)
        else:
            inner = gelu(linear(f"{block}.mlp.fc1", normed))
        values = values + scale[:, 2 * number + 1, None, None] * linear(f"{block}.mlp.fc2", inner)
    return norm("norm", values, 1e-6)


def apart(ours: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of the reference."""
    return float((ours.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize(
    ("config", "double", "limit"),
    [
        (SMALL, True, 1e-11),
        (dataclasses.replace(SMALL, mlp="swiglu", mlp_hidden=40), True, 1e-11),
        (dataclasses.replace(SMALL, positions=9, ecg_offset=0, domain_rows=13), True, 1e-11),
        (SMALL, False, 1e-5),
        (BASE, False, 1e-5),
    ],
    ids=["small", "swiglu", "table", "float32", "base"],
)
def test_otis_equals_its_description(config: OtisConfig, double: bool, limit: float) -> None:
    """Features and the gradient of every weight against `described` in float64."""
    encoder = shaken(config)
    weights = {name: value.detach().double().requires_grad_() for name, value in encoder.network.named_parameters()}
    encoder = encoder.double() if double else encoder
    random = torch.Generator().manual_seed(1)
    ecg = torch.randn(2, 12, 250, generator=random, dtype=torch.float64)
    direction = torch.randn(2, config.width, generator=random, dtype=torch.float64)
    expected = described(config, weights, ecg)[:, 0]
    features = encoder(ecg if double else ecg.float())
    assert apart(features, expected) < limit
    (expected * direction).sum().backward()
    (features * direction).sum().backward()
    for name, parameter in encoder.network.named_parameters():
        assert apart(parameter.grad, weights[name].grad) < limit, name


def test_tokens_are_the_patches_in_order() -> None:
    """return_tokens=True: all times of lead I first, then lead II; the class token is not among them."""
    encoder = shaken(SMALL).double()
    ecg = torch.randn(2, 12, 250, dtype=torch.float64)
    expected = described(SMALL, dict(encoder.network.named_parameters()), ecg)
    torch.testing.assert_close(encoder(ecg, return_tokens=True), expected[:, 1:], rtol=1e-9, atol=1e-9)


def test_drop_path_rises_linearly_and_scales_what_is_kept() -> None:
    """The rates of both branches of block i of n are p i / (n - 1); a branch is kept times 1 / (1 - rate), or is 0."""
    encoder = shaken(SMALL).double()
    assert encoder.blocks == 8
    assert encoder.drop_rates == pytest.approx((0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3))
    ecg = torch.randn(3, 12, 250, dtype=torch.float64)
    keep = torch.ones(3, 8).bool()
    keep[1, [2, 5]] = False
    keep[2] = False
    scale = keep.double() / torch.tensor([1, 1, 0.9, 0.9, 0.8, 0.8, 0.7, 0.7], dtype=torch.float64)
    expected = described(SMALL, dict(encoder.network.named_parameters()), ecg, scale)[:, 0]
    torch.testing.assert_close(encoder(ecg, keep), expected, rtol=1e-6, atol=1e-6)  # the factors are float32
    assert torch.equal(encoder(ecg, torch.ones(3, 0).bool()), encoder(ecg))


def test_checkpointing_changes_no_gradient() -> None:
    """Bitwise, with drop-path, and with fewer tensors kept for the backward pass."""
    ecg, keep = torch.randn(2, 12, 250), torch.rand(2, 8) < 0.6
    found = []
    for checkpointing in (False, True):
        encoder = shaken(dataclasses.replace(SMALL, checkpointing=checkpointing))
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda value, kept=kept: kept.append(1) or value, lambda x: x):
            features = encoder(ecg, keep)
        features.square().sum().backward()
        found.append((features, {name: value.grad for name, value in encoder.named_parameters()}, len(kept)))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])
    assert found[1][2] < found[0][2] / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_attention_matrix_is_kept(dtype: torch.dtype) -> None:
    """Nothing of (N, N), and nothing larger than the MLP's hidden values, is saved for the backward pass."""
    config = dataclasses.replace(SMALL, seconds=1.0, patch=24)
    tokens = 12 * 20 + 1
    shapes: list[torch.Size] = []

    def pack(value: Tensor) -> Tensor:
        shapes.append(value.shape)
        return value

    encoder = build_ecg_encoder(config)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value),
    ):
        features = encoder(torch.randn(2, 12, 500))
    features.float().sum().backward()
    assert len(shapes) > 40
    assert not [shape for shape in shapes if shape[-2:] == (tokens, tokens)]
    assert max(shape.numel() for shape in shapes) <= 2 * tokens * 4 * config.width


def test_parameters_are_used_by_their_owners_only() -> None:
    """ZeRO-3's rule: the same features where a module's own parameters are empty outside its forward."""
    encoder = shaken(SMALL).eval()
    ecg = torch.randn(2, 12, 250)
    with torch.no_grad():
        expected = encoder(ecg)
        values = {parameter: parameter.data for parameter in encoder.parameters()}

        def fill(module: nn.Module, _: object) -> None:
            for parameter in module.parameters(recurse=False):
                parameter.data = values[parameter]

        def empty(module: nn.Module, *_: object) -> None:
            for parameter in module.parameters(recurse=False):
                parameter.data = torch.empty(0)

        for module in encoder.modules():
            module.register_forward_pre_hook(fill)
            module.register_forward_hook(empty)
            empty(module)
        assert torch.equal(encoder(ecg), expected)


@pytest.mark.parametrize(("stored", "wanted"), [(42, 62), (42, 208), (3, 5), (2, 7)])
def test_longer_windows_stretch_the_positions(stored: int, wanted: int) -> None:
    """Against the closed form; the class token's row stays."""
    table = torch.randn(1, 1 + stored, 6, dtype=torch.float64)
    fitted = fit_positions(table, wanted)
    assert torch.equal(fitted[:, 0], table[:, 0])
    torch.testing.assert_close(fitted[0, 1:], interpolated(table[0, 1:], wanted), rtol=1e-12, atol=1e-12)


def test_shorter_windows_take_the_first_positions() -> None:
    """Nothing is squeezed together."""
    table = torch.randn(1, 43, 6)
    assert torch.equal(fit_positions(table, 20), table[:, :21])
    assert torch.equal(fit_positions(table, 42), table)


def test_fresh_weights() -> None:
    """The public code's start, by its deviations; (config, seed) alone decide."""
    config = dataclasses.replace(SMALL, positions=8)
    first, second = (build_ecg_tower(config, None, seed=3).encoder for _ in range(2))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    other = build_ecg_tower(config, None, seed=4).encoder
    assert not torch.equal(first.network.cls_token, other.network.cls_token)
    for name, parameter in first.network.named_parameters():
        value = parameter.detach()
        width = config.width
        uniform = 1 / math.sqrt(3 * value[0].numel()) if value.ndim > 1 else 1 / math.sqrt(3 * width)
        expected = {
            "cls_token": 1e-6,
            "pos_embed_y.weight": 0.02,
            "patch_embed.proj.bias": 1 / math.sqrt(3 * config.patch),
            "mha.in_proj_weight": math.sqrt(2 / (width + 3 * width)),
            "mha.in_proj_bias": 0.0,
            "mha.out_proj.bias": 0.0,
            "mlp.fc1.weight": 0.02,
            "mlp.fc2.weight": 0.02,
            "mlp.fc1.bias": 0.0,
            "mlp.fc2.bias": 0.0,
        }
        if "norm" in name:
            assert bool((value == float(name.endswith("weight"))).all()), name
        elif name != "pos_embed_x":
            deviation = next((found for end, found in expected.items() if name.endswith(end)), uniform)
            assert float(value.std()) == pytest.approx(deviation, rel=0.3), name
            assert abs(float(value.mean())) <= deviation / 2, name


def test_a_fresh_class_token_hears_the_ecg() -> None:
    """Features of different ECGs differ by more than a twentieth of their size, enough to learn from."""
    encoder = build_ecg_tower(OtisConfig(width=64, heads=1, depth=4, patch=48, seconds=3), None, seed=0).encoder
    ecgs = torch.randn(32, 12, 1500, generator=torch.Generator().manual_seed(0)).cumsum(dim=2) * 0.03
    with torch.no_grad():
        features = encoder(ecgs)
    assert float(features.std(dim=0).mean()) > 0.05 * float(features.mean(dim=0).std())


def test_positions_at_the_start() -> None:
    """Rows of sines and cosines."""
    first = build_ecg_tower(dataclasses.replace(SMALL, positions=8), None, seed=3).encoder
    code = first.network.pos_embed_x[0].detach()
    assert not code[0].any()
    for k in range(8):
        for j in range(16):
            angle = k * 10000 ** (-j / 16)
            assert float(code[1 + k, j]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(code[1 + k, 16 + j]) == pytest.approx(math.cos(angle), abs=1e-6)
    assert torch.equal(position_code(8, 32)[0], code)


@pytest.mark.parametrize(
    ("kind", "tensors", "weights"),
    [("otis_base", 201, 7_132_608), ("otis_large", 297, 42_615_936), ("otis_huge", 393, 127_683_648)],
)
def test_presets_have_the_published_sizes(kind: str, tensors: int, weights: int) -> None:
    """Tensors and weights of the three published encoders at 62 positions (built from OTiS's code), from the YAMLs."""
    sizes = yaml.safe_load((CONFIG_FOLDER / "ecg_encoder" / f"{kind}.yaml").read_text())
    del sizes["defaults"]
    config = OtisConfig(positions=62, **sizes)
    assert (config.width, config.depth, config.heads) == OTIS_SIZES[kind]
    with torch.device("meta"):
        encoder = build_ecg_encoder(config)
    assert len(encoder.network.state_dict()) == tensors
    assert sum(value.numel() for value in encoder.parameters()) == weights
    assert (encoder.width, encoder.blocks) == (config.width, 2 * config.depth)
    assert (encoder.spec.samples, encoder.spec.sampling_rate, encoder.network.times) == (1500, 500.0, 62)


def test_another_length_is_refused() -> None:
    """A batch that was not cropped to the spec raises and names both shapes."""
    with pytest.raises(SpecMismatchError, match=r"12, 500.*12, 250"):
        build_ecg_encoder(SMALL)(torch.zeros(1, 12, 500))


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"width": 66}, "heads divide"),
        ({"width": 64, "heads": 3}, "heads divide"),
        ({"depth": 0}, "depth=0. Use 1"),
        ({"positions": 0}, "positions=0. Use 1"),
        ({"mlp": "relu"}, "gelu or swiglu"),
        ({"mlp_hidden": -1}, "mlp_hidden=-1"),
        ({"domain_rows": 16}, "rows 5 to 16"),
        ({"ecg_offset": -1}, "ecg_offset=-1"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"seconds": 0.05}, "no patch of 48"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object], part: str) -> None:
    """Each setting that cannot be built raises a ConfigError that says why."""
    with pytest.raises(ConfigError, match=part):
        build_ecg_encoder(dataclasses.replace(SMALL, **wrong))
