import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from stence_dist.data.sample import _decode_views, decode
from stence_dist.errors import DataError


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 3, 10, 11, 23])
def test_views_are_those_that_the_library_reads(count: int, dtype: torch.dtype) -> None:
    """Views in their order, angles included, also where frames_10 lies before frames_2; ten or fewer are not copied."""
    prefix = "frames" if dtype == torch.uint8 else "tokens"
    tensors = {f"{prefix}_{view}": (torch.rand(2, 3, 4) * 200).to(dtype) for view in range(count)}
    tensors["angulation"] = torch.randn(count, 2)
    content = save(tensors)
    expected = load(content)
    views, angulation = _decode_views(memoryview(content))
    assert views.shape == (count, 2, 3, 4)
    for view in range(count):
        np.testing.assert_array_equal(views[view].astype(np.float64), expected[f"{prefix}_{view}"].double().numpy())
    np.testing.assert_array_equal(angulation, expected["angulation"].numpy())
    shared = np.shares_memory(views, np.frombuffer(content, dtype=np.uint8))
    assert shared == (count <= 10 and dtype != torch.bfloat16)


def _written(frames: tuple[object, object], angulation: object = (1, 2), dtype: str = "U8", size: int = 32) -> bytes:
    """A member by hand: one view with (shape, data_offsets), angles of a shape behind it, `size` bytes of data."""
    header = {
        "frames_0": {"dtype": dtype, "shape": frames[0], "data_offsets": frames[1]},
        "angulation": {"dtype": "F32", "shape": angulation, "data_offsets": [24, 32]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * size


DAMAGED = {
    "empty": b"",
    "noise": b"\xff" * 40,
    "no angles": save({"frames_0": torch.zeros(1, 2)}),
    "no views": save({"angulation": torch.zeros(1, 2)}),
    "cut": _written(([1, 2, 12], [0, 24]))[:-3],
    "negative offsets": _written(([1, 2, 12], [-32, -8])),
    "beyond the end": _written(([1, 2, 12], [16, 40])),
    "negative side": _written(([1, -2, -12], [0, 24])),
    "wrong size": _written(([1, 2, 11], [0, 24])),
    "unknown type": _written(([1, 2, 12], [0, 24]), dtype="I64"),
    "angles of two views": _written(([1, 2, 12], [0, 24]), angulation=(2, 1)),
    "views of two shapes": save(
        {"frames_0": torch.zeros(2, 3), "frames_1": torch.zeros(3, 2), "angulation": torch.zeros(2, 2)}
    ),
}


def test_the_hand_written_member_is_whole() -> None:
    """So that each damage below is the only thing wrong."""
    assert _decode_views(_written(([1, 2, 12], [0, 24])))[0].shape == (1, 1, 2, 12)


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_views_are_refused(content: bytes) -> None:
    """Whatever is wrong with the bytes, the error is a DataError."""
    ecg = b"\x93NUMPY\x01\x00v\x00{'descr': '<i2', 'fortran_order': False, 'shape': (1, 2), }"
    ecg = ecg.ljust(127) + b"\n" + b"\0" * 4
    meta = b'{"ecg": {"scale": 0.001, "sampling_rate": 500, "leads": ["I"]}}'
    assert decode({"ecg.npy": ecg, "meta.json": meta}).values.shape == (1, 2)
    with pytest.raises(DataError, match="cannot be parsed"):
        decode({"ecg.npy": ecg, "meta.json": meta, "views.safetensors": content})
