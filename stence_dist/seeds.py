"""Random generators that are pure functions of what they are for, never of rank or history."""

import hashlib

import numpy as np


def derive(seed: int, *parts: int | str) -> int:
    """A 64-bit integer that depends on `seed` and on every part, e.g. `derive(seed, "augment", step, sample)`."""
    text = "\x1f".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def generator(seed: int, *parts: int | str) -> np.random.Generator:
    """A numpy generator for one purpose, e.g. `generator(seed, "phantom", patient)`."""
    return np.random.Generator(np.random.Philox(derive(seed, *parts)))
