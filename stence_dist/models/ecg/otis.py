"""The OTiS encoder: a transformer over patches of single leads, with the published names of its weights.

Turgut et al., "Towards Generalisable Time Series Understanding Across Domains" (arXiv 2410.07299), and its public code,
github.com/oetu/otis; StenCE's ECG tower is this encoder at its base size.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stence_dist.config.ecg_encoder import OtisConfig
from stence_dist.ecg import EcgSpec
from stence_dist.errors import ConfigError
from stence_dist.models.ecg import EcgEncoder

_DEVIATION = 0.02  # of the MLPs' weights and the leads' codes at the start
# Of the class token: next to nothing, as in timm. A larger one would drown, in a norm, what the first blocks read.
_CLASS_DEVIATION = 1e-6
_EPSILON = 1e-6  # of the blocks' norms; the one after the patches has torch's 1e-5


def position_code(count: int, width: int) -> Tensor:
    """(1, 1 + count, width) float32: a row of zeros for the class token, then sines and cosines of each time position.

    Their rates fall from 1 towards 1/10000.
    """
    rates = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    phases = torch.arange(count, dtype=torch.float64)[:, None] * rates
    code = torch.cat([phases.sin(), phases.cos()], dim=1)
    return torch.cat([torch.zeros_like(code[:1]), code])[None].float()


def fit_positions(table: Tensor, count: int) -> Tensor:
    """(1, 1 + count, F) of a table (1, 1 + stored, F) whose row 0 is the class token's.

    A longer window stretches the stored positions, linearly and without aligned corners; a shorter one takes the first.
    """
    times = table[:, 1:]
    if count > times.shape[1]:
        columns = times.transpose(1, 2)
        times = nn.functional.interpolate(columns, size=count, mode="linear", align_corners=False).transpose(1, 2)
    return torch.cat([table[:, :1], times[:, :count]], dim=1)


class PatchEmbedding(nn.Module):
    """Stretches of single leads to tokens."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, (1, patch), (1, patch))
        self.norm = nn.LayerNorm(width)

    def forward(self, ecg: Tensor) -> Tensor:
        """(B, L, T', D) from ecg (B, L, T); samples after the last whole patch are not seen."""
        patches = self.proj(ecg.unsqueeze(1)).permute(0, 2, 3, 1)
        return nn.functional.gelu(self.norm(patches))


class PackedAttention(nn.Module):
    """torch's nn.MultiheadAttention by names and by numbers, without a matrix of weights.

    Not that class itself: it reads its output layer's weight without calling the layer, which ZeRO-3 cannot see.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, N, D) from three of that shape."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            nn.functional.linear(source, weight, bias).view(*source.shape[:2], self.heads, -1).transpose(1, 2)
            for source, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)  # (B, heads, N, D / heads)
        output: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return output


class DoubleAttention(nn.Module):
    """Attention between two further linear layers, as published: queries, keys and values are projected twice."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.mha = PackedAttention(width, heads)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) from tokens (B, N, D)."""
        output: Tensor = self.proj(self.mha(*self.qkv(tokens).chunk(3, dim=2)))
        return output


class GeluMlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) from tokens (B, N, D)."""
        output: Tensor = self.fc2(nn.functional.gelu(self.fc1(tokens)))
        return output


class SwigluMlp(nn.Module):
    """One linear layer gated by the SiLU of another, then a third (Shazeer, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(width, hidden)
        self.fc1_x = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) from tokens (B, N, D)."""
        output: Tensor = self.fc2(nn.functional.silu(self.fc1_g(tokens)) * self.fc1_x(tokens))
        return output


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: OtisConfig) -> None:
        super().__init__()
        hidden = config.mlp_hidden or 4 * config.width
        self.norm1 = nn.LayerNorm(config.width, eps=_EPSILON)
        self.attn = DoubleAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=_EPSILON)
        self.mlp = (SwigluMlp if config.mlp == "swiglu" else GeluMlp)(config.width, hidden)

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, N, D) from tokens (B, N, D). keep (B, 2) scales the branches of each sample: attention, MLP."""
        attended = self.attn(self.norm1(tokens))
        if keep is not None:
            attended = attended * keep[:, 0, None, None].to(attended.dtype)
        tokens = tokens + attended
        refined = self.mlp(self.norm2(tokens))
        if keep is not None:
            refined = refined * keep[:, 1, None, None].to(refined.dtype)
        return tokens + refined  # type: ignore[no-any-return]


class OtisNetwork(nn.Module):
    """The encoder under its published names: its state dict is that of a published checkpoint.

    With GELU it starts as OTiS's public code has it: torch's defaults in patches and attention (OTiS puts its own there
    after timm has drawn), timm's in the class token and the MLPs.
    """

    lead_rows: Tensor

    def __init__(self, config: OtisConfig, leads: int, times: int) -> None:
        super().__init__()
        self.times = times
        self.checkpointing = config.checkpointing
        half = config.width // 2
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed_x = nn.Parameter(position_code(config.positions, half))
        self.pos_embed_y = nn.Embedding(config.domain_rows, half)
        self.patch_embed = PatchEmbedding(config.width, config.patch)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=_EPSILON)
        # Not persistent: weights and checkpoints then hold parameters only.
        self.register_buffer("lead_rows", torch.arange(leads) + 1 + config.ecg_offset, persistent=False)
        nn.init.normal_(self.cls_token, std=_CLASS_DEVIATION)
        nn.init.trunc_normal_(self.pos_embed_y.weight, std=_DEVIATION)
        for name, parameter in self.blocks.named_parameters():
            if ".mlp." in name and parameter.ndim == 1:
                nn.init.zeros_(parameter)
            elif ".mlp." in name:
                nn.init.trunc_normal_(parameter, std=_DEVIATION)

    def forward(self, ecg: Tensor, keep: Tensor | None, return_tokens: bool) -> Tensor:
        """The class token's end (B, D), or those of the patches (B, L * T', D), all times of lead I first.

        ecg (B, L, T); keep (B, depth, 2) scales the blocks' branches, None = 1.
        """
        patches = self.patch_embed(ecg)  # (B, L, T', D)
        # The first half of a token's width holds the code of its lead, the second that of its time.
        times = fit_positions(self.pos_embed_x, self.times)  # (1, 1 + T', D / 2)
        leads = self.pos_embed_y(self.lead_rows)[:, None].expand(-1, self.times, -1)  # (L, T', D / 2)
        patches = patches + torch.cat([leads, times[:, 1:].expand_as(leads)], dim=2)
        start = self.cls_token + torch.cat([torch.zeros_like(times[:, :1]), times[:, :1]], dim=2)
        tokens = torch.cat([start.expand(len(ecg), -1, -1), patches.flatten(1, 2)], dim=1)
        for number, block in enumerate(self.blocks):
            scale = None if keep is None else keep[:, number]
            if self.checkpointing and torch.is_grad_enabled():
                # Nothing random happens inside, so there is no state of generators to keep.
                tokens = checkpoint(block, tokens, scale, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = block(tokens, scale)
        read: Tensor = self.norm(tokens[:, 1:] if return_tokens else tokens[:, 0])
        return read


class Otis(EcgEncoder):
    """The published encoder as an `EcgEncoder`: `blocks` counts residual branches, two per published block."""

    path_scale: Tensor
    # As published: labels leave the table of times as it is, and only pretraining on pairs (StenCE's) trains it.
    fixed_with_labels = ("network.pos_embed_x",)

    def __init__(self, config: OtisConfig) -> None:
        """Raises ConfigError for a window that is shorter than one patch."""
        super().__init__()
        self.spec = EcgSpec(seconds=config.seconds, windows=config.windows)
        times = self.spec.samples // config.patch
        if times < 1:
            raise ConfigError(
                f"ecg_encoder.seconds={config.seconds:g} holds no patch of {config.patch} samples at "
                f"{self.spec.sampling_rate:g} Hz. Use e.g. 3."
            )
        self.width = config.width
        self.blocks = 2 * config.depth
        rising = [config.drop_path * number / max(1, config.depth - 1) for number in range(config.depth)]
        self.drop_rates = tuple(rate for rate in rising for _ in range(2))
        self.register_buffer("path_scale", 1 / (1 - torch.tensor(self.drop_rates)), persistent=False)
        self.network = OtisNetwork(config, len(self.spec.leads), times)

    def forward(self, ecg: Tensor, keep_path: Tensor | None = None, return_tokens: bool = False) -> Tensor:
        """Features (B, width), or tokens (B, N, width): one per lead and patch, all times of lead I first.

        ecg (B, L, T) prepared as `spec` says. keep_path (B, K), False = that sample skips that residual branch: the
        first block's attention, its MLP, the second block's attention. A kept branch is scaled by 1/(1 - its rate),
        `drop_rates` (K,). None or K = 0 keeps all. Raises SpecMismatchError on another shape.
        """
        self.check_shape(ecg)
        keep = None
        if keep_path is not None and keep_path.shape[1]:
            assert keep_path.shape[1] == self.blocks, "one drop-path mask per residual branch"
            keep = (keep_path * self.path_scale).view(len(keep_path), -1, 2)
        features: Tensor = self.network(ecg, keep, return_tokens)
        return features
