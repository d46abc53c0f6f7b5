"""Many networks on one cohort: trained over processes, then scored together in one pass over the rows."""

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from stence_dist.config.compare import CompareConfig
from stence_dist.data.shards import ShardSet
from stence_dist.device import compute_device
from stence_dist.models.ecg_tower import EcgTower, build_ecg_tower, load_ecg_tower
from stence_dist.train.labelled import LabelledRows
from stence_dist.train.supervised import (
    EcgClassifier,
    Scorer,
    classifier_scorer,
    score_rows,
    train_classifier,
    training_reader,
)

logger = logging.getLogger("stence_dist")
# A worker that a training has left large is replaced by a fresh one: nothing is lost.
warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")

_PIECES_PER_WORKER = 4  # so that progress shows and no worker waits long for another


@dataclass(frozen=True)
class Fit:
    """One network to train: what it learns from, and what it starts from."""

    rows: LabelledRows
    weights: str  # file of the pretrained tower; a fresh one has only its config
    fresh: bool
    seed: int

    def tower(self) -> EcgTower:
        """The tower before training."""
        pretrained = load_ecg_tower(self.weights)
        return build_ecg_tower(pretrained.config, None, self.seed) if self.fresh else pretrained


@dataclass(frozen=True)
class Fitted:
    """A trained network, as what travels between processes."""

    weights: str  # file that holds its encoder's config
    state: dict[str, Tensor]

    def scorer(self) -> Scorer:
        """The network, ready to score."""
        classifier = EcgClassifier(load_ecg_tower(self.weights).encoder)
        classifier.load_state_dict(self.state)
        return classifier_scorer(classifier.to(compute_device()).eval())


def train_networks(config: CompareConfig, shards: ShardSet, fits: Sequence[Fit]) -> list[Fitted]:
    """Every fit trained, in the order given; the longest start first, so that workers end together."""
    order = sorted(range(len(fits)), key=lambda place: -len(fits[place].rows.rows))
    trained = in_processes(
        config.workers, "training", [partial(_train, shards, config, fits[place]) for place in order]
    )
    by_place = dict(zip(order, trained, strict=True))
    return [by_place[place] for place in range(len(fits))]


def _train(shards: ShardSet, config: CompareConfig, fit: Fit) -> Fitted:
    tower = fit.tower()
    classifier = EcgClassifier(tower.encoder).to(compute_device())
    reader = training_reader(shards, fit.rows.rows, tower, config.supervised, seed=fit.seed, verify=config.data.verify)
    labels = dict(zip(fit.rows.sample.tolist(), fit.rows.labels.tolist(), strict=True))
    train_classifier(classifier, reader, labels, config.supervised, workers=0)
    return Fitted(fit.weights, {name: value.cpu() for name, value in classifier.state_dict().items()})


def network_logits(
    config: CompareConfig, shards: ShardSet, networks: Sequence[Fitted], asked: LabelledRows
) -> NDArray[np.float32]:
    """Logits (networks, n) on the rows of `asked`."""
    pieces = over_rows(config.workers, "scoring", partial(_logits, shards, config, networks, asked.split), asked.rows)
    return np.concatenate(pieces, axis=1)


def _logits(
    shards: ShardSet, config: CompareConfig, networks: Sequence[Fitted], split: str, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    spec = load_ecg_tower(networks[0].weights).spec
    scorers = {str(number): network.scorer() for number, network in enumerate(networks)}
    values = score_rows(
        shards,
        split,
        rows,
        spec,
        scorers,
        batch_size=config.batch_size,
        workers=0,
        verify=config.data.verify,
        device=compute_device(),
    )
    return np.stack([values[str(number)][:, 0] for number in range(len(networks))])


def over_rows(workers: int, what: str, function: Callable[..., Any], rows: NDArray[np.int64]) -> list[Any]:
    """`function(rows=piece)` for consecutive pieces of rows (n,), in their order."""
    pieces = [piece for piece in np.array_split(rows, workers * _PIECES_PER_WORKER) if len(piece)]
    return in_processes(workers, what, [partial(function, rows=piece) for piece in pieces])


def in_processes(workers: int, what: str, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Results of `tasks` in their order, under a progress bar, or log lines where there is no terminal."""
    results: list[Any] = []
    running: Iterable[Any] = Parallel(n_jobs=workers, return_as="generator")(delayed(_alone)(task) for task in tasks)
    with tqdm(total=len(tasks), desc=what, disable=None) as bar:
        for result in running:
            results.append(result)
            bar.update()
            if bar.disable and len(results) % max(1, len(tasks) // 4) == 0:
                logger.info("%s: %d of %d", what, len(results), len(tasks))
    return results


def _alone(task: Callable[[], Any]) -> Any:
    """The task's result, with one thread in torch: sums then come out alike whatever the number of workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return task()
    finally:
        torch.set_num_threads(threads)
