"""Where a training step's time goes: named spans, and a profiler that turns some steps into a table and a trace."""

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function, schedule

from stence_dist import distributed, files

logger = logging.getLogger("stence_dist")

# Disjoint parts of a step, in the order in which they come.
SPANS = ("data_wait", "forward", "loss", "backward", "optimizer", "validation", "save")
SKIPPED_STEPS, WARMUP_STEPS, PROFILED_STEPS = 5, 2, 10

_PREFIX = "stence_dist:"
# How the back ends name their own work; NCCL's is what its kernels do, not the call that only enqueues them.
_COLLECTIVES = ("gloo:", "ncclDevKernel", "ncclKernel")


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """Mark what happens inside as one of SPANS. Costs microseconds where nothing is being profiled."""
    with record_function(_PREFIX + name):
        yield
        if torch.autograd.profiler._is_profiler_enabled and torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels that a span started count as its own


class StepProfiler:
    """Profiles ten steps of a run, some steps after its start, on every rank; rank 0's steps also become a table.

    Writes FOLDER/trace_rank00000.json per rank (chrome://tracing, Perfetto) and FOLDER/steps.jsonl: per step `step`,
    `total_s`, `NAME_s` for every span, `other_s` (none of them) and `collectives_s`, which lies within the others.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder = folder
        self._first = first_step + SKIPPED_STEPS + WARMUP_STEPS
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=activities,
            schedule=schedule(wait=SKIPPED_STEPS, warmup=WARMUP_STEPS, active=PROFILED_STEPS, repeat=1),
            on_trace_ready=self._write,
        )
        self._profiler.start()

    def step(self) -> None:
        """Say that a step has ended."""
        self._profiler.step()

    def close(self) -> None:
        """Stop; a run that ended early leaves what was profiled until then."""
        self._profiler.stop()
        if distributed.rank() == 0 and not self.folder.exists():
            logger.warning("nothing was profiled: the run ended before its step %d", self._first + 1)

    def _write(self, profiler: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with files.replacing(self.folder / f"trace_rank{distributed.rank():05d}.json") as temporary:
            profiler.export_chrome_trace(str(temporary))
        if distributed.rank() == 0:
            # On CUDA every span comes a second time, as the device saw it.
            everything = profiler.events()
            here = [event for event in everything if event.device_type.name == "CPU" or event.name.startswith("nccl")]
            events = [(event.name, event.time_range.start / 1e6, event.time_range.end / 1e6) for event in here]
            rows = [{"step": self._first + number, **row} for number, row in enumerate(step_table(events), start=1)]
            files.write_text(self.folder / "steps.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            logger.info("profile of %d steps in %s: %s", len(rows), self.folder, shares(rows))


def step_table(events: Sequence[tuple[str, float, float]]) -> list[dict[str, float]]:
    """Seconds by part for every profiled step, from events (name, start, end) of one rank, all threads."""
    rows = []
    steps = [(start, end) for name, start, end in events if name.startswith("ProfilerStep")]
    for start, end in sorted(steps):
        inside = [(name, low, high) for name, low, high in events if start <= low < end]
        row = {"total_s": end - start}
        for name in SPANS:
            row[f"{name}_s"] = sum(high - low for label, low, high in inside if label == _PREFIX + name)
        row["other_s"] = row["total_s"] - sum(row[f"{name}_s"] for name in SPANS)
        row["collectives_s"] = _covered([event[1:] for event in inside if event[0].startswith(_COLLECTIVES)])
        rows.append(row)
    return rows


def shares(rows: Sequence[dict[str, float]]) -> str:
    """Each part's share of the steps' time as text, e.g. `forward 31 %, …`."""
    total = sum(row["total_s"] for row in rows)
    names = [*SPANS, "other"]
    parts = [f"{name.replace('_', ' ')} {sum(row[f'{name}_s'] for row in rows) / total:.0%}" for name in names]
    return ", ".join(parts) + f"; collectives, within these, {sum(row['collectives_s'] for row in rows) / total:.0%}"


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for low, high in sorted(spans):
        total += max(0.0, high - max(low, reached))
        reached = max(reached, high)
    return total
