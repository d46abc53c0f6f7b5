"""The order of training: permutations, their pinned values, and how ranks share a global batch."""

import hashlib
import struct

import numpy as np
import pytest

from stence_dist.data.order import batch_hash, global_batch, ordinals, rank_positions
from stence_dist.errors import ConfigError


@pytest.mark.parametrize(
    "n, seed, start, expected",
    [
        (10, 0, 0, [4, 2, 6, 1, 7, 8, 0, 9, 3, 5, 0, 8, 7, 4, 5, 3, 1, 9, 6, 2]),
        (1000, 7, 995, [939, 558, 493, 447, 790, 848, 756, 191]),
        (2**40, 1, 3 * 2**40 - 3, [713782383370, 202413353277, 90780709933, 375793816334]),
    ],
)
def test_golden_values(n: int, seed: int, start: int, expected: list[int]) -> None:
    """Against values written down when the order was defined: a run must resume in the order that it started in."""
    assert ordinals(np.arange(start, start + len(expected)), n, seed).tolist() == expected


@pytest.mark.parametrize("n", [*range(1, 34), 63, 64, 65, 1000, 4096, 12345])
def test_every_sample_once_per_epoch(n: int) -> None:
    """Each of three epochs, read in one call, is a permutation of 0 .. n-1."""
    epochs = ordinals(np.arange(3 * n), n, seed=11).reshape(3, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (3, 1)))


def test_order_is_a_function_of_the_position() -> None:
    """The same positions one at a time, backwards, and in one call across two epochs."""
    together = ordinals(np.arange(40, 120), 50, seed=3)
    alone = [int(ordinals(np.array([position]), 50, seed=3)[0]) for position in range(119, 39, -1)]
    assert alone[::-1] == together.tolist()


def test_epochs_and_seeds_differ() -> None:
    """Two epochs, and two seeds, agree in about one place of n, as independent permutations do."""
    first, second = ordinals(np.arange(2000), 1000, seed=0).reshape(2, 1000)
    other = ordinals(np.arange(1000), 1000, seed=1)
    assert (first == second).sum() < 10
    assert (first == other).sum() < 10
    assert (first == np.arange(1000)).sum() < 10


def test_small_permutations_are_equally_likely() -> None:
    """All 24 permutations of 4 samples over 4,800 epochs: chi-squared with 23 degrees of freedom, 99.9 % at 49.7."""
    epochs = ordinals(np.arange(4 * 4800), 4, seed=5).reshape(-1, 4)
    _, counts = np.unique(epochs, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 200.0) ** 2 / 200).sum() < 49.7


def test_neighbors_of_a_large_set_are_scattered() -> None:
    """2^40 samples: the first 4,096 differ, and spread evenly over 16 bins (15 degrees of freedom, 99.9 % at 37.7)."""
    n = 2**40
    first = ordinals(np.arange(4096), n, seed=2)
    assert len(np.unique(first)) == 4096
    counts = np.bincount((first >> 36).astype(int), minlength=16)
    assert ((counts - 256.0) ** 2 / 256).sum() < 37.7


def test_global_batches_cover_an_epoch_without_a_tail() -> None:
    """7 does not divide 23: 23 steps of 7 are exactly 7 epochs, each sample once in each."""
    batches = [global_batch(step, 7, 23, seed=1) for step in range(23)]
    positions = np.concatenate([positions for positions, _ in batches])
    np.testing.assert_array_equal(positions, np.arange(161))
    samples = np.concatenate([chosen for _, chosen in batches]).reshape(7, 23)
    np.testing.assert_array_equal(np.sort(samples, axis=1), np.tile(np.arange(23), (7, 1)))


def test_batch_larger_than_the_set_is_refused() -> None:
    """The message names the largest G."""
    with pytest.raises(ConfigError, match=r"global_batch_size=24 .* largest that works is 23"):
        global_batch(0, 24, 23, seed=1)
    assert len(global_batch(0, 23, 23, seed=1)[0]) == 23


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_pools_do_not_depend_on_ranks(accumulation: int) -> None:
    """The ranks' slices of a micro-batch, side by side, are the one-rank micro-batch: the same negatives at any W."""
    alone = rank_positions(5, g=24, accumulation=accumulation, rank=0, world_size=1, micro=24 // accumulation)
    np.testing.assert_array_equal(alone.ravel(), np.arange(120, 144))
    for world_size in (2, 3):
        micro = 24 // accumulation // world_size
        slices = [
            rank_positions(5, g=24, accumulation=accumulation, rank=rank, world_size=world_size, micro=micro)
            for rank in range(world_size)
        ]
        assert slices[0].shape == (accumulation, micro)
        np.testing.assert_array_equal(np.concatenate(slices, axis=1), alone)


def test_batch_hash_is_sha256_of_little_endian_numbers() -> None:
    """Against bytes packed by hand; order matters."""
    numbers = [3, 1, 2**40]
    expected = hashlib.sha256(struct.pack("<3q", *numbers)).hexdigest()[:16]
    assert batch_hash(np.array(numbers)) == expected
    assert batch_hash(np.array(numbers[::-1])) != expected
