"""What a pretraining run will do: its length, its pairs, their labels and its identity, before any model is built."""

import dataclasses
import itertools
import json
import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stence_dist import distributed, files, seeds
from stence_dist.config.ecg_encoder import OTIS_SIZES, EcgEncoderConfig, OtisConfig
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.data.exclusion import kept_rows
from stence_dist.data.order import batch_hash, global_batch, ordinals
from stence_dist.data.shards import ShardSet
from stence_dist.data.sidecar import SampleTable
from stence_dist.engine import resolve_precision
from stence_dist.errors import ConfigError, DataError
from stence_dist.models.ecg_tower import EcgTower, load_ecg_tower
from stence_dist.targets import STENOSIS_PARTS, stenosis_labels
from stence_dist.train.run_folder import identity
from stence_dist.train.validate import BEST_METRICS

logger = logging.getLogger("stence_dist")

_STEPS_AT_ONCE = 32
_DRY_RUN_ROWS = 64  # validation pairs of a dry run
# Of an encoder's config, what may differ from that of init_from: how it is trained and evaluated, not what it is.
_FREE_ENCODER_KEYS = {"windows", "drop_path", "checkpointing"}
# What nobody chooses where there is a file: how its tables are laid out, and the form of its MLPs.
_STORED_KEYS = {"positions", "domain_rows", "ecg_offset", "mlp", "mlp_hidden"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will do, known before any model is built. Equal on all ranks."""

    config: PretrainConfig
    shards: ShardSet
    table: SampleTable
    rows: NDArray[np.int64]  # (N,) rows of the training table that are pairs
    study_rows: NDArray[np.int64]  # (N,) whose study each of them gets: its own, unless shuffle_pairs
    validation_rows: NDArray[np.int64]  # (M,) rows of the validation table that are pairs
    copies: tuple[ShardSet, ...]  # sets of the same rows, with other views
    labels: NDArray[np.float32]  # (N, 11), NaN = unknown or target not used
    used_targets: NDArray[np.bool_]  # (11,) False where a target has one class only
    total_steps: int
    identity: dict[str, Any]

    @property
    def config_hash(self) -> str:
        """Hash of everything that decides what the run computes."""
        return files.sha256_json(self.identity)

    def batch_hash(self, step: int) -> str:
        """`batch_hash` of the global batch of `step`."""
        _, chosen = global_batch(step, self.config.engine.global_batch_size, len(self.rows), self.config.seed)
        return batch_hash(self.table.sample[self.rows[chosen]])

    def known_counts(self, start: int) -> Iterator[torch.Tensor]:
        """(3,) known labels in each part of the stenosis loss, for the global batches of `start` and all steps after.

        Some steps at a time: the order of one small batch costs as much as that of thousands of positions.
        """
        size = self.config.engine.global_batch_size
        for first in itertools.count(start, _STEPS_AT_ONCE):
            positions = np.arange(first * size, (first + _STEPS_AT_ONCE) * size, dtype=np.int64)
            known = ~np.isnan(self.labels[ordinals(positions, len(self.rows), self.config.seed)])
            parts = [known[:, part].reshape(_STEPS_AT_ONCE, -1).sum(axis=1) for part in STENOSIS_PARTS]
            yield from torch.from_numpy(np.stack(parts, axis=1))


def plan(config: PretrainConfig, device: torch.device) -> Plan:
    """Read the index, check that the run is possible, and fix its length. Raises RefusedError where it is not.

    The plan's config is the resolved one: the precision of this device, the tables of the encoder in init_from.
    """
    config = dataclasses.replace(
        config, engine=dataclasses.replace(config.engine, precision=resolve_precision(config.engine, device))
    )
    config.engine.micro_batch(distributed.world_size())
    if config.best_metric not in BEST_METRICS:
        raise ConfigError(
            f"best_metric={config.best_metric} is not measured, or not better when larger. "
            f"Use one of: {', '.join(BEST_METRICS)}."
        )
    shards = ShardSet.open(config.data.shards)
    table = shards.table("train")
    rows, validation_rows = (_pair_rows(shards, split, config) for split in ("train", "val"))
    for split, count in (("train", len(rows)), ("val", len(validation_rows))):
        if count < 2:
            raise DataError(f"data.shards={config.data.shards}: {count} pairs in {split}; pretraining needs 2 or more.")
    if config.dry_run:
        validation_rows = validation_rows[:_DRY_RUN_ROWS]
    pairs_per_step = config.engine.global_batch_size
    total = config.steps if config.steps is not None else math.ceil(config.epochs * len(rows) / pairs_per_step)
    global_batch(0, pairs_per_step, len(rows), config.seed)  # refuses G > N
    study_rows = _partners(table.patient[rows], rows, config.seed) if config.shuffle_pairs else rows
    labels = stenosis_labels(table.segments[study_rows], config.targets, table.has_study[study_rows])
    used = _used_targets(labels, config)
    copies = _copies(shards, config)
    if config.init_from:
        encoder = _started_encoder(load_ecg_tower(config.init_from), config)
        config = dataclasses.replace(config, ecg_encoder=encoder)
    return Plan(
        config=config,
        shards=shards,
        table=table,
        rows=rows,
        study_rows=study_rows,
        validation_rows=validation_rows,
        copies=copies,
        labels=np.where(used, labels, np.nan).astype(np.float32),
        used_targets=used,
        total_steps=total,
        identity=identity(config, total_steps=total, fingerprint=shards.fingerprint) | _origins(config, copies),
    )


def _origins(config: PretrainConfig, copies: tuple[ShardSet, ...]) -> dict[str, Any]:
    """What else a run is made from, by content: files and folders may move."""
    origins: dict[str, Any] = {"data.copies": [copy.fingerprint for copy in copies]} if copies else {}
    if config.init_from:
        origins["init_from"] = files.sha256_file(config.init_from)
    return origins


def _copies(shards: ShardSet, config: PretrainConfig) -> tuple[ShardSet, ...]:
    """The sets of data.copies. Raises DataError where one does not hold the training rows of data.shards."""
    copies = tuple(ShardSet.open(folder) for folder in config.data.copies)
    ours = shards.table("train").entries
    for folder, copy in zip(config.data.copies, copies, strict=True):
        theirs = copy.table("train").entries
        if copy.dataset != shards.dataset or any(
            not np.array_equal(ours[column], theirs[column]) for column in ("sample", "patient_key", "view_count")
        ):
            raise DataError(
                f"data.copies={folder} does not hold the training rows of data.shards={config.data.shards}, with views "
                "of the same number and shape. Build it from the same table and key file, with another study_path."
            )
    return copies


def starting_weights(config: PretrainConfig) -> dict[str, torch.Tensor]:
    """The ECG tower's tensors in init_from, those of the projector where its width fits; {} without init_from.

    config is a plan's. Raises DataError for a file that is no ECG tower's, ConfigError where it has another encoder.
    """
    if not config.init_from:
        return {}
    tower = load_ecg_tower(config.init_from)
    encoder = _started_encoder(tower, config)
    assert encoder == config.ecg_encoder, "the config of a plan has the tables of init_from"
    stored = " ".join(f"{name}={value}" for name, value in vars(encoder).items() if name in _STORED_KEYS)
    if stored:
        logger.info("ecg_encoder as %s has it: %s", config.init_from, stored)
    taken = tower.state_dict()
    if tower.embedding == config.embedding:
        return taken
    return {name: value for name, value in taken.items() if not name.startswith("projector.")}


def _started_encoder(tower: EcgTower, config: PretrainConfig) -> EcgEncoderConfig:
    """The run's encoder with what the file in init_from decides. Raises ConfigError where it is another encoder."""
    there, here = tower.config, config.ecg_encoder
    fixed = [name for name in vars(there) if name not in _FREE_ENCODER_KEYS | _STORED_KEYS]
    differing = ["name"] if there.name != here.name else fixed
    differing = sorted(name for name in differing if getattr(there, name) != getattr(here, name))
    if differing:
        listed = ", ".join(f"{name}={getattr(there, name)} there and {getattr(here, name)} here" for name in differing)
        raise ConfigError(
            f"init_from={config.init_from} is not the encoder of this run, ecg_encoder has {listed}. "
            f"Add {_typed(there, here)}, or give another file."
        )
    return dataclasses.replace(here, **{name: value for name, value in vars(there).items() if name in _STORED_KEYS})


def _typed(there: EcgEncoderConfig, here: EcgEncoderConfig) -> str:
    """The keys that turn the encoder `here` into `there`, as they are typed."""
    choice = _choice(there)
    typed = [] if choice == _choice(here) else [f"ecg_encoder={choice}"]
    given = vars(here) if type(here) is type(there) else {**vars(type(there)()), "seconds": here.seconds}
    if choice in OTIS_SIZES and typed:
        given = {**given, **dict(zip(("width", "depth", "heads"), OTIS_SIZES[choice], strict=True))}
    for name, value in vars(there).items():
        if name not in {"name"} | _FREE_ENCODER_KEYS | _STORED_KEYS and value != given[name]:
            typed.append(f"ecg_encoder.{name}={json.dumps(value, separators=(',', ':'))}")
    return " ".join(typed)


def _choice(encoder: EcgEncoderConfig) -> str:
    """The encoder's YAML in its group; that of the smallest size where OTiS has none."""
    if not isinstance(encoder, OtisConfig):
        return encoder.name
    sizes = (encoder.width, encoder.depth, encoder.heads)
    return next((name for name, published in OTIS_SIZES.items() if published == sizes), next(iter(OTIS_SIZES)))


def _pair_rows(shards: ShardSet, split: str, config: PretrainConfig) -> NDArray[np.int64]:
    """The rows (n,) of a split that are pairs and take part."""
    return np.flatnonzero(shards.table(split).has_study & kept_rows(shards, split, config.cohort.exclude))


def _used_targets(labels: NDArray[np.float32], config: PretrainConfig) -> NDArray[np.bool_]:
    """(11,) targets with both classes. A one-class patient target is an error, another one leaves the loss."""
    used = np.array([bool((column == 0).any() and (column == 1).any()) for column in labels.T])
    if config.loss.stenosis_weight == 0:
        return used
    if not used[0]:
        present = "positive" if (labels[:, 0] == 1).any() else "negative" if (labels[:, 0] == 0).any() else "unknown"
        raise DataError(
            f"Every training pair is {present} for the target patient, so the stenosis loss cannot learn it. Where "
            "unreported segments are normal set targets.unreported=normal; otherwise lower targets.threshold or set "
            "loss.stenosis_weight=0."
        )
    return used


def _partners(patient: NDArray[np.int64], rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """(N,) for each of `rows` the row whose study it gets instead: a cyclic shift in a seeded patient order.

    patient (N,) of each row. Rows are ordered by shuffled patient, so a shift by the largest number of rows of one
    patient never stays inside a patient. Raises DataError where one patient has more than half of all rows.
    """
    unique, inverse, counts = np.unique(patient, return_inverse=True, return_counts=True)
    if 2 * counts.max() > len(rows):
        raise DataError(
            f"shuffle_pairs=true: one patient has {counts.max()} of the {len(rows)} pairs, so that some would keep a "
            "study of their own. Use a cohort of more patients."
        )
    order = np.argsort(seeds.generator(seed, "shuffle_pairs").permutation(len(unique))[inverse], kind="stable")
    partners = np.empty_like(rows)
    partners[order] = rows[np.roll(order, int(counts.max()))]
    return partners
