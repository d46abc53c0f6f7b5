"""Samples become batches: padding, masks, types."""

import numpy as np
import pytest
import torch

from stence_dist.batch import PairBatch, PairSample, collate


def sample(number: int, views: np.ndarray | None, *, branches: int = 2) -> PairSample:
    """A sample whose every field tells its number."""
    count = 0 if views is None else len(views)
    return PairSample(
        ecg=np.full((12, 20), number, dtype=np.float32),
        views=views,
        angulation=np.arange(2 * count, dtype=np.float32).reshape(count, 2) + 10 * number,
        segments=np.where(np.arange(16) < number, 50, np.nan).astype(np.float32),
        patient=number // 2 + 2**40,
        sample=number,
        keep_path=np.arange(branches) < number,
    )


def pixels(count: int, number: int) -> np.ndarray:
    """(count, 1, 4, 4) uint8, each view its own value above 0."""
    return np.stack([np.full((1, 4, 4), 10 * number + view + 1, dtype=np.uint8) for view in range(count)])


def test_ragged_views_are_padded_under_a_mask() -> None:
    """1, 3 and 2 views: real ones in place with one channel, padding zero, its mask False, its angles NaN."""
    batch = collate([sample(n, pixels(count, n)) for n, count in ((1, 1), (2, 3), (3, 2))])
    assert batch.views is not None
    assert batch.views.shape == (3, 3, 1, 1, 4, 4)
    assert batch.views.dtype == torch.uint8
    assert batch.view_mask.tolist() == [[True, False, False], [True, True, True], [True, True, False]]
    assert batch.views[:, :, 0, 0, 0, 0].tolist() == [[11, 0, 0], [21, 22, 23], [31, 32, 0]]
    assert torch.equal(torch.isnan(batch.angulation).any(-1), ~batch.view_mask)
    assert batch.angulation[1].tolist() == [[20, 21], [22, 23], [24, 25]]


def test_tokens_keep_their_shape_and_type() -> None:
    """Stored features (F, N, D) gain no channel and stay float16."""
    batch = collate([sample(n, np.full((n, 1, 5, 8), n, dtype=np.float16)) for n in (1, 2)])
    assert batch.views is not None
    assert batch.views.shape == (2, 2, 1, 5, 8)
    assert batch.views.dtype == torch.float16
    assert batch.views[0, 1].abs().sum() == 0


def test_fields_line_up() -> None:
    """Every row of every field belongs to the same sample; numbers stay int64, unreported segments NaN."""
    batch = collate([sample(n, pixels(1, n)) for n in (3, 1, 2)])
    assert len(batch) == 3
    assert batch.ecg[:, 0, 0].tolist() == [3, 1, 2]
    assert batch.sample.tolist() == [3, 1, 2]
    assert batch.patient.tolist() == [2**40 + 1, 2**40, 2**40 + 1]
    assert (batch.sample.dtype, batch.patient.dtype) == (torch.int64, torch.int64)
    assert (~torch.isnan(batch.segments)).sum(1).tolist() == [3, 1, 2]
    assert batch.keep_path.tolist() == [[True, True], [True, False], [True, True]]


def test_batch_without_views() -> None:
    """ECG only: no views, a mask of width 0, and still B rows; without drop-path a mask of width 0."""
    batch = collate([sample(n, None, branches=0) for n in (1, 2)])
    assert batch.views is None
    assert batch.view_mask.shape == (2, 0)
    assert batch.angulation.shape == (2, 0, 2)
    assert batch.keep_path.shape == (2, 0)


def test_evaluation_windows_are_stacked() -> None:
    """(windows, L, T) per sample gives (B, windows, L, T)."""
    items = [sample(n, None) for n in (1, 2)]
    for item in items:
        item.ecg = np.stack([item.ecg, item.ecg + 1, item.ecg + 2])
    assert collate(items).ecg.shape == (2, 3, 12, 20)


def test_mixed_batch_is_a_bug() -> None:
    """A row without views among rows with views would silently be a pair without an image."""
    with pytest.raises(AssertionError, match="mixes"):
        collate([sample(1, pixels(1, 1)), sample(2, None)])


def test_batch_does_not_share_memory_with_views() -> None:
    """Writing into a sample afterwards leaves the batch as it was."""
    views = pixels(1, 1)
    batch = collate([sample(1, views)])
    views[:] = 0
    assert batch.views is not None
    assert int(batch.views.max()) == 11


def test_to_moves_every_tensor() -> None:
    """The meta device stands for a GPU: all fields arrive, absent views stay absent."""
    for views in (pixels(2, 1), None):
        moved = collate([sample(1, views)]).to(torch.device("meta"))
        assert isinstance(moved, PairBatch)
        tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
        assert len(tensors) == (8 if views is not None else 7)
        assert all(tensor.is_meta for tensor in tensors)
