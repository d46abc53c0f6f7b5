"""Randomness as a function of its purpose."""

import hashlib

import numpy as np

from stence_dist.seeds import derive, generator


def test_golden_values() -> None:
    """Against sha256 of the documented text, and numpy's Philox seeded with it: runs stay what they were."""
    text = "7\x1fstr:order\x1fint:3"
    expected = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    assert derive(7, "order", 3) == expected
    np.testing.assert_array_equal(
        generator(7, "order", 3).random(4), np.random.Generator(np.random.Philox(expected)).random(4)
    )


def test_parts_do_not_run_together() -> None:
    """Neighboring seeds, swapped, joined and retyped parts all give other numbers."""
    variants = [(0, "a", 1), (1, "a", 1), (0, 1, "a"), (0, "a1"), (0, "a", 11), (0, "a", "1"), (0, "a"), (0, "a", 1, 1)]
    assert len({derive(seed, *parts) for seed, *parts in variants}) == len(variants)
