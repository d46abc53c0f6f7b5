"""Training and evaluation batches: what is in them, and that workers, ranks and history do not change them."""

import dataclasses
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import stence_dist
from stence_dist.batch import PairBatch
from stence_dist.config.data import AugmentConfig
from stence_dist.data.augment import augment_ecg
from stence_dist.data.loader import PairReader, evaluation_batches, training_batches
from stence_dist.data.order import global_batch, ordinals
from stence_dist.data.shards import ShardSet
from stence_dist.ecg import LEADS, EcgSpec, prepare_ecg, prepare_windows
from stence_dist.errors import ConfigError, DataError, SpecMismatchError
from stence_dist.seeds import generator

SPEC = EcgSpec(seconds=1, windows=2)
ALL_ON = AugmentConfig(amplitude_probability=1, noise_probability=1, mask_probability=1)


@dataclass
class MemoryShards:
    """A shard set of `count` rows that remembers how each row was asked for. Sample numbers run from 100."""

    count: int
    reads: list[tuple[int, bool, bool]] = field(default_factory=list)

    def table(self, split: str) -> SimpleNamespace:
        """The columns that the reader uses."""
        assert split == "train"
        rows = np.arange(self.count)
        return SimpleNamespace(
            sample=rows + 100,
            patient=rows // 2,
            patient_key=np.array([f"key{row}" for row in rows]),
            segments=np.tile(rows[:, None].astype(np.float32), (1, 16)),
        )

    def read(self, split: str, row: int, *, views: bool, verify: bool) -> SimpleNamespace:
        """2 s at 500 Hz; row r has 1 + r % 3 views, row 5 none."""
        self.reads.append((row, views, verify))
        count = 0 if row == 5 else 1 + row % 3
        frames = np.full((count, 1, 4, 4), 10 * row, dtype=np.uint8)
        frames += np.arange(count, dtype=np.uint8)[:, None, None, None]
        return SimpleNamespace(
            signal=lambda: np.random.default_rng(row).standard_normal((12, 1000)).astype(np.float32),
            leads=LEADS,
            sampling_rate=500.0,
            views=frames if views and count else None,
            angulation=np.full((count, 2), row, dtype=np.float32) + np.arange(count)[:, None],
        )


def make_reader(shards: object, rows: np.ndarray, **changes: object) -> PairReader:
    """A training reader over `rows`, everything random switched on."""
    settings = {"seed": 3, "augment": ALL_ON, "views": True, "drop_rates": (0.5,) * 4, **changes}
    return PairReader(shards, "train", rows, settings.pop("spec", SPEC), **settings)  # type: ignore[arg-type]


def without_row_5(count: int = 12) -> np.ndarray:
    """Row numbers of the rows that have views."""
    return np.delete(np.arange(count), 5)


def assert_equal(one: PairBatch, other: PairBatch) -> None:
    """Bitwise, NaN included."""
    for name, value in vars(one).items():
        expected = getattr(other, name)
        if value is None:
            assert expected is None, name
        else:
            assert value.dtype == expected.dtype, name
            np.testing.assert_array_equal(value.numpy(), expected.numpy(), err_msg=name)


def test_positions_choose_samples_by_the_order() -> None:
    """Sample numbers against `global_batch`, over two epochs, through the reader's row selection."""
    rows = np.array([7, 2, 9, 4, 0])
    reader = make_reader(MemoryShards(12), rows)
    for step in range(3):
        positions, chosen = global_batch(step, 4, 5, seed=3)
        got = [reader.sample(int(position)).sample for position in positions]
        assert got == (rows[chosen] + 100).tolist()


def test_item_without_augmentation_is_the_first_window() -> None:
    """Against prepare_ecg on the stored signal; all views in order; the table's segments and patient."""
    shards = MemoryShards(12)
    reader = make_reader(shards, np.array([8]), augment=None, drop_rates=(0.0,) * 4)
    item = reader.sample(0)
    stored = shards.read("train", 8, views=True, verify=False)
    expected = prepare_ecg(stored.signal(), leads=LEADS, sampling_rate=500, spec=SPEC)
    np.testing.assert_array_equal(item.ecg, expected)
    assert item.views is not None
    assert item.views[:, 0, 0, 0].tolist() == [80, 81, 82]
    assert item.angulation.tolist() == [[8, 8], [9, 9], [10, 10]]
    assert (item.patient, item.sample) == (4, 108)
    assert item.segments.tolist() == [8.0] * 16
    assert item.keep_path.tolist() == [True] * 4


def test_draws_are_those_of_seed_position_and_sample() -> None:
    """Against the draws made by hand: place of the crop, then the augmentation, from one generator."""
    shards = MemoryShards(12)
    reader = make_reader(shards, without_row_5())
    item = reader.sample(30)
    row = int(without_row_5()[ordinals(np.array([30]), 11, 3)[0]])
    draws = generator(3, "augment ecg", 30, row + 100)
    millivolts = shards.read("train", row, views=True, verify=False).signal()
    window = prepare_ecg(millivolts, leads=LEADS, sampling_rate=500, spec=SPEC, place=draws.random())
    np.testing.assert_array_equal(item.ecg, augment_ecg(window, ALL_ON, 500, draws))


def test_a_sample_is_drawn_anew_in_every_epoch() -> None:
    """One row, three epochs: another crop each time; the same position twice: the same bits."""
    reader = make_reader(MemoryShards(12), np.array([7]))
    first, second, third = (reader.sample(position) for position in range(3))
    assert not np.array_equal(first.ecg, second.ecg)
    assert not np.array_equal(second.ecg, third.ecg)
    np.testing.assert_array_equal(first.ecg, reader.sample(0).ecg)


def test_dropped_views_keep_their_angles() -> None:
    """Whatever views stay, each still has its own angulation."""
    reader = make_reader(MemoryShards(12), np.array([8]), augment=AugmentConfig(drop_views=0.9))
    counts = set()
    for position in range(40):
        item = reader.sample(position)
        assert item.views is not None
        assert (item.views[:, 0, 0, 0] - 80).tolist() == (item.angulation[:, 0] - 8).tolist()
        counts.add(len(item.views))
    assert {1, 2} <= counts


def test_moved_frames_are_the_stored_ones_elsewhere(small_shards: Path) -> None:
    """Every trained view is a move of the stored one by at most 6 of 32 pixels, another one in the next epoch; ECG and
    angles are untouched, and so is evaluation."""
    shards = ShardSet.open(small_shards)
    rows = np.flatnonzero(shards.table("train").has_study)[:3]
    still = make_reader(shards, rows, spec=EcgSpec())
    moving = make_reader(shards, rows, spec=EcgSpec(), augment=dataclasses.replace(ALL_ON, shift_frames=0.2))
    moves = set()
    for position in range(3 * len(rows)):
        before, after = still.sample(position), moving.sample(position)
        np.testing.assert_array_equal(after.ecg, before.ecg)
        np.testing.assert_array_equal(after.angulation, before.angulation)
        assert before.views is not None
        assert after.views is not None
        for stored, moved in zip(before.views, after.views, strict=True):
            padded = np.pad(stored, ((0, 0), (6, 6), (6, 6)), mode="edge")
            places = [(y, x) for y in range(13) for x in range(13)]
            equal = [np.array_equal(padded[:, y : y + 32, x : x + 32], moved) for y, x in places]
            assert any(equal)
            moves.add(places[equal.index(True)])
    assert len(moves) > 3
    row = int(rows[0])
    assert_equal(*(next(iter(evaluation_batches(reader, np.array([row]), 1, 0))) for reader in (still, moving)))


def test_ecg_only_reading_leaves_images_alone() -> None:
    """views=False never asks the shards for images, also in rows that have none, and gives a mask of width 0."""
    shards = MemoryShards(12)
    reader = make_reader(shards, np.arange(12), views=False)
    (micro_batch,) = next(
        training_batches(reader, start=0, stop=1, g=12, accumulation=1, rank=0, world_size=1, workers=0)
    )
    assert micro_batch.views is None
    assert micro_batch.view_mask.shape == (12, 0)
    assert not any(views for _, views, _ in shards.reads)


@pytest.mark.parametrize(
    "verify, expected", [("off", [False, False]), ("first_pass", [True, False]), ("always", [True, True])]
)
def test_verification_follows_the_epoch(verify: str, expected: list[bool]) -> None:
    """CRCs asked for in the first and in the second epoch; evaluation asks unless verification is off."""
    shards = MemoryShards(5)
    reader = make_reader(shards, np.arange(5), verify=verify)
    for position in range(10):
        reader.sample(position)
    assert [checked for _, _, checked in shards.reads] == [expected[0]] * 5 + [expected[1]] * 5
    shards.reads.clear()
    list(evaluation_batches(reader, np.arange(3), 2, 0))
    assert [checked for _, _, checked in shards.reads] == [verify != "off"] * 3


@pytest.mark.parametrize("accumulation", [1, 2])
def test_ranks_share_each_micro_batch(accumulation: int) -> None:
    """Two ranks side by side are one rank, field for field (views padded to the rank's own largest)."""
    reader = make_reader(MemoryShards(12), without_row_5(), views=False)
    common = {"start": 1, "stop": 4, "g": 8, "accumulation": accumulation, "workers": 0}
    alone = list(training_batches(reader, rank=0, world_size=1, **common))
    pair = [list(training_batches(reader, rank=rank, world_size=2, **common)) for rank in range(2)]
    assert len(alone) == 3
    for whole, left, right in zip(alone, *pair, strict=True):
        assert len(whole) == accumulation
        for micro, one, two in zip(whole, left, right, strict=True):
            for name in ("ecg", "segments", "patient", "sample", "keep_path"):
                together = torch.cat([getattr(one, name), getattr(two, name)])
                assert torch.equal(getattr(micro, name), together), name


def test_resuming_is_arithmetic() -> None:
    """Steps 2 and 3 of a fresh iterator are steps 2 and 3 of one that started at 0."""
    reader = make_reader(MemoryShards(12), without_row_5())
    common = {"g": 6, "accumulation": 1, "rank": 0, "world_size": 1, "workers": 0}
    whole = list(training_batches(reader, start=0, stop=4, **common))
    for expected, got in zip(whole[2:], training_batches(reader, start=2, stop=4, **common), strict=True):
        assert_equal(got[0], expected[0])


def test_evaluation_takes_all_windows_in_the_given_order() -> None:
    """Rows in any order, repeated or not, the last batch smaller; windows against prepare_windows; nothing dropped."""
    shards = MemoryShards(12)
    reader = make_reader(shards, without_row_5())
    rows = np.array([8, 0, 11, 3, 8])
    batches = list(evaluation_batches(reader, rows, 2, 0))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.cat([batch.sample for batch in batches]).tolist() == (rows + 100).tolist()
    millivolts = shards.read("train", 8, views=True, verify=False).signal()
    expected = prepare_windows(millivolts, leads=LEADS, sampling_rate=500, spec=SPEC)
    np.testing.assert_array_equal(batches[0].ecg[0].numpy(), expected)
    first, *_, repeated = evaluation_batches(reader, rows, 1, 0)
    assert_equal(first, repeated)
    assert batches[0].view_mask.tolist() == [[True, True, True], [True, False, False]]
    assert bool(batches[0].keep_path.all())
    assert list(evaluation_batches(reader, np.array([], dtype=np.int64), 2, 0)) == []


def test_loading_leaves_torch_s_random_stream_alone() -> None:
    """The global generator's state before and after: dropout must not depend on how data is loaded."""
    before = torch.get_rng_state()
    list(evaluation_batches(make_reader(MemoryShards(3), np.arange(3)), np.arange(3), 1, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_larger_than_the_rows_is_refused_at_once() -> None:
    """Before the first batch is asked for."""
    with pytest.raises(ConfigError, match="largest that works is 4"):
        training_batches(
            make_reader(MemoryShards(4), np.arange(4)),
            start=0, stop=1, g=6, accumulation=1, rank=0, world_size=1, workers=0,
        )  # fmt: skip


def test_row_without_views_is_refused() -> None:
    """A reader of pairs that is given an ECG-only row names split, row and patient key."""
    with pytest.raises(DataError, match=r"cohort row 105 \(train\), patient key5 has no views"):
        make_reader(MemoryShards(12), np.array([5])).sample(0)


def pairs(shards: ShardSet) -> np.ndarray:
    """Rows of the training split that are pairs."""
    return np.flatnonzero(shards.table("train").has_study)


def test_partners_lend_their_study(small_shards: Path) -> None:
    """The shuffled control: views, angles and segments of the partner's row; ECG, patient and number of its own."""
    shards = ShardSet.open(small_shards)
    rows = pairs(shards)
    partners = np.roll(rows, 1)
    plain = {"augment": None, "drop_rates": (0.0,) * 4}
    shuffled = make_reader(shards, rows, partners=partners, **plain)
    for position in range(len(rows)):
        row = int(ordinals(np.array([position]), len(rows), 3)[0])
        got = shuffled.sample(position)
        own = make_reader(shards, rows[[row]], **plain).sample(0)
        lent = make_reader(shards, partners[[row]], **plain).sample(0)
        assert (got.sample, got.patient) == (own.sample, own.patient)
        np.testing.assert_array_equal(got.ecg, own.ecg)
        assert lent.sample != own.sample
        np.testing.assert_array_equal(got.views, lent.views)
        np.testing.assert_array_equal(got.angulation, lent.angulation)
        np.testing.assert_array_equal(got.segments, lent.segments)


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_nothing(small_shards: Path, workers: int) -> None:
    """Three epochs of real shards, everything random switched on, two micro-batches per step; and evaluation: bitwise
    what the training process loads by itself."""
    shards = ShardSet.open(small_shards)
    reader = make_reader(shards, pairs(shards))
    g = len(reader) // 4 * 4
    common = {"start": 1, "stop": 4, "g": g, "accumulation": 2, "rank": 1, "world_size": 2}
    alone = list(training_batches(reader, workers=0, **common))
    for step, expected in zip(training_batches(reader, workers=workers, **common), alone, strict=True):
        for got, want in zip(step, expected, strict=True):
            assert got.views is not None
            assert_equal(got, want)
    rows = pairs(shards)[::-1]
    for got, want in zip(
        evaluation_batches(reader, rows, 5, workers), evaluation_batches(reader, rows, 5, 0), strict=True
    ):
        assert_equal(got, want)


@pytest.mark.parametrize("workers", [0, 2])
def test_data_errors_keep_their_type_and_message(small_shards: Path, workers: int) -> None:
    """A lead that no record has, met inside a worker: one readable line that names row and patient key."""
    shards = ShardSet.open(small_shards)
    reader = make_reader(shards, pairs(shards), spec=EcgSpec(leads=("I", "V7")))
    batches = training_batches(reader, start=0, stop=2, g=4, accumulation=1, rank=0, world_size=1, workers=workers)
    with pytest.raises(
        SpecMismatchError, match=r"^cohort row \d+ \(train\), patient [0-9a-f]+: lead V7 missing"
    ) as refused:
        next(batches)
    assert "Traceback" not in str(refused.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_any_other_error_names_its_sample(small_shards: Path, workers: int) -> None:
    """One that nobody foresaw, as partners that do not exist: it keeps its type, and says at which cohort row."""
    shards = ShardSet.open(small_shards)
    reader = make_reader(shards, pairs(shards), partners=pairs(shards) + 1_000_000)
    batches = training_batches(reader, start=0, stop=2, g=4, accumulation=1, rank=0, world_size=1, workers=workers)
    with pytest.raises(IndexError) as failed:
        next(batches)
    told = f"{failed.value} {getattr(failed.value, '__notes__', '')}"
    assert re.search(r"\(cohort row \d+ \(train\), patient [0-9a-f]+\)", told)


LOADING_RANK = """
import os, signal, sys, time
import numpy as np
from stence_dist.data.loader import PairReader, training_batches
from stence_dist.data.shards import ShardSet
from stence_dist.ecg import EcgSpec

if __name__ == "__main__":
    caught = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, frame: caught.append(number))
    shards = ShardSet.open(sys.argv[1])
    rows = np.flatnonzero(shards.table("train").has_study)
    reader = PairReader(shards, "train", rows, EcgSpec(seconds=1), seed=0, augment=None, views=False)
    batches = training_batches(reader, start=0, stop=40, g=4, accumulation=1, rank=0, world_size=1, workers=2)
    next(batches)
    print("loading", flush=True)
    while len(set(caught)) < 3:
        time.sleep(0.01)
    print(sum(1 for _ in zip(range(20), batches)), "more steps", flush=True)
    time.sleep(30)
    os._exit(1)
"""


def group_members(group: int) -> list[int]:
    """Living processes of a process group, from /proc."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(after_name[2]) == group and after_name[0] != "Z":
                members.append(int(entry.name))
    return members


def test_workers_outlast_signals_and_not_their_parent(small_shards: Path, tmp_path: Path) -> None:
    """SIGTERM, SIGUSR1 and SIGINT to the whole process group: the rank, which handles them, still gets all of its
    batches. SIGKILL to the rank alone: workers and their server end by themselves."""
    script = tmp_path / "loading_rank.py"
    script.write_text(LOADING_RANK)
    rank = subprocess.Popen(
        [sys.executable, str(script), str(small_shards)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(stence_dist.__file__).parents[1])},
    )
    try:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "loading\n"
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.killpg(rank.pid, number)
        assert rank.stdout.readline() == "20 more steps\n"
        assert len(group_members(rank.pid)) >= 4  # the rank, the server, two workers
        rank.kill()
        rank.wait()
        deadline = time.monotonic() + 10
        while group_members(rank.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert group_members(rank.pid) == []
    finally:
        if group_members(rank.pid):
            os.killpg(rank.pid, signal.SIGKILL)
        rank.communicate()


def test_worker_ends_when_its_parent_asks(small_shards: Path) -> None:
    """SIGTERM from another process is ignored; from the parent, as Python's exit sends it, it ends the worker: a rank
    that fails with batches under way must not wait for its workers for ever."""
    shards = ShardSet.open(small_shards)
    reader = make_reader(shards, pairs(shards))
    others = set(multiprocessing.active_children())
    batches = evaluation_batches(reader, pairs(shards), 1, 1)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    subprocess.run(["/bin/sh", "-c", f"kill -TERM {worker.pid}"], check=True)
    worker.join(timeout=1)
    assert worker.is_alive()
    worker.terminate()
    worker.join(timeout=10)
    assert not worker.is_alive()
