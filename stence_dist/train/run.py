"""One pretraining in progress: its engine, batches, files, and what is due after each update."""

import dataclasses
import logging
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from stence_dist import checkpoint, distributed
from stence_dist.data.exclusion import exclusion_counts
from stence_dist.data.loader import PairReader, training_batches
from stence_dist.engine import build, full_state
from stence_dist.errors import DataError, StoppedError
from stence_dist.evaluate.stored_embeddings import StoredEmbeddings, save_embeddings
from stence_dist.models.ecg_tower import save_ecg_tower
from stence_dist.models.pair_model import build_pair_model
from stence_dist.profile import StepProfiler, span
from stence_dist.targets import STENOSIS_TARGETS
from stence_dist.train.plan import Plan, starting_weights
from stence_dist.train.run_folder import RunFolder, check_nothing_saved
from stence_dist.train.validate import Embedded, Validation
from stence_dist.train_step import listed, train_step

logger = logging.getLogger("stence_dist")


class Stop(NamedTuple):
    """Why a run is asked to stop, and whether by SIGTERM."""

    why: str
    terminated: bool


class StopRequest:
    """Set by SIGUSR1, a file STOP in the run folder or, once training runs, SIGTERM; ranks agree on it per step."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "STOP"
        self._signal: signal.Signals | None = None
        signal.signal(signal.SIGUSR1, self._remember)

    def heed_termination(self) -> None:
        """From now on SIGTERM stops the run after a step instead of ending the process at once.

        While engine and groups are built a rank may wait for a dead peer in C++, where Python's handlers do not run:
        SIGTERM, by which launchers end the ranks that are left, must then end it.
        """
        signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, number: int, _frame: object) -> None:
        self._signal = signal.Signals(number)

    def ask(self) -> Callable[[], Stop | None]:
        """Begin to agree on whether to stop: the call says why, None to go on, at the same step on all ranks."""
        here = self._signal.name if self._signal else None
        if here is None and distributed.rank() == 0 and self.file.exists():
            here = str(self.file)
        # 2 for SIGTERM to any rank, 1 for any other request.
        agreed = distributed.largest_later(0 if here is None else 1 + (self._signal == signal.SIGTERM))

        def answer() -> Stop | None:
            kind = agreed()
            return Stop(here or "a signal to another rank", terminated=kind == 2) if kind else None

        return answer


class Run:
    """The moving parts of one pretraining; `train.pretrain` has the loop over them."""

    def __init__(self, prepared: Plan, device: torch.device, folder: Path) -> None:
        self.plan, self.device, self.path = prepared, device, folder
        self.config = prepared.config
        self.files = RunFolder(folder, writes=distributed.rank() == 0)
        self.stop = StopRequest(folder)
        self.best: checkpoint.Best | None = None
        self.validation = Validation(prepared.shards, self.config, prepared.rows, prepared.validation_rows)
        self.waited_s, self.saved_s = 0.0, 0.0
        self.done = 0  # updates
        self.samples = torch.empty(0, dtype=torch.int64)  # of this rank, while an update is computed

    def start(self) -> None:
        """Build engine and loader, load the newest checkpoint."""
        config, dataset = self.config, self.plan.shards.dataset
        tokens_width = dataset.width if dataset.kind == "tokens" else None
        model, self.evaluation_model = (
            build_pair_model(
                config,
                tokens_width=tokens_width,
                max_views=dataset.max_views,
                frames=dataset.frames,
                tokens=dataset.tokens,
            ).to(self.device)
            for _ in range(2)
        )
        # Before the engine takes its own copy. A checkpoint, where there is one, replaces all weights.
        started_from = starting_weights(config)
        model.ecg_tower.load_state_dict({**model.ecg_tower.state_dict(), **started_from})
        self.engine = build(model, config, device=self.device)
        loaded = checkpoint.load_newest(self.path / "checkpoints", self.engine)
        distributed.refuse_together(lambda: self._check_loaded(loaded))
        step = self.done = loaded.state.step if loaded else 0
        self.best = loaded.best if loaded else None
        if self.best and self.best.metric != config.best_metric:
            logger.warning(
                "best_metric was %s and is %s now: the best is chosen anew from here on",
                self.best.metric,
                config.best_metric,
            )
            self.best = None
        self.files.open(config, self._data(), step=step)
        self.files.status("running", step)
        world, rank = distributed.world_size(), distributed.rank()
        if rank == 0:
            left_out = [name for name, use in zip(STENOSIS_TARGETS, self.plan.used_targets, strict=True) if not use]
            if left_out and config.loss.stenosis_weight > 0:
                logger.warning("One class only in training, left out of the stenosis loss: %s", ", ".join(left_out))
            place = f"going on after step {step}" if loaded else "starting at step 0"
            if started_from and not loaded:
                fresh = "" if any(name.startswith("projector.") for name in started_from) else ", a fresh projector"
                place += f" from {config.init_from}{fresh}"
            logger.info(
                "%s: %d pairs, %d steps of %d on %d rank(s), ZeRO %d, %s; %s",
                self.path,
                len(self.plan.rows),
                self.plan.total_steps,
                config.engine.global_batch_size,
                world,
                config.engine.zero_stage,
                config.engine.precision,
                place,
            )
        reader = PairReader(
            self.plan.shards,
            "train",
            self.plan.rows,
            model.ecg_tower.spec,
            seed=config.seed,
            augment=config.data.augment,
            views=True,
            drop_rates=model.ecg_tower.encoder.drop_rates,
            verify=config.data.verify,
            partners=self.plan.study_rows,
            copies=self.plan.copies,
        )
        self.known = self.plan.known_counts(step)
        self.batches = training_batches(
            reader,
            start=step,
            stop=self.plan.total_steps,
            g=config.engine.global_batch_size,
            accumulation=config.engine.accumulation,
            rank=rank,
            world_size=world,
            workers=config.data.workers,
        )
        quiet = rank != 0 or not sys.stderr.isatty()
        self.bar = tqdm(total=self.plan.total_steps, initial=step, unit="step", disable=quiet, dynamic_ncols=True)
        self.profiler = StepProfiler(self.path / "profile", step) if config.engine.profile else None
        self.stop.heed_termination()
        self.logged_at, self.logged_step = time.perf_counter(), step  # what came before is no part of the training rate

    def _check_loaded(self, loaded: checkpoint.Loaded | None) -> None:
        if loaded is None:
            check_nothing_saved(self.path)
        elif loaded.state != self._state(loaded.state.step):
            raise DataError(
                f"{loaded.path} belongs to another run: its config or its shards are not those of {self.path}. Put "
                "this run's own checkpoints there, or choose another run_dir."
            )

    def place(self) -> str:
        """Where the run is, for the message of what went wrong there."""
        place = f"step {self.done + 1} of {self.plan.total_steps}"
        return f"{place}, samples {listed(self.samples)}" if len(self.samples) else place

    def _state(self, step: int) -> checkpoint.TrainState:
        return checkpoint.TrainState(step, self.plan.config_hash, self.plan.shards.fingerprint)

    def _data(self) -> dict[str, Any]:
        return {
            "shards": str(Path(self.config.data.shards).resolve()),
            "fingerprint": self.plan.shards.fingerprint,
            "pairs": {"train": len(self.plan.rows), "val": len(self.plan.validation_rows)},
            "excluded": exclusion_counts(self.plan.shards, self.config.cohort.exclude),
            "identity": self.plan.identity,
        }

    def step(self) -> None:
        """One optimizer update, and what is due after it: a row, a validation, a checkpoint, a stop."""
        step = self.done
        waiting = time.perf_counter()
        with span("data_wait"):
            micro_batches = next(self.batches)
        self.samples = torch.cat([batch.sample for batch in micro_batches])
        self.waited_s += time.perf_counter() - waiting
        stop = self.stop.ask()
        result = train_step(
            self.engine,
            micro_batches,
            step=step,
            total=self.plan.total_steps,
            known=next(self.known),
            config=self.config,
            active=self.plan.used_targets,
        )
        self.samples = self.samples[:0]
        done = step + 1
        last = done == self.plan.total_steps
        self.bar.update()
        if last or done % self.config.log_every == 0:
            self._log(done, self.plan.batch_hash(step), dataclasses.asdict(result))
        asked = stop()
        stopping = None if last else asked
        with span("validation"):
            improved = (last or done % self.config.eval_every == 0) and self._evaluate(done)
        if last or stopping or improved or done % self.config.save_every == 0:
            self._save(done)
        self.done = done
        if self.profiler:
            self.profiler.step()
        if stopping:
            self.files.status("stopped", done, f"stopped on request ({stopping.why})")
            self.stop.file.unlink(missing_ok=True)
            self._close()
            raise StoppedError(
                f"stopped after step {done} on request ({stopping.why}); the same command goes on from there.",
                terminated=stopping.terminated,
            )

    def _log(self, done: int, batch_digest: str, values: dict[str, Any]) -> None:
        now, steps = time.perf_counter(), done - self.logged_step
        rate = steps * self.config.engine.global_batch_size / (now - self.logged_at)
        row = {"step": done, **values, "batch_hash": batch_digest}
        row |= {"samples_per_s": rate, "data_wait_s": self.waited_s / steps, "save_s": self.saved_s}
        self.files.row(row)
        self.logged_at, self.logged_step, self.waited_s, self.saved_s = now, done, 0.0, 0.0
        self.bar.set_postfix(loss=f"{values['loss']:.4f}", samples_per_s=f"{rate:.0f}")
        if distributed.rank() == 0 and self.bar.disable:
            left = (self.plan.total_steps - done) * self.config.engine.global_batch_size / rate
            logger.info(
                "step %d/%d loss %.4f, %.0f samples/s, %.0f s left",
                done,
                self.plan.total_steps,
                values["loss"],
                rate,
                left,
            )

    def _save(self, done: int) -> None:
        started = time.perf_counter()
        with span("save"):
            self.files.sync()
            folder, state = self.path / "checkpoints", self._state(done)
            checkpoint.save(folder, self.engine, state, best=self.best, keep_last=self.config.keep_last)
            self.files.status("running", done, saved_step=done)
        stood_s = time.perf_counter() - started
        self.saved_s += stood_s
        self.logged_at += stood_s  # no part of the training rate
        if distributed.rank() == 0:
            logger.info("step %d saved; training stood still for %.2f s", done, stood_s)

    def _evaluate(self, done: int) -> bool:
        """Validate; True where this is the best model so far, whose tower is then written."""
        started = time.perf_counter()
        state = full_state(self.engine)
        self.evaluation_model.load_state_dict(state)
        metrics, embedded = self.validation.run(self.evaluation_model, self.device)
        # One rank's value for all: another processor may round it to the other side of the best.
        value = float(distributed.broadcast_bytes(repr(metrics[self.config.best_metric]).encode()))
        self.files.row({"step": done, "split": "val", **metrics, "evaluation_s": time.perf_counter() - started})
        if distributed.rank() == 0:
            logger.info("step %d %s %.4f", done, self.config.best_metric, value)
        improved = not math.isnan(value) and (self.best is None or value > self.best.value)
        if improved:
            self.best = checkpoint.Best(step=done, value=value, metric=self.config.best_metric)
            self._write_tower("ecg_tower_best.safetensors", state)
        if distributed.rank() == 0:
            self._show(embedded, done)
        self.logged_at += time.perf_counter() - started  # a validation is not part of the training rate
        return improved

    def _show(self, embedded: Embedded, done: int) -> None:
        """Pictures where they are due; at the end what a report draws its own from. Rank 0 alone, no collectives."""
        every, last = self.config.pictures_every, done == self.plan.total_steps
        if last:
            sample = self.plan.shards.table("val").sample[self.validation.rows]
            save_embeddings(self.path, StoredEmbeddings(sample, embedded.ecg, embedded.image))
        if not every or (not last and done // self.config.eval_every % every):
            return
        from stence_dist.train.pictures import pictures  # imports matplotlib

        try:
            for tag, drawing in pictures(
                embedded, self.validation, self.evaluation_model, self.plan.shards, self.config
            ):
                self.files.picture(tag, drawing.pixels(), done)
        except Exception:  # a run is worth more than its pictures, and goes on without
            logger.warning("step %d: pictures could not be drawn", done, exc_info=True)

    def _write_tower(self, name: str, state: dict[str, torch.Tensor]) -> None:
        if distributed.rank() == 0:
            prefix = "ecg_tower."
            tower = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            made_by = {
                "shards": self.plan.shards.fingerprint,
                "stenosis_weight": self.config.loss.stenosis_weight,
                "shuffle_pairs": self.config.shuffle_pairs,
            }
            save_ecg_tower(self.path / name, self.evaluation_model.ecg_tower, state=tower, pretraining=made_by)

    def finish(self) -> None:
        """Write the last tower and close the run."""
        self._write_tower("ecg_tower.safetensors", full_state(self.engine))
        self.files.status("finished", self.plan.total_steps)
        self._close()
        if self.best is None:
            logger.warning(
                "%s was never defined, so there is no ecg_tower_best.safetensors; one class in validation, perhaps. "
                "Use ecg_tower.safetensors.",
                self.config.best_metric,
            )
        if distributed.rank() == 0:
            logger.info("finished: %s", self.path / "ecg_tower.safetensors")

    def _close(self) -> None:
        if self.profiler:
            self.profiler.close()
        self.bar.close()
        self.files.close()
