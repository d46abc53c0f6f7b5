"""Teach an ECG tower from labels and measure it on the untouched test split. One process, plain torch."""

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stence_dist import files
from stence_dist.config.finetune import FinetuneConfig
from stence_dist.data.shards import ShardSet
from stence_dist.device import compute_device
from stence_dist.evaluate.probe import fit_probe
from stence_dist.evaluate.statistics import (
    choose_threshold,
    interval_text,
    measure,
    measure_difference,
    patient_counts,
    sigmoid,
)
from stence_dist.models.ecg_tower import EcgTower, build_ecg_tower, load_ecg_tower
from stence_dist.train.labelled import (
    PREDICTION_COLUMNS,
    LabelledRows,
    age_sex_probabilities,
    labelled_rows,
    rows_to_learn_from,
)
from stence_dist.train.result_folder import conclude, describe, pretrained_on, result_folder, result_identity
from stence_dist.train.supervised import (
    EcgClassifier,
    Scorer,
    classifier_scorer,
    feature_scorer,
    score_rows,
    train_classifier,
    training_reader,
    updates_for,
)

logger = logging.getLogger("stence_dist")

Floats = NDArray[np.float64]


def finetune(config: FinetuneConfig) -> None:
    """Write metrics.json and predictions.csv into config.run_dir, where they are not there yet, and log the result.

    Raises DataError where labels, weights or shards cannot be used, ConfigError where the folder holds another run.
    """
    shards = ShardSet.open(config.data.shards)
    folder = Path(config.run_dir)
    identity = result_identity(config, shards, {"weights": config.weights})
    with result_folder(folder, "finetune", identity) as wanted:
        if wanted:
            _make(config, shards, folder, identity)
    metrics = files.read_json(folder / "metrics.json")
    logger.info("test AUROC %s; age and sex alone %s", _auroc_text(metrics["test"]), _auroc_text(metrics["age_sex"]))
    logger.info("%s", folder / "metrics.json")


def _make(config: FinetuneConfig, shards: ShardSet, folder: Path, identity: dict[str, Any]) -> None:
    # Everything that can be refused is refused before any work.
    kind = rows_to_learn_from(shards, config)
    pool = labelled_rows(shards, "train", config, kind).require_both_classes()
    drawn_by = f"labels={config.labels} label_seed={config.label_seed}"
    fit = pool.draw(config.labels, config.label_seed).require_both_classes(drawn_by)
    val = labelled_rows(shards, "val", config, kind).require_both_classes()
    test = labelled_rows(shards, "test", config, "all")
    tower = starting_tower(config)
    describe(folder, config, identity, shards)
    logger.info("%s on %d labelled ECGs of %d patients", config.mode, len(fit.rows), fit.counts()["patients"])

    learn = probe_probabilities if config.mode == "probe" else network_probabilities
    probabilities = learn(tower, shards, config, fit, [val, test])
    metrics = {
        "mode": config.mode,
        "target": config.task.target,
        "labels": config.labels,
        "label_seed": config.label_seed,
        "rows": pool.kind,
        "pretrained_on": None if config.mode == "scratch" else pretrained_on(tower, shards),
        "interval": {"level": config.level, "draws": config.bootstrap, "unit": "patient"},
        "counts": {"train": fit.counts(), "val": val.counts(), "test": test.counts(), "pool": pool.counts()},
        **measure_on_test(config, fit, val, test, probabilities),
        "note": "Research use only. The threshold was chosen on validation; everything under test is on test rows.",
    }
    files.write_text(folder / "predictions.csv", predictions_csv(zip([val, test], probabilities, strict=True)))
    files.write_json(folder / "metrics.json", metrics)
    conclude(folder)


def starting_tower(config: FinetuneConfig) -> EcgTower:
    """The tower that learning starts from: the weights', or for scratch a fresh one of the same encoder."""
    if config.mode != "scratch":
        return load_ecg_tower(str(config.weights))
    encoder = load_ecg_tower(config.weights).config if config.weights else config.ecg_encoder
    return build_ecg_tower(encoder, None, config.seed)


def probe_probabilities(
    tower: EcgTower, shards: ShardSet, config: FinetuneConfig, fit: LabelledRows, asked: Sequence[LabelledRows]
) -> list[Floats]:
    """Probabilities (n,) for each of `asked` of a logistic regression on the frozen tower's features."""
    scorer = feature_scorer(tower.to(compute_device()).eval())
    features = _scores(tower, shards, config, scorer, (fit, *asked))
    probe = fit_probe(features[0], fit.labels, fit.patient, seed=config.seed)
    return [probe.predict(values) for values in features[1:]]


def network_probabilities(
    tower: EcgTower, shards: ShardSet, config: FinetuneConfig, fit: LabelledRows, asked: Sequence[LabelledRows]
) -> list[Floats]:
    """Probabilities (n,) for each of `asked` of the whole network, trained on `fit`; logits averaged over windows."""
    device = compute_device()
    classifier = EcgClassifier(tower.encoder).to(device)
    reader = training_reader(shards, fit.rows, tower, config.supervised, seed=config.seed, verify=config.data.verify)
    total = updates_for(len(fit.rows), config.supervised)
    with tqdm(total=total, desc=config.mode, disable=None) as bar:

        def show(done: int, loss: float) -> None:
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}")
            if bar.disable and done % 50 == 0:
                logger.info("%s: update %d of %d, loss %.3f", config.mode, done, total, loss)

        labels = dict(zip(fit.sample.tolist(), fit.labels.tolist(), strict=True))
        train_classifier(classifier, reader, labels, config.supervised, workers=config.data.workers, on_update=show)
    logits = _scores(tower, shards, config, classifier_scorer(classifier), asked)
    return [sigmoid(values[:, 0]) for values in logits]


def _scores(
    tower: EcgTower, shards: ShardSet, config: FinetuneConfig, scorer: Scorer, parts: Sequence[LabelledRows]
) -> list[NDArray[np.float32]]:
    """What `scorer` says (n, K) of the rows of each part, prepared as the tower expects."""
    return [
        score_rows(
            shards,
            part.split,
            part.rows,
            tower.spec,
            {"scorer": scorer},
            batch_size=config.batch_size,
            workers=config.data.workers,
            verify=config.data.verify,
            device=compute_device(),
        )["scorer"]
        for part in parts
    ]


def measure_on_test(
    config: FinetuneConfig,
    fit: LabelledRows,
    val: LabelledRows,
    test: LabelledRows,
    probabilities: Sequence[Floats],
) -> dict[str, Any]:
    """`threshold` (from validation), `test`, `val`, the baselines `age_sex` and `age_sex_val` beside them, and
    `difference_to_age_sex`; these three are None where neither is known.
    """
    on_val, on_test = probabilities
    threshold = choose_threshold(val.labels, on_val)
    counts = patient_counts(test.patient, config.bootstrap, config.seed)
    val_counts = patient_counts(val.patient, config.bootstrap, config.seed)
    found = {
        "threshold": threshold,
        "test": {
            "prevalence": float(test.labels.mean()),
            **measure(test.labels, on_test, counts, threshold=threshold, level=config.level),
        },
        "val": {
            "prevalence": float(val.labels.mean()),
            **measure(val.labels, on_val, val_counts, threshold=None, level=config.level),
        },
    }
    by_val, by_test = (age_sex_probabilities(fit, part, seed=config.seed) for part in (val, test))
    if by_val is None or by_test is None:
        logger.warning("Age and sex are unknown in every labelled training row: there is no age + sex baseline.")
        return found | dict.fromkeys(("age_sex_val", "age_sex", "difference_to_age_sex"))
    by_age_sex = choose_threshold(val.labels, by_val)
    return found | {
        "age_sex_val": measure(val.labels, by_val, val_counts, threshold=None, level=config.level),
        "age_sex": measure(test.labels, by_test, counts, threshold=by_age_sex, level=config.level),
        "difference_to_age_sex": measure_difference(test.labels, on_test, by_test, counts, level=config.level),
    }


def predictions_csv(parts: Iterable[tuple[LabelledRows, Floats]]) -> str:
    """One line of PREDICTION_COLUMNS per row of each (LabelledRows, probabilities)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PREDICTION_COLUMNS)
    for part, probabilities in parts:
        writer.writerows(part.predictions(probabilities))
    return text.getvalue()


def _auroc_text(values: Mapping[str, float | None] | None) -> str:
    return "not known" if values is None else interval_text(*(values[f"auroc{end}"] for end in ("", "_low", "_high")))
