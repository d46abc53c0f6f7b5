"""Where a step's time goes."""

import json
import time
from pathlib import Path

import pytest

from stence_dist.profile import PROFILED_STEPS, SKIPPED_STEPS, WARMUP_STEPS, StepProfiler, shares, span, step_table


def test_parts_of_a_step_add_up() -> None:
    """By hand: two steps, in the order of time, repeated and nested parts, collectives of two threads that overlap."""
    events = [
        ("ProfilerStep#9", 0.0, 10.0),
        ("stence_dist:forward", 1.0, 3.0),
        ("stence_dist:backward", 3.0, 7.0),
        ("stence_dist:forward", 7.0, 8.0),
        ("aten::mm", 1.0, 2.0),
        ("gloo:all_reduce", 3.0, 5.0),
        ("gloo:all_gather", 4.0, 6.0),
        ("ProfilerStep#10", 10.0, 14.0),
        ("stence_dist:data_wait", 10.0, 11.0),
        ("nccl:reduce_scatter", 12.0, 12.1),  # enqueued
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 12.0, 12.5),
    ]
    first, second = step_table(events)
    assert (first["total_s"], first["forward_s"], first["backward_s"], first["other_s"]) == (10.0, 3.0, 4.0, 3.0)
    assert (first["collectives_s"], second["collectives_s"]) == (3.0, 0.5)
    assert (second["data_wait_s"], second["other_s"]) == (1.0, 3.0)
    assert "forward 21%" in shares([first, second])


def test_ten_steps_are_profiled(tmp_path: Path) -> None:
    """A trace and a row per profiled step, numbered as the run counts; what a span took is in its row."""
    profiler = StepProfiler(tmp_path, first_step=100)
    for _ in range(SKIPPED_STEPS + WARMUP_STEPS + PROFILED_STEPS + 3):
        with span("forward"):
            time.sleep(0.02)
        profiler.step()
    profiler.close()
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(108, 118))
    assert all(0.02 <= row["forward_s"] <= row["total_s"] for row in rows)
    assert json.loads((tmp_path / "trace_rank00000.json").read_text())["traceEvents"]


def test_a_short_run_leaves_what_it_had(tmp_path: Path) -> None:
    """Ended within the profiled steps."""
    profiler = StepProfiler(tmp_path, first_step=0)
    for _ in range(SKIPPED_STEPS + WARMUP_STEPS + 3):
        profiler.step()
    profiler.close()
    assert len((tmp_path / "steps.jsonl").read_text().splitlines()) == pytest.approx(3, abs=1)


def test_a_run_that_is_too_short_is_told_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ended before the first profiled step: nothing is written, and a warning says why."""
    profiler = StepProfiler(tmp_path / "profile", first_step=0)
    profiler.step()
    profiler.close()
    assert not (tmp_path / "profile").exists()
    assert f"before its step {SKIPPED_STEPS + WARMUP_STEPS + 1}" in caplog.text
