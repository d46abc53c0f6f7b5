"""From positions and row numbers to batches, in this process or in loader processes, bitwise alike."""

import contextlib
import dataclasses
import functools
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import forkserver, resource_tracker
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from stence_dist.batch import PairBatch, PairSample, collate
from stence_dist.config.data import AugmentConfig, EcgAugmentConfig
from stence_dist.data.augment import augment_ecg, augment_frames, keep_branches, keep_views
from stence_dist.data.order import check_global_batch, ordinals, rank_positions
from stence_dist.data.sample import StoredSample
from stence_dist.data.shards import ShardSet
from stence_dist.data.sidecar import SampleTable
from stence_dist.ecg import EcgSpec, prepare_ecg, prepare_windows
from stence_dist.errors import DataError, RefusedError, SpecMismatchError
from stence_dist.seeds import generator

PREFETCH = 2  # batches that each worker holds ready, at least
PARENT_CHECK_S = 0.5
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_Read = Callable[[Sequence[int]], list[PairSample]]


class PairReader(Dataset[PairSample]):
    """Selected rows of one split as training items (by position) or evaluation items (by row).

    rows (k,) are row numbers of the split's table; training positions run over them in `order`'s permutations. Every
    draw is a function of (seed, position, sample) alone. `augment=None` takes first windows and all views. `drop_rates`
    (K,) are the encoder's. `verify`: off | first_pass | always, CRC-32 of what is read;
    first_pass checks training items of the first epoch, studies from copies and every evaluation item. `partners` (k,)
    are the rows whose studies, with their segments, training items get instead of their own: the shuffled control.
    `copies` are sets of the same rows: a training item's study comes from `shards` or one of them, drawn per sample and
    epoch.
    """

    def __init__(
        self,
        shards: ShardSet,
        split: str,
        rows: NDArray[np.int64],
        spec: EcgSpec,
        *,
        seed: int,
        augment: EcgAugmentConfig | None,
        views: bool,
        drop_rates: Sequence[float] = (),
        verify: str = "first_pass",
        partners: NDArray[np.int64] | None = None,
        copies: Sequence[ShardSet] = (),
    ) -> None:
        self.shards = shards
        self.split = split
        self.rows = rows
        self.spec = spec
        self.seed = seed
        self.augment = augment
        self.views = views
        self.drop_rates = tuple(drop_rates)
        self.verify = verify
        self.partners = rows if partners is None else partners
        self.copies = tuple(copies)

    def __len__(self) -> int:
        """Samples per epoch."""
        return len(self.rows)

    def __getitem__(self, position: int) -> PairSample:
        return self.sample(position)

    @property
    def table(self) -> SampleTable:
        """What the sidecars say about every row of the split."""
        return self.shards.table(self.split)

    def sample(self, position: int) -> PairSample:
        """The training item at one position; ecg (L, T)."""
        return self.training_samples([position])[0]

    def training_samples(self, positions: Sequence[int]) -> list[PairSample]:
        """The training items at `positions`."""
        which = ordinals(np.asarray(positions, dtype=np.int64), len(self.rows), self.seed)
        samples = []
        for position, row, partner in zip(positions, self.rows[which], self.partners[which], strict=True):
            with self._named(int(row)):
                samples.append(self._training_sample(position, int(row), int(partner)))
        return samples

    def evaluation_samples(self, rows: Sequence[int]) -> list[PairSample]:
        """The evaluation items of `rows` of the split's table; ecg (windows, L, T), nothing drawn, all views."""
        samples = []
        for row in rows:
            with self._named(row):
                samples.append(self._evaluation_sample(row))
        return samples

    @contextlib.contextmanager
    def _named(self, row: int) -> Iterator[None]:
        """Add to an error that nobody foresaw which sample it met; torch hands a worker's notes on as text."""
        try:
            yield
        except RefusedError:
            raise
        except Exception as error:
            error.add_note(f"({self._where(row)})")
            raise

    def _training_sample(self, position: int, row: int, partner: int) -> PairSample:
        stored = self._stored(position, row, partner)
        number = int(self.table.sample[row])
        chosen = np.arange(0 if stored.views is None else len(stored.views))
        if self.augment is None:
            ecg = self._prepare(stored, row, prepare_ecg)
        else:
            draws = generator(self.seed, "augment ecg", position, number)
            place = float(draws.random()) if self.augment.random_crop else 0.0
            ecg = self._prepare(stored, row, functools.partial(prepare_ecg, place=place))
            ecg = augment_ecg(ecg, self.augment, self.spec.sampling_rate, draws)
            if self.views:
                assert isinstance(self.augment, AugmentConfig), "a reader of views gets the keys of views"
                draws = generator(self.seed, "augment views", position, number)
                chosen = keep_views(len(chosen), self.augment.drop_views, draws)
                stored = self._augment_frames(stored, self.augment, draws)
        kept = np.ones(0, dtype=np.bool_)
        if self.drop_rates:
            kept = keep_branches(self.drop_rates, generator(self.seed, "drop path", position, number))
        return self._assemble(row, partner, stored, ecg, chosen, kept)

    def _stored(self, position: int, row: int, partner: int) -> StoredSample:
        """The recording of `row` with the study of `partner`, from the set that is drawn for this sample and epoch."""
        epoch = position // len(self.rows)
        verify = self.verify == "always" or (self.verify == "first_pass" and epoch == 0)
        source = self.shards
        if self.copies:
            draws = generator(self.seed, "copy", epoch, int(self.table.sample[row]))
            source = (self.shards, *self.copies)[int(draws.integers(1 + len(self.copies)))]
        if source is self.shards and partner == row:
            return self._read(self.shards, row, verify=verify)
        stored = self.shards.read(self.split, row, views=False, verify=verify)
        # A copy may be read for the first time in any epoch.
        study = self._read(source, partner, verify=verify or (source is not self.shards and self.verify != "off"))
        return dataclasses.replace(stored, views=study.views, angulation=study.angulation)

    def _evaluation_sample(self, row: int) -> PairSample:
        stored = self._read(self.shards, row, verify=self.verify != "off")
        ecg = self._prepare(stored, row, prepare_windows)
        every = np.arange(0 if stored.views is None else len(stored.views))
        return self._assemble(row, row, stored, ecg, every, np.ones(len(self.drop_rates), dtype=bool))

    def _read(self, shards: ShardSet, row: int, *, verify: bool) -> StoredSample:
        stored = shards.read(self.split, row, views=self.views, verify=verify)
        if self.views and stored.views is None:
            raise DataError(f"{self._where(row)} has no views. Choose rows that have a study.")
        return stored

    def _prepare(
        self, stored: StoredSample, row: int, prepare: Callable[..., NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        try:
            return prepare(stored.signal(), leads=stored.leads, sampling_rate=stored.sampling_rate, spec=self.spec)
        except SpecMismatchError as error:
            raise SpecMismatchError(f"{self._where(row)}: {error}") from None

    def _augment_frames(self, stored: StoredSample, augment: AugmentConfig, draws: np.random.Generator) -> StoredSample:
        views = stored.views
        if views is None or views.dtype != np.uint8 or not augment.changes_frames:  # stored features are no frames
            return stored
        return dataclasses.replace(stored, views=np.stack([augment_frames(view, augment, draws) for view in views]))

    def _where(self, row: int) -> str:
        return f"cohort row {self.table.sample[row]} ({self.split}), patient {self.table.patient_key[row]}"

    def _assemble(
        self,
        row: int,
        study_row: int,
        stored: StoredSample,
        ecg: NDArray[np.float32],
        chosen: NDArray[np.int64],
        keep_path: NDArray[np.bool_],
    ) -> PairSample:
        views = stored.views
        if views is not None and len(chosen) < len(views):
            views = views[chosen]
        return PairSample(
            ecg=ecg,
            views=views if self.views else None,
            angulation=stored.angulation[chosen] if self.views else np.empty((0, 2), dtype=np.float32),
            segments=self.table.segments[study_row],
            patient=int(self.table.patient[row]),
            sample=int(self.table.sample[row]),
            keep_path=keep_path,
        )


def training_batches(
    reader: PairReader,
    *,
    start: int,
    stop: int,
    g: int,
    accumulation: int,
    rank: int,
    world_size: int,
    workers: int,
) -> Iterator[list[PairBatch]]:
    """For each step in start .. stop-1, this rank's `accumulation` micro-batches; ecg (B, L, T).

    The same for any number of workers. Raises ConfigError where g exceeds the reader's rows, DataError for a sample
    that cannot be read: training never skips one.
    """
    check_global_batch(g, len(reader))
    micro = g // (accumulation * world_size)
    positions = (
        [int(position) for position in micro_batch]
        for step in range(start, stop)
        for micro_batch in rank_positions(
            step, g=g, accumulation=accumulation, rank=rank, world_size=world_size, micro=micro
        )
    )
    # All of a step's are asked for at once: as many are read while the step before them is computed.
    batches = _batches(reader.training_samples, positions, workers, ahead=accumulation)
    return ([next(batches) for _ in range(accumulation)] for _ in range(start, stop))


def evaluation_batches(
    reader: PairReader, rows: NDArray[np.int64], batch_size: int, workers: int
) -> Iterator[PairBatch]:
    """`rows` of the split's table in the order given, `batch_size` at a time; ecg (B, windows, L, T)."""
    chunks = ([int(row) for row in rows[first : first + batch_size]] for first in range(0, len(rows), batch_size))
    return _batches(reader.evaluation_samples, chunks, workers)


class _Chunks(Dataset[PairBatch | RefusedError]):
    """Maps a list of positions or rows to their batch.

    An error that is the data's fault comes back as a value: torch would bury its message in a worker's traceback.
    """

    def __init__(self, read: _Read) -> None:
        self.read = read

    def __getitem__(self, numbers: Sequence[int]) -> PairBatch | RefusedError:
        try:
            return collate(self.read(numbers))
        except RefusedError as error:
            return error


def _batches(read: _Read, chunks: Iterable[list[int]], workers: int, ahead: int = 1) -> Iterator[PairBatch]:
    """The batches of `chunks`, at least `ahead` of which the workers hold ready."""
    loader = DataLoader(
        _Chunks(read),
        batch_size=None,
        sampler=chunks,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=max(PREFETCH, math.ceil(ahead / workers)) if workers else None,
        multiprocessing_context=_worker_context() if workers else None,
        worker_init_fn=_heed_parent if workers else None,
        pin_memory=torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
        generator=torch.Generator(),  # of its own, so that loading leaves torch's global stream alone
    )
    for batch in loader:
        if isinstance(batch, RefusedError):
            raise batch
        yield batch


def _as_it_is(batch: Any) -> Any:
    return batch


def _worker_context() -> Any:
    """A multiprocessing context whose workers are forked from a clean server, deaf to the signals that stop a run.

    A plain fork is not safe once gloo has started threads. A signal sent to the whole process group is for the rank
    alone, which still needs its batches until the step that it stops at; so the server starts with these signals
    blocked, and its workers inherit that from their first moment.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()  # unblocks some of the signals when it starts, so it goes first
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _heed_parent(_worker: int) -> None:
    """End this worker when the process that it loads for is gone, however that ended, or asks it to end.

    The stop signals are blocked, so a thread takes them in: SIGTERM from the parent, which is how Python ends workers
    that are still there when it exits, counts; the same from anyone else does not.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        while parent.is_alive():
            received = signal.sigtimedwait(STOP_SIGNALS, PARENT_CHECK_S)
            if received is not None and received.si_signo == signal.SIGTERM and received.si_pid == parent.pid:
                break
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
