"""The check itself: what `path=` is, what it holds, and the three ways to say so."""

import sys
import warnings
from pathlib import Path

from stence_dist import files
from stence_dist.check.cohort import check_cohort
from stence_dist.check.findings import PROBLEM, Result
from stence_dist.check.folder import check_file, check_folder, is_recording
from stence_dist.check.shard_set import check_shards
from stence_dist.config.check import CheckConfig
from stence_dist.data.index import INDEX
from stence_dist.data.shard_writer import UNFINISHED
from stence_dist.data.sidecar import sidecar_name
from stence_dist.errors import CheckFailedError, DataError
from stence_dist.files import refuse_pipe

_PARQUET = b"PAR1"
_TABLES = (".csv", ".parquet")


def check(config: CheckConfig) -> None:
    """Print what `config.path` holds and what is wrong with it; with `config.out`, write it there, too.

    Raises CheckFailedError where a build would stop or be wrong, DataError for a path that is nothing that is known.
    """
    path = refuse_pipe(config.path, "path")
    out = None if config.out is None else Path(config.out)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)  # before hours of reading, not after
        except OSError as error:
            raise DataError(
                f"out={out} cannot be a folder ({error.strerror}). Choose one, or leave out= away."
            ) from None
    result = examine(path, config)
    sys.stdout.write(result.to_text())
    if out is not None:
        from stence_dist.check.page import render

        files.write_json(out / "check.json", result.to_dict(), mode=0o600)
        files.write_text(out / "check.html", render(result), mode=0o600)
    problems = result.of_level(PROBLEM)
    if problems:
        counted = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise CheckFailedError(f"{counted}: a build would stop here, or what it makes would be wrong.")


def examine(path: Path, config: CheckConfig) -> Result:
    """What is at `path`. Raises DataError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parsers quote what they stumble over
        return _examine(path, config)


def _examine(path: Path, config: CheckConfig) -> Result:
    first = path / sidecar_name("train-000000.tar")
    if not (path / INDEX).exists() and ((path / UNFINISHED).is_dir() or first.exists()):
        raise DataError(
            f"path={path} is a shard set without its index: its build was interrupted, or the index was removed. "
            "Give the build its command again, and look at the set then."
        )
    if path.is_dir():
        return check_shards(path, config) if (path / INDEX).is_file() else check_folder(path, config)
    if path.is_file() and _is_cohort(path, config):
        return check_cohort(path, config)
    if path.exists() and not path.is_file():
        raise DataError(f"path={path} is neither a file nor a folder, but a pipe or a device.")
    if path.exists() or is_recording(path):
        return check_file(path, config)
    raise DataError(f"path={path} does not exist. Give a recording, a folder, a cohort table or a shard set.")


def _is_cohort(path: Path, config: CheckConfig) -> bool:
    """Whether a file is a table of recordings: Parquet, a CSV that names the column of ECGs, or one of no sidecar."""
    with open(path, "rb") as file:
        start = file.read(65536)
    if start.startswith(_PARQUET):
        return True
    heading = start.decode("utf-8-sig", errors="replace").partition("\n")[0]
    if config.columns.ecg_path in [name.strip().strip('"') for name in heading.split(",")]:
        return True
    return path.suffix.lower() in _TABLES and not path.with_suffix(".json").is_file()
