"""Every way to get an ECG model from few labels, on one cohort: the label-efficiency comparison.

Repeat r uses label draw r and training seed `seed + r` in every arm, so that `finetune` with those two repeats one
cell. At labels=all there is nothing to draw, and repeats differ by training seed alone.
"""

import csv
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist import files
from stence_dist.config.compare import ARMS, NULL_ARMS, CompareConfig
from stence_dist.data.shards import ShardSet
from stence_dist.device import compute_device
from stence_dist.errors import ConfigError, SpecMismatchError
from stence_dist.evaluate.label_efficiency import ALL, REFERENCE_WEIGHT, ArmScores, Comparison, patients_for
from stence_dist.evaluate.probe import fit_probe
from stence_dist.evaluate.st_features import st_features
from stence_dist.evaluate.statistics import interval_text, sigmoid
from stence_dist.models.ecg_tower import EcgTower, build_ecg_tower, load_ecg_tower
from stence_dist.train.fits import Fit, network_logits, over_rows, train_networks
from stence_dist.train.labelled import (
    PREDICTION_COLUMNS,
    LabelledRows,
    age_sex_probabilities,
    labelled_rows,
    rows_to_learn_from,
)
from stence_dist.train.result_folder import (
    ANOTHER_SET,
    conclude,
    describe,
    pretrained_on,
    result_folder,
    result_identity,
)
from stence_dist.train.supervised import feature_scorer, score_rows

logger = logging.getLogger("stence_dist")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One arm at one number of labels."""

    arm: str
    labels: str  # as configured: "50", "10%", "all"
    stenosis_weight: float


def compare(config: CompareConfig) -> None:
    """Write summary.json and predictions.csv into config.run_dir unless they are there, and log the differences.

    Raises DataError where labels, weights or shards cannot be used, ConfigError where the folder holds another run.
    """
    shards = ShardSet.open(config.data.shards)
    folder = Path(config.run_dir)
    paths = {name: getattr(config, name) for name in ("weights", "unsupervised_weights", "shuffled_weights")}
    identity = result_identity(config, shards, paths)
    with result_folder(folder, "compare", identity) as wanted:
        if wanted:
            _make(config, shards, folder, identity)
    summary = files.read_json(folder / "summary.json")
    for row in summary["differences"]:
        found = interval_text(row["mean"], row["low"], row["high"])
        weight = row["stenosis_weight"]
        logger.info("%s at %s labels, stenosis_weight %g: %s", row["name"], row["labels"], weight, found)
    logger.info("%s", summary["note"])
    logger.info("%s", folder / "summary.json")


def _make(config: CompareConfig, shards: ShardSet, folder: Path, identity: dict[str, Any]) -> None:
    # Everything that can be refused is refused before any work.
    pool = labelled_rows(shards, "train", config, rows_to_learn_from(shards, config, ("train",))).require_both_classes()
    test = labelled_rows(shards, "test", config, "all").require_both_classes()
    draws = {labels: _draws(pool, labels, config) for labels in config.labels}
    towers = _towers(config)
    describe(folder, config, identity, shards)

    scores = _frozen_scores(config, shards, towers, draws, pool, test)
    scores |= _plain_scores(config, shards, draws, pool, test)
    scores |= _network_scores(config, shards, draws, test)

    order = sorted(
        scores, key=lambda cell: (ARMS.index(cell.arm), -cell.stenosis_weight, config.labels.index(cell.labels))
    )
    scores = {cell: scores[cell] for cell in order}
    arms = [ArmScores(cell.arm, _number(cell.labels), cell.stenosis_weight, scores[cell]) for cell in scores]
    comparison = Comparison(
        arms, test.labels, test.patient, draws=config.bootstrap, seed=config.seed, level=config.level
    )
    summary = {
        "arms": comparison.arm_rows("null" if config.null else "main"),
        "differences": [] if config.null else comparison.difference_rows(),
        **_provenance(config, shards, pool, test),
    }
    files.write_text(folder / "predictions.csv", _predictions(scores, test))
    files.write_json(folder / "summary.json", summary)
    conclude(folder)


def _number(labels: str) -> int | str:
    return int(labels) if labels.isdigit() else labels


def _draws(pool: LabelledRows, labels: str, config: CompareConfig) -> list[LabelledRows]:
    """The labelled rows of each repeat. All labelled patients make one draw, whatever asked for them."""
    everyone = patients_for(labels, len(np.unique(pool.patient))) == len(np.unique(pool.patient))
    repeats = config.repeats if labels == ALL or everyone else config.draws
    return [
        pool.draw(labels, repeat).require_both_classes(f"labels={labels}, draw {repeat},") for repeat in range(repeats)
    ]


def _arms(config: CompareConfig) -> list[str]:
    chosen = [arm for arm in config.arms if not config.null or arm in NULL_ARMS]
    chosen = [arm for arm in chosen if arm != "shuffled" or config.shuffled_weights]
    if not chosen:
        raise ConfigError(
            f"arms={config.arms} leaves nothing to compare: null=true takes {', '.join(NULL_ARMS)} only, and shuffled "
            "needs shuffled_weights=."
        )
    return chosen


def _check_pretraining(key: str, path: str, *, weight: float | None, shuffled: bool) -> float:
    """The stenosis weight of a tower, as its file states it, or `weight`, or the reference weight.

    Raises ConfigError where the file says that it was pretrained in another way than the key `key` wants.
    """
    pretraining = load_ecg_tower(path).pretraining
    stated, pairs = pretraining.get("stenosis_weight"), pretraining.get("shuffle_pairs")
    if stated is not None and weight is not None and stated != weight:
        raise ConfigError(
            f"{key}={path} was pretrained with loss.stenosis_weight={stated:g}, and {weight:g} is wanted there. "
            + ("Leave the key stenosis_weight out." if key == "weights" else "Give the tower of such a run.")
        )
    if pairs is not None and bool(pairs) != shuffled:
        raise ConfigError(
            f"{key}={path} was pretrained with shuffle_pairs={str(bool(pairs)).lower()}. Give the tower of a run with "
            f"shuffle_pairs={str(shuffled).lower()}."
        )
    return float(next((value for value in (weight, stated) if value is not None), REFERENCE_WEIGHT))


def _pretrained(config: CompareConfig) -> dict[float, str]:
    """Weights under test by their stenosis weight; `weights` comes first."""
    weight = _check_pretraining("weights", config.weights, weight=config.stenosis_weight, shuffled=False)
    found = {weight: config.weights}
    if config.unsupervised_weights:
        _check_pretraining("unsupervised_weights", config.unsupervised_weights, weight=0.0, shuffled=False)
        if 0.0 in found:
            raise ConfigError("weights= and unsupervised_weights= are two runs at stenosis weight 0. Give one of them.")
        found[0.0] = config.unsupervised_weights
    return found


def _towers(config: CompareConfig) -> dict[tuple[str, float], EcgTower]:
    """The frozen towers whose features are probed, by arm and stenosis weight."""
    arms = _arms(config)
    towers = {("probe", weight): load_ecg_tower(path) for weight, path in _pretrained(config).items()}
    reference = next(iter(towers.values()))
    if "random" in arms:
        towers["random", REFERENCE_WEIGHT] = build_ecg_tower(reference.config, None, config.seed)
    if "shuffled" in arms:
        path = str(config.shuffled_weights)
        weight = _check_pretraining("shuffled_weights", path, weight=None, shuffled=True)
        towers["shuffled", weight] = load_ecg_tower(path)
    for (arm, weight), tower in towers.items():
        if tower.spec != reference.spec:
            raise SpecMismatchError(
                f"The weights of {arm} (stenosis weight {weight:g}) expect {tower.spec.to_dict()}, `weights` expects "
                f"{reference.spec.to_dict()}. Compare towers of one recipe."
            )
    return {where: tower for where, tower in towers.items() if where[0] in arms}


def _frozen_scores(
    config: CompareConfig,
    shards: ShardSet,
    towers: Mapping[tuple[str, float], EcgTower],
    draws: Mapping[str, list[LabelledRows]],
    pool: LabelledRows,
    test: LabelledRows,
) -> dict[Cell, Floats]:
    """Probes on frozen features: each tower sees every row once, in one pass over the data."""
    if not towers:
        return {}
    device = compute_device()
    scorers = {f"{arm} {weight:g}": feature_scorer(tower.to(device).eval()) for (arm, weight), tower in towers.items()}
    both = []
    for part in (pool, test):
        read = partial(
            score_rows,
            shards,
            part.split,
            spec=next(iter(towers.values())).spec,
            scorers=scorers,
            batch_size=config.batch_size,
            workers=0,
            verify=config.data.verify,
            device=device,
        )
        pieces = over_rows(config.workers, f"features of {part.split}", read, part.rows)
        both.append({name: np.concatenate([piece[name] for piece in pieces]) for name in scorers})
    found = {}
    for arm, weight in towers:
        known, asked = (features[f"{arm} {weight:g}"] for features in both)
        for labels, repeats in draws.items():
            found[Cell(arm, labels, weight)] = _probe_scores(config, known, asked, pool, repeats)
    return found


def _plain_scores(
    config: CompareConfig,
    shards: ShardSet,
    draws: Mapping[str, list[LabelledRows]],
    pool: LabelledRows,
    test: LabelledRows,
) -> dict[Cell, Floats]:
    """The informed baselines: hand-made ST/T measurements, and age with sex."""
    found: dict[Cell, Floats] = {}
    arms = _arms(config)
    if "hand" in arms:
        known, asked = (
            np.concatenate(
                over_rows(
                    config.workers,
                    f"ST/T of {part.split}",
                    partial(_hand_features, shards, part.split, config.data.verify),
                    part.rows,
                )
            )
            for part in (pool, test)
        )
        for labels, repeats in draws.items():
            found[Cell("hand", labels, REFERENCE_WEIGHT)] = _probe_scores(config, known, asked, pool, repeats)
    if "age_sex" in arms:
        for labels, repeats in draws.items():
            values = [
                age_sex_probabilities(rows, test, seed=config.seed + repeat) for repeat, rows in enumerate(repeats)
            ]
            known_values = [value for value in values if value is not None]
            if len(known_values) < len(values):
                logger.warning("%s labels: age and sex are unknown in a whole draw; no age + sex arm.", labels)
            else:
                found[Cell("age_sex", labels, REFERENCE_WEIGHT)] = np.stack(known_values)
    return found


def _probe_scores(
    config: CompareConfig,
    known: NDArray[np.float32],
    asked: NDArray[np.float32],
    pool: LabelledRows,
    repeats: list[LabelledRows],
) -> Floats:
    """Test probabilities (repeats, n) of one probe per draw on features of the pool and of the test rows."""
    values = []
    for repeat, rows in enumerate(repeats):
        at = np.searchsorted(pool.rows, rows.rows)
        values.append(fit_probe(known[at], rows.labels, rows.patient, seed=config.seed + repeat).predict(asked))
    return np.stack(values)


def _hand_features(shards: ShardSet, split: str, verify: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """ST/T features (n, 24) of the recordings themselves."""
    values = []
    for row in rows:
        stored = shards.read(split, int(row), views=False, verify=verify != "off")
        values.append(st_features(stored.signal(), stored.sampling_rate))
    return np.stack(values)


def _network_scores(
    config: CompareConfig, shards: ShardSet, draws: Mapping[str, list[LabelledRows]], test: LabelledRows
) -> dict[Cell, Floats]:
    """Networks trained on labels, from pretrained and from fresh weights."""
    arms = _arms(config)
    starts = [("finetune", weight, path) for weight, path in _pretrained(config).items() if "finetune" in arms]
    starts += [("scratch", REFERENCE_WEIGHT, config.weights)] if "scratch" in arms else []
    planned = [
        (Cell(arm, labels, weight), Fit(rows, path, arm == "scratch", config.seed + repeat))
        for labels, repeats in draws.items()
        for arm, weight, path in starts
        for repeat, rows in enumerate(repeats)
    ]
    if not planned:
        return {}
    networks = train_networks(config, shards, [fit for _, fit in planned])
    found: dict[Cell, list[Floats]] = {}
    for (cell, _), logits in zip(planned, network_logits(config, shards, networks, test), strict=True):
        found.setdefault(cell, []).append(sigmoid(logits))
    return {cell: np.stack(values) for cell, values in found.items()}


def _pretrained_on(config: CompareConfig, shards: ShardSet) -> str:
    """What `pretrained_on` says of `weights`, or of the first tower beside it that comes from another shard set."""
    paths = (config.weights, config.unsupervised_weights, config.shuffled_weights)
    said = [pretrained_on(load_ecg_tower(path), shards) for path in paths if path]
    return ANOTHER_SET if ANOTHER_SET in said else said[0]


def _provenance(config: CompareConfig, shards: ShardSet, pool: LabelledRows, test: LabelledRows) -> dict[str, Any]:
    """What the figures of a summary were measured on and how."""
    return {
        "cohort": "null" if config.null else "main",
        "target": config.task.target,
        "rows": pool.kind,
        "pool": pool.counts(),
        "test": test.counts(),
        "draws": config.draws,
        "repeats": config.repeats,
        "pretrained_on": _pretrained_on(config, shards),
        "interval": {
            "level": config.level,
            "draws": config.bootstrap,
            "over": "label draws x test patients (all labels: training seeds x test patients)",
        },
        "note": (
            "Research use only. labels counts ECG-side labels: pretraining with stenosis_weight > 0 has also seen the "
            "angiographic labels of all its pairs."
        ),
    }


def _predictions(scores: Mapping[Cell, Floats], test: LabelledRows) -> str:
    """Test predictions of the first repeat of every cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "labels", "stenosis_weight", *PREDICTION_COLUMNS])
    for cell, values in scores.items():
        where = [cell.arm, cell.labels, cell.stenosis_weight]
        writer.writerows([*where, *line] for line in test.predictions(values[0]))
    return text.getvalue()
