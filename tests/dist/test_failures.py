"""What goes wrong on one rank ends them all, soon, with one message; and kills at chosen places leave no trace."""

import json
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from pretraining import SMALL, pretrain, rows, start
from sabotaged_pretrain import POINTS

pytestmark = pytest.mark.dist

SABOTAGED = Path(__file__).with_name("sabotaged_pretrain.py")
RUN = [*SMALL, "steps=12", "engine.global_batch_size=12", "save_every=3", "eval_every=6", "engine.zero_stage=2"]
HOST = os.uname().nodename


def fail(arguments: list[str], sabotage: str, timeout: float = 120) -> tuple[str, float]:
    """Output of two ranks of which one is sabotaged, which must fail, and the seconds from the failure to the end."""
    run = next(Path(value.removeprefix("run_dir=")) for value in arguments if value.startswith("run_dir="))
    process = start("torchrun", 2, arguments, script=SABOTAGED, SABOTAGE=sabotage)
    output, _ = process.communicate(timeout=timeout)
    took = time.time() - (run / "status.json").stat().st_mtime
    assert process.returncode == 1, output[-3000:]
    return output, took


@pytest.mark.parametrize(
    ("sabotage", "expected"),
    [
        ("1 load 5 bad_sample", ["error: train row 7, patient 0123abcd: the ECG is damaged.", "step 5 of 12"]),
        ("1 forward 4 out_of_memory", ["failed: MemoryError: no 3 GB left", "step 4 of 12, samples "]),
        ("0 part 2 full", ["SaveError", "OSError: [Errno 28] No space left", "step 6 of 12"]),
        ("0 commit 2 read_only", ["SaveError", "Read-only file system"]),
        ("0 row 3 full", ["failed: OSError: [Errno 28] No space left on device", "step 3 of 12"]),
    ],
)
def test_one_rank_s_failure_ends_all(
    sabotage: str, expected: list[str], small_shards: Path, tmp_path: Path
) -> None:
    """Within 10 s, exit 1, a message that names rank, host, step and samples; the same command then goes on."""
    arguments = [*RUN, f"data.shards={small_shards}", f"run_dir={tmp_path / 'run'}"]
    output, took = fail(arguments, sabotage)
    assert took < 10
    rank = sabotage.split()[0]
    for part in [*expected, f"rank {rank} on {HOST}"]:
        assert part in output, output[-3000:]
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert f"rank {rank} on {HOST}" in status["message"]
    assert " of 12" in status["message"]
    assert output.count("failed: ") + output.count("error: ") == 1, "one message"
    if "SaveError" in expected:
        assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000000003"]
