"""One cohort of everything, from two tables to the report, and whether any of it tells whose hearts they were."""

import csv
import logging
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forks import run_script
from hospital import ACUTE, FAILING, NOTE, Person, words_of, write_hospital, write_table
from leaks import leaked, leaked_by_files
from pretraining import PLAIN, SMALL, pretrain

from stence_dist.check.examine import check
from stence_dist.config.build import BuildConfig
from stence_dist.config.check import CheckConfig
from stence_dist.config.pair import PairConfig
from stence_dist.data.build import build
from stence_dist.data.pair import pair
from stence_dist.errors import CheckFailedError, DataError
from stence_dist.files import read_json

pytestmark = pytest.mark.dist

SPLITS = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
FEATURES = (2, 17)  # patients with stored features among those with pixels
DAMAGED = (3, 4, 5, 6)  # patients with a file that is cut short: WFDB, DICOM, MUSE, and a run
WORDS = words_of(map(Person, range(len(SPLITS))))
Verb = Callable[[], None]


def cut(path: Path) -> None:
    """Leave half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    write_hospital(folder, SPLITS, FEATURES)
    for number, suffix in zip(DAMAGED, (".dat", ".dcm", ".xml"), strict=False):
        cut(next((folder / "ecg").rglob(f"{Person(number).place}{suffix}")))
    cut(next((folder / "cath").rglob(f"{Person(DAMAGED[3]).place}/*.dcm")))
    return folder


def said(verb: Verb, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> str:
    """Everything that a verb printed, logged or warned of."""
    capfd.readouterr()
    caplog.clear()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        verb()
    printed = capfd.readouterr()
    return "\n".join([printed.out, printed.err, caplog.text, *(str(warning.message) for warning in caught)])


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def owners_list(path: Path, column: str) -> str:
    """A list of what was left out, but for its column of paths; only its owner may read it."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    rows = read_rows(path)
    assert rows
    return "\n".join(f"{name}: {value}" for row in rows for name, value in row.items() if name != column)


def test_a_mixed_cohort_goes_all_the_way_and_tells_nobody(hospital: Path, tmp_path: Path) -> None:
    """Tables joined, built, looked at, trained on, probed, compared, embedded and reported, by the scripts as they are
    typed; names, numbers, dates, staff, places and texts of the source stand in none of the files, logs and prints, but
    for paths in the owner's lists of rejects.
    """
    cohort, out = hospital / "cohort.csv", tmp_path / "out"
    out.mkdir()
    shards, run, embeddings = out / "shards", out / "run", out / "embeddings.npz"
    tables = [f"ecg={hospital / 'ecgs.csv'}", f"studies={hospital / 'studies.csv'}", f"out={cohort}"]
    outputs = {
        "pair": run_script("shards/pair.py", [*tables, "window_days=30", "policy=nearest"]),
        "build": run_script("shards/build.py", [f"cohort={cohort}", f"out={shards}", "image_size=32", "shard_size=5"]),
        "verify": run_script("shards/build.py", [f"verify={shards}"]),
        "check": run_script("launch/check.py", [f"path={cohort}", f"out={out / 'cohort'}", "workers=1"]),
        "folder": run_script("launch/check.py", [f"path={hospital}", f"out={out / 'folder'}", "workers=1"]),
        "shards": run_script("launch/check.py", [f"path={shards}", f"out={out / 'set'}", "workers=1"]),
    }
    rejected = {int(row["row"]): row["reason"] for row in read_rows(shards / "rejects.csv")}
    assert set(rejected) == {number + 1 for number in (*FEATURES, *DAMAGED)}
    assert all("holds tokens, the set's first one pixels; they do not mix" in rejected[n + 1] for n in FEATURES)
    assert {row["split"]: 1 for row in read_rows(cohort)} == dict.fromkeys(("train", "val", "test"), 1)
    arguments = [*SMALL, "steps=3", "engine.global_batch_size=6", f"data.shards={shards}", f"run_dir={run}"]
    outputs["pretrain"] = pretrain(PLAIN, 1, arguments)
    weights = f"weights={run / 'ecg_tower.safetensors'}"
    labelled = [weights, f"data.shards={shards}", 'cohort.exclude=[acute,"lvef<40"]', "bootstrap=20"]
    outputs["finetune"] = run_script("launch/finetune.py", [*labelled, "mode=probe", f"run_dir={out / 'probe'}"])
    few = ["labels=[4,all]", "draws=2", "repeats=1", "workers=1", "supervised.steps=2", f"run_dir={run / 'compare'}"]
    outputs["compare"] = run_script("launch/compare.py", [*labelled, *few])
    outputs["embed"] = run_script("launch/embed.py", [weights, f"ecg={hospital / 'ecg'}", f"out={embeddings}"])
    for folder in (run, out / "probe", run / "compare"):
        outputs[f"report of {folder.name}"] = run_script("launch/report.py", [f"run_dir={folder}"])
        assert (folder / "report.html").exists()
    for folder in (out / "probe", run / "compare"):
        assert read_json(folder / "data.json")["excluded"]["all"]["train"] == len({*ACUTE, *FAILING})
    assert {row["labels"] for row in read_json(run / "compare" / "summary.json")["arms"]} == {4, "all"}

    assert {Person(0).mrn, NOTE} <= leaked(cohort.read_bytes(), WORDS)  # of the user's own, so the search can find
    outputs["left out"] = (hospital / "cohort.csv.left_out.csv").read_text()
    for verb, text in outputs.items():
        assert leaked(text.encode(), WORDS) == set(), (verb, text)
    assert stat.S_IMODE(embeddings.stat().st_mode) == 0o600
    assert Person(0).last in leaked(embeddings.read_bytes(), WORDS)  # named by files, for the owner
    with np.load(embeddings) as arrays:
        assert len(arrays["record"]) == len(SPLITS) - 3
        numbers = b"".join(arrays[name].tobytes() for name in arrays.files if name != "record")
    assert leaked(numbers, WORDS) == set()
    embeddings.unlink()
    kept = {shards / "rejects.csv": "path", out / "embeddings.npz.rejects.csv": "record"}
    for path, column in kept.items():
        without = owners_list(path, column)
        assert leaked(without.encode(), WORDS) == set(), without
        path.unlink()
    assert leaked_by_files(out, WORDS) == {}


def test_a_patient_in_two_splits_is_named_by_row(
    hospital: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """The refusal of a build and the finding of a check say rows and splits, and a keyed patient at most."""
    cohort = tmp_path / "cohort.csv"
    pair(PairConfig(str(hospital / "ecgs.csv"), str(hospital / "studies.csv"), 30, str(cohort)))
    rows = read_rows(cohort)
    write_table(cohort, [*rows, {**rows[0], "ecg_path": f"{rows[0]['ecg_path']}_2", "split": "test"}])

    def refused() -> None:
        with pytest.raises(DataError, match=rf"is in train \(row 1\) and test \(row {len(rows) + 1}\)") as caught:
            build(BuildConfig(cohort=str(cohort), out=str(tmp_path / "set"), workers=1))
        assert leaked(str(caught.value).encode(), WORDS) == set()

    def found() -> None:
        with pytest.raises(CheckFailedError):
            check(CheckConfig(str(cohort), limit=3, workers=1))

    for verb in (refused, found):
        assert leaked(said(verb, caplog, capfd).encode(), WORDS) == set()
