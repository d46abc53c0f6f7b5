"""Networks: two towers, their projectors, and the pair model that DeepSpeed wraps."""

import contextlib
from collections.abc import Iterator

import torch

from stence_dist.seeds import derive


@contextlib.contextmanager
def initial_weights(seed: int, part: str) -> Iterator[None]:
    """Weights made inside depend on (seed, part) alone; torch's global generators are left as they were.

    Each part draws from a stream of its own, so an ECG tower starts alike with and without an image tower beside it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "init", part))
        yield
