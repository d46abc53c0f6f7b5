"""The order in which samples are read: pure functions of (seed, position), so that the state of a run is one integer.

Positions count samples since the run's start: position p = epoch * n + i is the i-th sample of an epoch over n. Each
epoch is a pseudo-random permutation of its own: a Feistel network over the next power of four, whose results beyond n
are walked on until they fall inside (Black & Rogaway 2002). Nothing is stored, any position costs the same, and
neither ranks nor loader workers nor history enter.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from stence_dist.errors import ConfigError
from stence_dist.seeds import derive

ROUNDS = 8
LARGEST = 2**40

# SplitMix64 (Steele, Lea & Flood 2014).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)

_Words = NDArray[np.uint64]


def ordinals(positions: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """Which of the n selected samples (0 .. n-1) stands at each position; positions (k,) may span epochs."""
    assert 1 <= n <= LARGEST, f"cannot order {n} samples"
    epochs, index = np.divmod(positions, n)
    distinct, which = np.unique(epochs, return_inverse=True)
    keys = np.array([derive(seed, "order", int(epoch)) for epoch in distinct], dtype=np.uint64)[which]
    return _permute(index.astype(np.uint64), keys, n).astype(np.int64)


def _permute(index: _Words, keys: _Words, n: int) -> _Words:
    """index (k,) below n, each through the permutation of 0 .. n-1 that its key (k,) chooses."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    permuted = _feistel(index, keys, half)
    while True:
        outside = np.flatnonzero(permuted >= n)
        if not len(outside):
            return permuted
        permuted[outside] = _feistel(permuted[outside], keys[outside], half)


def _feistel(values: _Words, keys: _Words, half: int) -> _Words:
    """A keyed bijection on numbers of 2 * half bits."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for _ in range(ROUNDS):
        keys = keys + _GOLDEN
        left, right = right, left ^ (_mix(right ^ keys) & mask)
    return (left << shift) | right


def _mix(words: _Words) -> _Words:
    """SplitMix64's finalizer: every bit of the result depends on every bit of a word."""
    words = (words ^ (words >> np.uint64(30))) * _MIX1
    words = (words ^ (words >> np.uint64(27))) * _MIX2
    return words ^ (words >> np.uint64(31))


def global_batch(step: int, g: int, n: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions (g,) and ordinals (g,) of the global batch of `step`; it may cross an epoch, so no tail is dropped.

    Raises ConfigError where g > n: a batch would hold samples more than twice.
    """
    check_global_batch(g, n)
    positions = np.arange(step * g, (step + 1) * g, dtype=np.int64)
    return positions, ordinals(positions, n, seed)


def check_global_batch(g: int, n: int) -> None:
    """Raise ConfigError where g > n."""
    if g > n:
        raise ConfigError(
            f"engine.global_batch_size={g} is more than the {n} training samples. The largest that works is {n}; it "
            "must also divide over ranks x engine.accumulation."
        )


def rank_positions(
    step: int, *, g: int, accumulation: int, rank: int, world_size: int, micro: int
) -> NDArray[np.int64]:
    """Positions (accumulation, micro) of one rank: its contiguous slice of each micro-batch of the global batch."""
    assert micro * accumulation * world_size == g, "the global batch does not divide"
    positions = np.arange(step * g, (step + 1) * g, dtype=np.int64)
    return positions.reshape(accumulation, world_size, micro)[:, rank]


def batch_hash(samples: NDArray[np.int64]) -> str:
    """16 hex digits of the sha256 of the global batch's sample numbers, in order, as little-endian int64."""
    return hashlib.sha256(samples.astype("<i8").tobytes()).hexdigest()[:16]
