"""Checkpoints by parameter name, in a process group of one; several ranks are in dist/test_engine_ranks.py."""

import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from crashes import every_crash, run
from small_pair_model import SmallPairModel, configuration, distance, global_batch, known_counts, micro_batches, sgd

from stence_dist import checkpoint, distributed, engine, files, train_step, zero_views
from stence_dist.checkpoint import Best, TrainState
from stence_dist.config.optimizer import AdamWConfig, OptimizerConfig
from stence_dist.errors import DataError

STAGES = (0, 1, 2, 3)
TOTAL = 6
OPTIMIZERS = {"adamw": AdamWConfig(), "sgd": sgd(), "momentum": sgd(0.9)}


@pytest.fixture(scope="module", autouse=True)
def _group() -> None:
    """A process group of one. It stays: DeepSpeed keeps what it made of the first one."""
    if not distributed.active():
        distributed.start(60)


@pytest.fixture(autouse=True)
def _mixed_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """At stage 3 some parameters stay whole, some do not."""
    monkeypatch.setattr(engine, "PERSISTENCE_ELEMENTS", 40)


def build(stage: int, optimizer: OptimizerConfig | None = None, seed: int = 0) -> engine.Engine:
    """A fresh engine."""
    return engine.build(SmallPairModel(seed), configuration(stage, optimizer), device=torch.device("cpu"))


def train(built: engine.Engine, start: int, stop: int, optimizer: OptimizerConfig | None = None) -> list[float]:
    """Losses of updates [start, stop) of a run of six."""
    config = configuration(built.zero_optimization_stage(), optimizer)
    losses = []
    for step in range(start, stop):
        batch = global_batch(step)
        known = known_counts(batch, config)
        result = train_step.train_step(built, micro_batches(batch), step=step, total=TOTAL, known=known, config=config)
        losses.append(result.loss)
    return losses


def contents(built: engine.Engine) -> dict[str, torch.Tensor]:
    """Everything that a checkpoint must bring back, by name."""
    zero_views.initialize_states(built)
    held = {}
    for fragment in zero_views.fragments(built):
        held |= {f"{fragment.name}|{key}|{fragment.start}": value.clone() for key, value in fragment.values.items()}
        if fragment.steps is not None:
            held[f"{fragment.name}|step"] = fragment.steps.clone()
    return held | engine.full_state(built)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """True where all names and all bits agree."""
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def save(folder: Path, built: engine.Engine, step: int, best: Best | None = None, keep_last: int = 2) -> Path:
    """Save with made-up hashes."""
    return checkpoint.save(folder, built, TrainState(step, "config", "index"), best=best, keep_last=keep_last)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> engine.Engine:
    """A stage-1 engine after one update, for tests of the files alone."""
    built = build(1)
    train(built, 0, 1)
    return built


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resume_is_bitwise(stage: int, optimizer: str, tmp_path: Path) -> None:
    """3 updates, save, 3 more = load into an engine of another seed, 3 more: every tensor and loss, bit by bit."""
    config = OPTIMIZERS[optimizer]
    built = build(stage, config)
    train(built, 0, 3, config)
    path = save(tmp_path, built, 3, Best(0.5, 2, "val/recall@5"))
    saved = contents(built)
    losses = train(built, 3, 6, config)

    other = build(stage, config, seed=1)
    other.module.ecg_tower.gain.fill_(7)
    assert not same(contents(other), saved)
    loaded = checkpoint.load_newest(tmp_path, other)
    assert loaded == checkpoint.Loaded(path, TrainState(3, "config", "index"), Best(0.5, 2, "val/recall@5"))
    assert same(contents(other), saved)
    assert (other.global_steps, other.micro_steps, other.skipped_steps) == (3, 6, 0)
    assert train(other, 3, 6, config) == losses
    assert same(contents(other), contents(built))


@pytest.mark.parametrize("route", [(0, 3), (3, 1), (2, 0), (1, 3), (3, 0)], ids=str)
def test_another_stage_resumes(route: tuple[int, int], tmp_path: Path) -> None:
    """Save at one ZeRO stage, load at another: same weights now, the same three further steps within rounding."""
    source, target = build(route[0]), build(route[1], seed=1)
    train(source, 0, 2)
    save(tmp_path, source, 2)
    assert checkpoint.load_newest(tmp_path, target) is not None
    assert same(engine.full_state(target), engine.full_state(source))
    assert train(target, 2, 5) == pytest.approx(train(source, 2, 5), rel=1e-6)
    assert distance(engine.full_state(target), engine.full_state(source)) < 1e-6


def test_a_fresh_engine_saves_and_goes_on_unchanged(tmp_path: Path) -> None:
    """A checkpoint of step 0 leaves its own run as one that never saved, and another stage starts from it."""
    untouched, saver, reader = build(2), build(2), build(3, seed=1)
    save(tmp_path, saver, 0)
    assert checkpoint.load_newest(tmp_path, reader) is not None
    expected = train(untouched, 0, 3)
    assert train(saver, 0, 3) == expected
    assert same(engine.full_state(saver), engine.full_state(untouched))
    assert train(reader, 0, 3) == pytest.approx(expected, rel=1e-6)


def _flip(path: Path) -> None:
    part = path / "part-00000.safetensors"
    content = bytearray(part.read_bytes())
    content[-5] ^= 1
    part.write_bytes(content)


def _truncate(path: Path) -> None:
    os.truncate(path / "part-00000.safetensors", 100)


def _remove_part(path: Path) -> None:
    (path / "part-00000.safetensors").unlink()


def _edit_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["body"]["state"]["step"] += 1
    (path / "manifest.json").write_text(json.dumps(manifest))


def _older_format(path: Path) -> None:
    body = json.loads((path / "manifest.json").read_text())["body"] | {"format": checkpoint.FORMAT - 1}
    (path / "manifest.json").write_text(json.dumps({"body": body, "sha256": files.sha256_json(body)}))


def _empty_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("")


DAMAGES = (_flip, _truncate, _remove_part, _edit_manifest, _older_format, _empty_manifest)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_skipped(
    damage: Callable[[Path], None], small: engine.Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The one before it is loaded with a warning that names the folder; with none left, an error, never a restart."""
    save(tmp_path, small, 1)
    newest = save(tmp_path, small, 2)
    damage(newest)
    with caplog.at_level(logging.WARNING):
        loaded = checkpoint.load_newest(tmp_path, small)
    assert loaded is not None
    assert loaded.state.step == 1
    assert newest.name in caplog.text
    damage(loaded.path)
    with pytest.raises(DataError, match=r"none that is whole.*step_000000002.*step_000000001"):
        checkpoint.load_newest(tmp_path, small)


def test_after_a_damaged_newest_the_run_replaces_it(small: engine.Engine, tmp_path: Path) -> None:
    """Saving step 2 over a damaged step 3 drops that one, so that retention never counts it."""
    save(tmp_path, small, 1)
    _flip(save(tmp_path, small, 3))
    save(tmp_path, small, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000000001", "step_000000002"]


def test_an_unfinished_save_is_no_checkpoint(
    small: engine.Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only a temporary folder: None, and it is said; nothing at all: None in silence; a save then tidies up."""
    assert checkpoint.load_newest(tmp_path / "absent", small) is None
    assert not caplog.records
    (tmp_path / ".tmp-step_000000004-abcd").mkdir()
    assert checkpoint.load_newest(tmp_path, small) is None
    assert "unfinished save" in caplog.text
    save(tmp_path, small, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001"]


def test_retention_keeps_the_last_and_the_best(small: engine.Engine, tmp_path: Path) -> None:
    """Five saves with keep_last=2 and the best at step 2 leave 2, 4, 5; the newest is loaded."""
    for step in range(1, 6):
        save(tmp_path, small, step, Best(0.9, 2, "val/recall@5") if step >= 2 else None)
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["2", "4", "5"]
    loaded = checkpoint.load_newest(tmp_path, small)
    assert loaded is not None
    assert loaded.state == TrainState(5, "config", "index")


def test_a_failed_save_leaves_the_previous_one(
    small: engine.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk while the part is written: SaveError with the reason, no litter, the old one whole."""
    save(tmp_path, small, 1)

    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(checkpoint.SaveError, match=r"rank 0 on .*: OSError.*No space left"):
        save(tmp_path, small, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001"]
    loaded = checkpoint.load_newest(tmp_path, small)
    assert loaded is not None
    assert loaded.state.step == 1


def test_a_crash_at_any_point_leaves_a_whole_one(small: engine.Engine, tmp_path: Path) -> None:
    """Die before and after every write, fsync, rename, removal and collective of a save: the old or the new checkpoint
    is whole, parts and manifest of one step, and the next save removes what the dead one left.
    """

    def save_marked(step: int) -> Path:
        """A checkpoint whose every value is the step's number."""
        zero_views.initialize_states(small)
        for fragment in zero_views.fragments(small):
            for values in fragment.values.values():
                values.fill_(step)
        zero_views.publish(small)
        return save(folder, small, step)

    folders = (tmp_path / str(number) for number in itertools.count())
    folder = tmp_path

    def prepare() -> Callable[[], object]:
        nonlocal folder
        folder = next(folders)
        for step in (1, 2):
            save_marked(step)
        return lambda: save_marked(3)

    survivors, operations = set(), set()
    for name, _ in every_crash(prepare):
        operations.add(name)
        loaded = checkpoint.load_newest(folder, small)
        assert loaded is not None
        assert loaded.state.step in (2, 3)
        survivors.add(loaded.state.step)
        assert all(bool((value == loaded.state.step).all()) for value in weights(small))
        save_marked(4)
        assert len(list(folder.iterdir())) == 2
        shutil.rmtree(folder)
    assert survivors == {2, 3}
    assert {"fsync", "replace", "rename", "unlink", "mkdir", "save_file", "barrier", "all_gather_bytes"} <= operations


def weights(built: engine.Engine) -> list[torch.Tensor]:
    """All that is kept per element, fp32 values and the optimizer's."""
    return [value for fragment in zero_views.fragments(built) for value in fragment.values.values()]


def test_a_save_is_made_durable_in_order(small: engine.Engine, tmp_path: Path) -> None:
    """Each file is synced before it gets its name, each name before the next that points at it; the folder of the
    checkpoint last. What is durable before what is all that a power cut leaves.
    """
    save(tmp_path, small, 1)
    names = run(lambda: save(tmp_path, small, 2), 0, after=False)
    durable = [name for name in names if name in ("save_file", "write_bytes", "fsync", "replace", "rename")]
    named = ["fsync", "replace", "fsync"]  # the file, its name, its folder
    assert durable == ["save_file", *named, "write_bytes", *named, "rename", "fsync"]


def test_views_that_disagree_with_the_weights_are_not_saved(tmp_path: Path) -> None:
    """If DeepSpeed kept its fp32 values elsewhere than the views think, saving would fail rather than lie."""
    built = build(1)
    zero_views.initialize_states(built)
    next(iter(zero_views.fragments(built))).values["fp32"].add_(1)
    with pytest.raises(checkpoint.SaveError, match=r"ecg_tower\.enter\.weight are not the model's weights"):
        save(tmp_path, built, 1)


def test_another_model_or_optimizer_is_refused(small: engine.Engine, tmp_path: Path) -> None:
    """A checkpoint of other shapes, or of another optimizer: an error that names the difference."""
    save(tmp_path, small, 1)
    with pytest.raises(DataError, match=r"exp_avg.*this optimizer needs fp32"):
        checkpoint.load_newest(tmp_path, build(1, sgd()))
    model = SmallPairModel()
    model.stenosis_head = torch.nn.Linear(7, 12)
    wide = engine.build(model, configuration(1), device=torch.device("cpu"))
    with pytest.raises(DataError, match=r"stenosis_head\.bias \(here \[12\], stored \[11\]\)"):
        checkpoint.load_newest(tmp_path, wide)
