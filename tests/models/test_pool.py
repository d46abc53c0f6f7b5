import numpy as np
import pytest
import torch
from torch import nn

from stence_dist.config.image_tower import TokensConfig
from stence_dist.models.image.pool import AngulationCode, DecoderLayer, QueryPool


def test_decoder_layer_equals_torch() -> None:
    """nn.TransformerDecoderLayer (pre-norm, ReLU, no dropout) with the same weights, in float64."""
    layer = DecoderLayer(16, 4, 24).double()
    peer = nn.TransformerDecoderLayer(16, 4, 24, dropout=0.0, norm_first=True, batch_first=True).double()
    with torch.no_grad():
        for ours, theirs in ((layer.self_attention, peer.self_attn), (layer.cross_attention, peer.multihead_attn)):
            for linear in (ours.query, ours.key, ours.value, ours.output):
                linear.bias.normal_()
            theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
            theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
            theirs.out_proj.load_state_dict(ours.output.state_dict())
        pairs = [(layer.self_norm, peer.norm1), (layer.cross_norm, peer.norm2), (layer.feedforward_norm, peer.norm3)]
        for ours, theirs in [*pairs, (layer.hidden, peer.linear1), (layer.output, peer.linear2)]:
            ours.weight.add_(torch.randn_like(ours.weight) * 0.1)
            theirs.load_state_dict(ours.state_dict())
    queries, memory = torch.randn(3, 5, 16, dtype=torch.float64), torch.randn(3, 7, 16, dtype=torch.float64)
    attend = torch.rand(3, 7) < 0.6
    attend[:, 0] = True
    expected = peer(queries, memory, memory_key_padding_mask=~attend)
    torch.testing.assert_close(layer(queries, memory, attend), expected, rtol=1e-10, atol=1e-10)


def test_attention_starts_as_torch() -> None:
    """Bounds of the start against nn.MultiheadAttention's own, measured on both."""
    layer, peer = DecoderLayer(64, 4, 24).cross_attention, nn.MultiheadAttention(64, 4)
    assert layer.query.weight.abs().max().item() == pytest.approx(peer.in_proj_weight.abs().max().item(), rel=0.02)
    assert layer.output.weight.abs().max().item() == pytest.approx(peer.out_proj.weight.abs().max().item(), rel=0.02)
    assert not layer.key.bias.any()
    assert not layer.output.bias.any()


@pytest.mark.parametrize(
    "angles, cell",
    [
        ((0.0, 0.0), (6, 8)),  # executed in SegmentMIL
        ((-70.0, -50.0), (0, 0)),
        ((-180.0, -90.0), (0, 0)),
        ((110.0, 50.0), (15, 15)),
        ((170.0, 90.0), (15, 15)),
        ((-58.76, 43.74), (0, 14)),
        ((-58.74, 43.76), (1, 15)),
    ],
)
def test_angulation_code_is_the_published_table(angles: tuple[float, float], cell: tuple[int, int]) -> None:
    """Closed form per cell: half the channels per axis, sines then cosines, base 10000, integer cell coordinates."""
    rates = 1 / 10000 ** (np.arange(4) / 4)
    expected = np.concatenate([part for place in cell for part in (np.sin(place * rates), np.cos(place * rates))])
    code = AngulationCode(16)(torch.tensor([angles]))
    np.testing.assert_allclose(code[0].detach().numpy(), expected, atol=1e-6)


def test_unknown_angle_is_a_learned_vector() -> None:
    """A NaN in either angle gives the vector, and its gradient reaches the vector alone."""
    code = AngulationCode(16)
    angles = torch.tensor([[float("nan"), float("nan")], [10.0, float("nan")], [float("nan"), 3.0], [10.0, 3.0]])
    codes = code(angles)
    for row in codes[:3]:
        assert torch.equal(row, code.unknown)
    assert not torch.equal(codes[3], code.unknown)
    codes.sum().backward()
    assert code.unknown.grad is not None
    assert bool((code.unknown.grad == 3).all())
    assert dict(code.state_dict()).keys() == {"unknown"}


@pytest.mark.parametrize("frames", [1, 3])
def test_order_of_views_and_padding_do_not_matter(frames: int) -> None:
    """Queries of permuted and of further padded views against the original, in float64."""
    pool = QueryPool(TokensConfig(width=16, depth=2, heads=2, feedforward=24), frames).double()
    tokens = torch.randn(5, frames, 4, 16, dtype=torch.float64)
    angles = torch.randn(5, 2, dtype=torch.float64) * 40
    angles[1] = float("nan")

    def pooled(order: list[int], most: int) -> torch.Tensor:
        """Pair 0 has views 0-2 in `order`, pair 1 views 3 and 4; padded to `most`."""
        mask = torch.zeros(2, most, dtype=torch.bool)
        mask[0, :3] = mask[1, :2] = True
        angulation = torch.full((2, most, 2), float("nan"), dtype=torch.float64)
        angulation[mask] = angles[[*order, 3, 4]]
        return pool(tokens[[*order, 3, 4]], mask, angulation)

    expected = pooled([0, 1, 2], 3)
    torch.testing.assert_close(pooled([2, 0, 1], 3), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(pooled([0, 1, 2], 6), expected, rtol=1e-10, atol=1e-10)


def test_angles_and_frame_order_matter() -> None:
    """The same tokens under another angle, and the frames of a view reversed, give other queries."""
    pool = QueryPool(TokensConfig(width=16, depth=1, heads=2, feedforward=24), 3)
    tokens, mask = torch.randn(1, 3, 4, 16), torch.ones(1, 1, dtype=torch.bool)
    angles = torch.tensor([[[30.0, 20.0]]])
    base = pool(tokens, mask, angles)
    for other in (pool(tokens, mask, -angles), pool(tokens.flip(1), mask, angles)):
        assert (other - base).abs().max() > 1e-4
    assert base.shape == (1, 12, 16)


def test_shares_equal_torch() -> None:
    """Weights of nn.MultiheadAttention with the same projections, under a mask, head by head, in float64."""
    attention = DecoderLayer(16, 4, 24).cross_attention.double()
    peer = nn.MultiheadAttention(16, 4, batch_first=True).double()
    with torch.no_grad():
        parts = (attention.query, attention.key, attention.value)
        for linear in parts:
            linear.bias.normal_()
        peer.in_proj_weight.copy_(torch.cat([linear.weight for linear in parts]))
        peer.in_proj_bias.copy_(torch.cat([linear.bias for linear in parts]))
    queries, memory = torch.randn(3, 5, 16, dtype=torch.float64), torch.randn(3, 7, 16, dtype=torch.float64)
    attend = torch.rand(3, 7) < 0.6
    attend[:, 0] = True
    _, expected = peer(queries, memory, memory, key_padding_mask=~attend, average_attn_weights=False)
    torch.testing.assert_close(attention.shares(queries, memory, attend), expected, rtol=1e-10, atol=1e-10)


def test_attention_is_what_the_contrastive_query_reads() -> None:
    """Shares by view and frame are those of the last layer's cross attention in `forward`, whose inputs a hook keeps:
    they sum to 1 over real views and are 0 in padded ones, and mix the values to what that attention gives out."""
    pool = QueryPool(TokensConfig(width=16, depth=2, heads=1, feedforward=24), 3).double()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    tokens, angles = torch.randn(3, 3, 4, 16, dtype=torch.float64), torch.randn(2, 3, 2, dtype=torch.float64) * 40
    kept: list[torch.Tensor] = []
    cross = pool.layers[1].cross_attention
    handle = cross.register_forward_hook(lambda _module, inputs, output: kept.extend([inputs[1], output]))
    pool(tokens, mask, angles)
    handle.remove()
    shares = pool.attention(tokens, mask, angles)
    assert shares.shape == (2, 3, 3, 4)
    torch.testing.assert_close(shares.sum(dim=(1, 2, 3)), torch.ones(2, dtype=torch.float64))
    assert not shares[~mask].any()
    memory, output = kept
    mixed = (shares.flatten(1)[:, :, None] * cross.value(memory)).sum(dim=1)  # one head, so a plain mean of values
    torch.testing.assert_close(cross.output(mixed), output[:, 0], rtol=1e-10, atol=1e-10)
