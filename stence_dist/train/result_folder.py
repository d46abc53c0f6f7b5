"""The folder of a result that one process makes: held while it is made, described, and found again when finished."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stence_dist import files
from stence_dist.config.compare import CompareConfig
from stence_dist.config.finetune import FinetuneConfig
from stence_dist.config.load import to_dict, to_yaml
from stence_dist.data.exclusion import exclusion_counts
from stence_dist.data.shards import ShardSet
from stence_dist.models.ecg_tower import EcgTower
from stence_dist.train.run_folder import check_same_run, environment, write_status

logger = logging.getLogger("stence_dist")

ANOTHER_SET = "another shard set"  # than the one that a result is measured on
# Keys that never change a result.
_FREE_KEYS = ("run_dir", "workers", "data")


def result_identity(config: Any, shards: ShardSet, weights: Mapping[str, str | None]) -> dict[str, Any]:
    """What decides a result: the config without paths and processes, the shards, and the bytes of the weights."""
    values = {name: value for name, value in to_dict(config).items() if name not in _FREE_KEYS}
    digests = {
        name: files.sha256_file(path) if path and Path(path).is_file() else path for name, path in weights.items()
    }
    return {**values, **digests, "fingerprint": shards.fingerprint}


@contextlib.contextmanager
def result_folder(folder: Path, purpose: str, identity: dict[str, Any]) -> Iterator[bool]:
    """Hold `folder`; yields False where it has the result of `identity` already.

    Raises RefusedError where another process holds it, ConfigError where it has a result of another identity. A
    failure of the body leaves `status.json` saying so, where `describe` was reached.
    """
    lock = files.FolderLock(folder, purpose).acquire()
    try:
        finished = check_same_run(folder, identity) == "finished"
        if finished:
            logger.info("%s is finished already; nothing to do.", folder)
        yield not finished
    except Exception as error:
        if (folder / "status.json").exists() and files.read_json(folder / "status.json")["state"] == "running":
            write_status(folder, "failed", 0, f"{type(error).__name__}: {error}")
        raise
    finally:
        lock.release()


def pretrained_on(tower: EcgTower, shards: ShardSet) -> str:
    """Whether a tower was pretrained on this shard set, as far as its file says; warns where it was another one.

    Every build draws its own splits, where the table has none: one set's training patients may be another's test.
    """
    stated = tower.pretraining.get("shards")
    if stated in (None, shards.fingerprint):
        return "this shard set" if stated else "not stated"
    logger.warning(
        "The weights were pretrained on another shard set than %s: unless both have splits from one table, patients of "
        "its training split may be among the test patients here.",
        shards.folder,
    )
    return ANOTHER_SET


def describe(folder: Path, config: FinetuneConfig | CompareConfig, identity: dict[str, Any], shards: ShardSet) -> None:
    """Write what the result is made from; call it once nothing can be refused any more."""
    files.write_text(folder / "config.yaml", to_yaml(config))
    files.write_json(folder / "environment.json", environment())
    described = {
        "identity": identity,
        "fingerprint": shards.fingerprint,
        "shards": str(shards.folder.resolve()),
        "excluded": exclusion_counts(shards, config.cohort.exclude),
    }
    files.write_json(folder / "data.json", described)
    write_status(folder, "running", 0, "")


def conclude(folder: Path) -> None:
    """Mark the result as finished."""
    write_status(folder, "finished", 0, "")
