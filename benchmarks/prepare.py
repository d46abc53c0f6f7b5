"""How many three-second 12-lead windows one core prepares per second, and how that compares with sparse LU.

    python benchmarks/prepare.py [out=prepare.json] [rounds=15] [windows=200]

Both forms run in turns in one process on one thread: `prepare_ecg` on 12 x 1500 windows, and the same chain with
`scipy.sparse.linalg.spsolve`, one lead at a time and on a 50th of the windows, as the published code has it. The
claims: 1,000 windows per second and core, and the same results. Exit code 1: one was not met.
"""

import os
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy starts its threads

import claims
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from numpy.typing import NDArray

from stence_dist.ecg import (
    BASELINE_ASYMMETRY,
    BASELINE_ITERATIONS,
    BASELINE_STIFFNESS,
    CLIP_DEVIATIONS,
    LEADS,
    EcgSpec,
    normalize_lead_groups,
    prepare_ecg,
)

SPEC = EcgSpec()
CLAIM, SAME = 1000.0, 1e-6


def records(count: int) -> NDArray[np.float32]:
    """Synthetic signals (count, 12, 1500) in mV: beats, drift, noise."""
    draws = np.random.default_rng(0)
    t = np.arange(SPEC.samples) / SPEC.sampling_rate
    beats = np.exp(-(((t % 0.8) - 0.4) ** 2) / (2 * 0.015**2))
    drift = np.sin(2 * np.pi * 0.3 * t + draws.uniform(0, 6, (count, 12, 1)))
    gains = draws.uniform(-1.5, 1.5, (count, 12, 1))
    return (gains * beats + 0.3 * drift + 0.02 * draws.standard_normal((count, 12, len(t)))).astype(np.float32)


def prepare(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    """The package's form."""
    return prepare_ecg(signal, leads=LEADS, sampling_rate=SPEC.sampling_rate, spec=SPEC)


def prepare_sparse(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same chain with a general sparse solver."""
    window = signal.astype(np.float64)
    limit = CLIP_DEVIATIONS * window.std()
    window = np.clip(window, -limit, limit)
    count = window.shape[1]
    difference = scipy.sparse.diags([1.0, -2.0, 1.0], [0, 1, 2], shape=(count - 2, count))
    penalty = BASELINE_STIFFNESS * (difference.T @ difference)
    for lead, y in enumerate(window):
        w = np.ones(count)
        for _ in range(BASELINE_ITERATIONS):
            z = scipy.sparse.linalg.spsolve((scipy.sparse.diags(w) + penalty).tocsc(), w * y)
            w = np.where(y > z, BASELINE_ASYMMETRY, 1 - BASELINE_ASYMMETRY)
        window[lead] = y - z
    return normalize_lead_groups(window, LEADS).astype(np.float32)


def cpu_seconds(form: Callable[[NDArray[np.float32]], object], signals: NDArray[np.float32]) -> float:
    """CPU seconds per signal. CPU, not wall: other work on the machine must not count."""
    started = time.process_time()
    for signal in signals:
        form(signal)
    return (time.process_time() - started) / len(signals)


def main() -> int:
    """Measure in turns, print the table, write the file."""
    options = claims.options({"out": "", "rounds": "15", "windows": "200"})
    rounds, windows = claims.whole(options, "rounds"), claims.whole(options, "windows")
    signals = records(windows)
    few = signals[: max(1, windows // 50)]
    apart = max(float(np.abs(prepare(signal) - prepare_sparse(signal)).max()) for signal in few)
    times = np.array([(cpu_seconds(prepare, signals), cpu_seconds(prepare_sparse, few)) for _ in range(rounds)])
    ours, sparse = (float(value) for value in np.median(times, axis=0))
    found = claims.Claims()
    figures = {"ours_ms": ours * 1e3, "ours_least": float(times[:, 0].min()) * 1e3, "sparse_ms": sparse * 1e3}
    found.add("windows per second and core", 1 / ours, CLAIM, least=True, **figures, sparse_over_ours=sparse / ours)
    found.add("largest difference of the results, in deviations", apart, SAME)
    return found.finish(options["out"], numpy=np.__version__)


if __name__ == "__main__":
    sys.exit(main())
