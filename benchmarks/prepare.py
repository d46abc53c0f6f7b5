"""How many three-second 12-lead windows one core prepares per second, and how that compares with sparse LU.

    python benchmarks/prepare.py [--rounds 15] [--windows 200]

Both forms run in turns in one process on one thread: `prepare_ecg` on 12 x 1500 windows, and the same chain with
`scipy.sparse.linalg.spsolve`, one lead at a time, as the published code has it. The claim: 1,000 windows per second
and core.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy starts its threads

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
CLAIM = 1000.0


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


def main() -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns that each form takes")
    parser.add_argument("--windows", type=int, default=200, help="windows per turn of prepare_ecg (sparse: 1 per 50)")
    options = parser.parse_args()
    signals = records(options.windows)
    few = signals[: max(1, options.windows // 50)]
    difference = max(np.abs(prepare(signal) - prepare_sparse(signal)).max() for signal in few)
    times = np.array([(cpu_seconds(prepare, signals), cpu_seconds(prepare_sparse, few)) for _ in range(options.rounds)])
    ratios = times[:, 1] / times[:, 0]
    rate = 1 / np.median(times[:, 0])
    print(f"12 leads x {SPEC.samples} samples, CPU time of one thread, {options.rounds} turns each")
    print(f"{'form':<22}{'ms, min':>10}{'ms, median':>12}{'windows/s':>12}")
    for name, column in (("prepare_ecg", times[:, 0]), ("sparse LU (spsolve)", times[:, 1])):
        print(f"{name:<22}{column.min() * 1e3:>10.3f}{np.median(column) * 1e3:>12.3f}{1 / np.median(column):>12.0f}")
    print(f"sparse LU / prepare_ecg: {np.median(ratios):.0f}x (min {ratios.min():.0f}x, max {ratios.max():.0f}x)")
    print(f"largest difference of the results: {difference:.1e}")
    print(f"claim of {CLAIM:.0f} windows per second and core: {'met' if rate >= CLAIM else 'NOT met'} ({rate:.0f})")
    print(f"command: python {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
