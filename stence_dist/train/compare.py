"""Every way to get an ECG model from few labels, on one cohort: the label-efficiency comparison.

Repeat r uses label draw r and training seed `seed + r` in every arm, so that `finetune` with those two repeats one
cell. At labels=all there is nothing to draw, and repeats differ by training seed alone.
"""

import csv
import io
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from stence_dist import files
from stence_dist.config.compare import ARMS, NULL_ARMS, CompareConfig
from stence_dist.data.shards import ShardSet
from stence_dist.errors import ConfigError, SpecMismatchError
from stence_dist.evaluate.label_efficiency import ALL, REFERENCE_WEIGHT, ArmScores, Comparison, patients_for
from stence_dist.evaluate.probe import fit_probe
from stence_dist.evaluate.st_features import st_features
from stence_dist.models.ecg_tower import EcgTower, build_ecg_tower, load_ecg_tower
from stence_dist.train.finetune import PREDICTION_COLUMNS, compute_device, sigmoid
from stence_dist.train.labelled import LabelledRows, age_sex_probabilities, labelled_rows
from stence_dist.train.result_folder import conclude, describe, result_folder, result_identity
from stence_dist.train.supervised import (
    EcgClassifier,
    classifier_scorer,
    feature_scorer,
    score_rows,
    train_classifier,
    training_reader,
)

logger = logging.getLogger("stence_dist")

Floats = NDArray[np.float64]
_CHUNKS_PER_WORKER = 4  # pieces of the test split, so that progress shows and no worker waits long


@dataclass(frozen=True)
class Cell:
    """One arm at one number of labels."""

    arm: str
    labels: str  # as configured: "50", "10%", "all"
    stenosis_weight: float


@dataclass(frozen=True)
class Fit:
    """One network to train: a cell and one of its repeats."""

    cell: Cell
    repeat: int
    rows: LabelledRows
    weights: str
    seed: int


def compare(config: CompareConfig) -> None:
    """Write summary.json and predictions.csv into config.run_dir; says so and returns where they are there already.

    Raises DataError where labels, weights or shards cannot be used, ConfigError where the folder holds another run.
    """
    shards = ShardSet.open(config.data.shards)
    folder = Path(config.run_dir)
    paths = {name: getattr(config, name) for name in ("weights", "unsupervised_weights", "shuffled_weights")}
    identity = result_identity(config, shards, paths)
    with result_folder(folder, "compare", identity) as wanted:
        if not wanted:
            return
        # Everything that can be refused is refused before any work.
        pool = labelled_rows(shards, "train", config.task.target, config.targets, config.rows).require_both_classes()
        test = labelled_rows(shards, "test", config.task.target, config.targets, "all").require_both_classes()
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
            "arms": comparison.arm_rows(config.cohort),
            "differences": comparison.difference_rows() if config.cohort == "main" else [],
            **_provenance(config, pool, test),
        }
        files.write_text(folder / "predictions.csv", _predictions(scores, test))
        files.write_json(folder / "summary.json", summary)
        conclude(folder)
    for row in summary["differences"]:
        logger.info(
            "%s at %s labels: %.3f [%.3f, %.3f]", *(row[name] for name in ("name", "labels", "mean", "low", "high"))
        )
    logger.info("%s", folder / "summary.json")


def _number(labels: str) -> int | str:
    return int(labels) if labels.isdigit() else labels


def _draws(pool: LabelledRows, labels: str, config: CompareConfig) -> list[LabelledRows]:
    """The labelled rows of each repeat. All labelled patients make one draw, whatever asked for them."""
    everyone = patients_for(labels, len(np.unique(pool.patient))) == len(np.unique(pool.patient))
    repeats = config.repeats if labels == ALL or everyone else config.draws
    return [pool.draw(labels, repeat).require_both_classes() for repeat in range(repeats)]


def _arms(config: CompareConfig) -> list[str]:
    chosen = [arm for arm in config.arms if config.cohort == "main" or arm in NULL_ARMS]
    return [arm for arm in chosen if arm != "shuffled" or config.shuffled_weights]


def _pretrained(config: CompareConfig) -> dict[float, str]:
    """Weights under test by their stenosis weight."""
    found = {config.stenosis_weight: config.weights}
    if config.unsupervised_weights:
        if config.stenosis_weight == 0:
            raise ConfigError("stenosis_weight=0 and unsupervised_weights= are two runs at weight 0. Give one of them.")
        found[0.0] = config.unsupervised_weights
    return found


def _towers(config: CompareConfig) -> dict[tuple[str, float], EcgTower]:
    """The frozen towers whose features are probed, by arm and stenosis weight."""
    arms = _arms(config)
    towers = {("probe", weight): load_ecg_tower(path) for weight, path in _pretrained(config).items()}
    reference = towers["probe", config.stenosis_weight]
    if "random" in arms:
        towers["random", REFERENCE_WEIGHT] = build_ecg_tower(reference.config, None, config.seed)
    if "shuffled" in arms:
        towers["shuffled", REFERENCE_WEIGHT] = load_ecg_tower(str(config.shuffled_weights))
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
    spec = next(iter(towers.values())).spec
    device = compute_device()
    scorers = {f"{arm} {weight:g}": feature_scorer(tower.to(device).eval()) for (arm, weight), tower in towers.items()}
    both = []
    for part in (pool, test):
        pieces = _in_chunks(
            config,
            f"features of {part.split}",
            (
                delayed(_single_thread)(score_rows, shards, part.split, rows, spec, scorers, **_reading(config, device))
                for rows in _chunks(part.rows, config.workers)
            ),
            len(_chunks(part.rows, config.workers)),
        )
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
                _in_chunks(
                    config,
                    f"ST/T of {part.split}",
                    (delayed(_hand_features)(shards, part.split, rows) for rows in _chunks(part.rows, config.workers)),
                    len(_chunks(part.rows, config.workers)),
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
            found[Cell("age_sex", labels, REFERENCE_WEIGHT)] = np.stack(values)
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


def _hand_features(shards: ShardSet, split: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """ST/T features (n, 24) of the recordings themselves."""
    values = []
    for row in rows:
        stored = shards.read(split, int(row), views=False)
        values.append(st_features(stored.signal(), stored.sampling_rate))
    return np.stack(values)


def _network_scores(
    config: CompareConfig, shards: ShardSet, draws: Mapping[str, list[LabelledRows]], test: LabelledRows
) -> dict[Cell, Floats]:
    """Networks trained on labels, from pretrained and from fresh weights, all scored in one pass over the test rows."""
    arms = _arms(config)
    fits = [
        Fit(Cell(arm, labels, weight), repeat, rows, path, config.seed + repeat)
        for labels, repeats in draws.items()
        for arm, weight, path in _network_arms(config, arms)
        for repeat, rows in enumerate(repeats)
    ]
    if not fits:
        return {}
    fits.sort(key=lambda fit: -len(fit.rows.rows))  # the longest first, so that workers end together
    states = _in_chunks(
        config, "training", (delayed(_single_thread)(_train, shards, config, fit) for fit in fits), len(fits)
    )
    pieces = _in_chunks(
        config,
        "scoring",
        (
            delayed(_single_thread)(_score_networks, shards, config, states, test.split, rows)
            for rows in _chunks(test.rows, config.workers)
        ),
        len(_chunks(test.rows, config.workers)),
    )
    logits = np.concatenate(pieces, axis=1)  # (fits, n)
    found: dict[Cell, list[Floats]] = {}
    for place in sorted(range(len(fits)), key=lambda place: fits[place].repeat):
        found.setdefault(fits[place].cell, []).append(sigmoid(logits[place]))
    return {cell: np.stack(values) for cell, values in found.items()}


def _network_arms(config: CompareConfig, arms: list[str]) -> list[tuple[str, float, str]]:
    chosen = [("finetune", weight, path) for weight, path in _pretrained(config).items() if "finetune" in arms]
    return chosen + ([("scratch", REFERENCE_WEIGHT, config.weights)] if "scratch" in arms else [])


def _fresh(fit: Fit) -> EcgTower:
    """The tower that a fit starts from."""
    tower = load_ecg_tower(fit.weights)
    return build_ecg_tower(tower.config, None, fit.seed) if fit.cell.arm == "scratch" else tower


def _train(shards: ShardSet, config: CompareConfig, fit: Fit) -> tuple[str, dict[str, Tensor]]:
    """Train one network: (weights that hold its encoder's config, its tensors)."""
    tower = _fresh(fit)
    classifier = EcgClassifier(tower.encoder).to(compute_device())
    reader = training_reader(shards, fit.rows.rows, tower, config.supervised, seed=fit.seed, verify=config.data.verify)
    labels = dict(zip(fit.rows.sample.tolist(), fit.rows.labels.tolist(), strict=True))
    train_classifier(classifier, reader, labels, config.supervised, workers=0)
    return fit.weights, {name: value.cpu() for name, value in classifier.state_dict().items()}


def _score_networks(
    shards: ShardSet,
    config: CompareConfig,
    states: list[tuple[str, dict[str, Tensor]]],
    split: str,
    rows: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Logits (networks, n) of every trained network on `rows`."""
    device = compute_device()
    scorers = {}
    for number, (weights, state) in enumerate(states):
        tower = load_ecg_tower(weights)
        classifier = EcgClassifier(tower.encoder)
        classifier.load_state_dict(state)
        scorers[str(number)] = classifier_scorer(classifier.to(device).eval())
    values = score_rows(shards, split, rows, tower.spec, scorers, **_reading(config, device))
    return np.stack([values[str(number)][:, 0] for number in range(len(states))])


def _reading(config: CompareConfig, device: torch.device) -> dict[str, Any]:
    return {"batch_size": config.batch_size, "workers": 0, "verify": config.data.verify, "device": device}


def _chunks(rows: NDArray[np.int64], workers: int) -> list[NDArray[np.int64]]:
    return [part for part in np.array_split(rows, max(1, workers * _CHUNKS_PER_WORKER)) if len(part)]


def _single_thread(function: Any, *args: Any, **named: Any) -> Any:
    """Call with one thread in torch: sums then come out alike whatever the number of workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(*args, **named)
    finally:
        torch.set_num_threads(threads)


def _in_chunks(config: CompareConfig, what: str, tasks: Iterable[Any], count: int) -> list[Any]:
    """Results of joblib tasks in their order, under a progress bar, or log lines where there is no terminal."""
    results = []
    with tqdm(total=count, desc=what, disable=None) as bar:
        for result in Parallel(n_jobs=config.workers, return_as="generator")(tasks):
            results.append(result)
            bar.update()
            if bar.disable and (len(results) == count or len(results) % max(1, count // 4) == 0):
                logger.info("%s: %d of %d", what, len(results), count)
    return results


def _provenance(config: CompareConfig, pool: LabelledRows, test: LabelledRows) -> dict[str, Any]:
    """What the figures of a summary were measured on and how."""
    return {
        "cohort": config.cohort,
        "target": config.task.target,
        "rows": pool.kind,
        "pool": pool.counts(),
        "test": test.counts(),
        "draws": config.draws,
        "repeats": config.repeats,
        "interval": {"level": config.level, "draws": config.bootstrap, "over": "label draws x test patients"},
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
    keys = test.table.patient_key[test.rows]
    for cell, values in scores.items():
        for key, sample, truth, value in zip(keys, test.sample, test.labels, values[0], strict=True):
            where = [cell.arm, cell.labels, cell.stenosis_weight]
            writer.writerow([*where, key, int(sample), test.split, test.target, int(truth), repr(float(value))])
    return text.getvalue()
