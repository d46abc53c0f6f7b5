"""What each rank does in test_engine_ranks.py: `engine_ranks.py PART FOLDER`, started once per rank."""

import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from small_pair_model import SmallPairModel, configuration, global_batch, known_counts, micro_batches, sgd

from stence_dist import checkpoint, distributed, engine, files, train_step, zero_views
from stence_dist.checkpoint import TrainState
from stence_dist.config.pretrain import PretrainConfig

TOTAL = 8


def build(config: PretrainConfig, seed: int = 0) -> engine.Engine:
    """A fresh engine; at stage 3 some parameters stay whole, some do not."""
    engine.PERSISTENCE_ELEMENTS = 40
    return engine.build(SmallPairModel(seed), config, device=torch.device("cpu"))


def train(built: engine.Engine, config: PretrainConfig, start: int, stop: int, total: int = TOTAL) -> list[float]:
    """Losses of updates [start, stop)."""
    losses = []
    for step in range(start, stop):
        batch = global_batch(step)
        share = micro_batches(batch, distributed.rank(), distributed.world_size())
        known = known_counts(batch, config)
        losses.append(train_step.train_step(built, share, step=step, total=total, known=known, config=config).loss)
    return losses


def contents(built: engine.Engine) -> str:
    """A hash of everything that this rank holds."""
    zero_views.initialize_states(built)
    held: list[Any] = []
    for fragment in zero_views.fragments(built):
        held.append([fragment.name, fragment.start, None if fragment.steps is None else int(fragment.steps)])
        held.extend(value.tolist() for value in fragment.values.values())
    held.extend([name, value.flatten().tolist()] for name, value in engine.full_state(built).items())
    return files.sha256_json(held)


def keep(path: Path, built: engine.Engine) -> None:
    """Write the engine's whole weights once; they are the same on every rank."""
    state = engine.full_state(built)
    distributed.agree(files.sha256_json({name: value.flatten().tolist() for name, value in state.items()}), "weights")
    if distributed.rank() == 0:
        save_file(state, path)


def message_of(action: Callable[[], object]) -> str:
    """The text of the error that `action` raises."""
    try:
        action()
    except (train_step.NonFiniteError, checkpoint.SaveError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def save(folder: Path, built: engine.Engine, step: int) -> Path:
    """Save with made-up hashes."""
    return checkpoint.save(folder, built, TrainState(step, "config", "index"), best=None, keep_last=2)


def resumes(folder: Path, config: PretrainConfig) -> bool:
    """True where save + load at the same W and stage is bitwise, at once and after two more updates."""
    built = build(config)
    train(built, config, 0, 2)
    save(folder, built, 2)
    saved = contents(built)
    other = build(config, seed=1)
    differed = contents(other) != saved
    checkpoint.load_newest(folder, other)
    equal = contents(other) == saved
    losses = train(built, config, 2, 4) == train(other, config, 2, 4)
    return differed and equal and losses and contents(other) == contents(built)


def not_finite(built: engine.Engine, config: PretrainConfig) -> dict[str, Any]:
    """What an update says whose second micro-batch has a NaN on rank 1, and whether nothing has changed after it."""
    share = micro_batches(global_batch(3), distributed.rank(), distributed.world_size())
    if distributed.rank() == 1:
        share[1].ecg[2] = math.nan
    before, known = contents(built), known_counts(global_batch(3), config)
    message = message_of(lambda: train_step.train_step(built, share, step=3, total=4, known=known, config=config))
    return {"nan": message, "kept": contents(built) == before}


def stages(folder: Path) -> dict[str, Any]:
    """SGD, resume and a NaN on rank 1 at every ZeRO stage; then what ranks must agree on while saving and loading."""
    report: dict[str, Any] = {}
    for stage in range(4):
        config = configuration(stage, sgd())
        built = build(config)
        report[f"losses{stage}"] = train(built, config, 0, 3, total=3)
        keep(folder / f"sgd{stage}.safetensors", built)
        report[f"resumes{stage}"] = resumes(folder / f"resume{stage}", configuration(stage))
        report |= {f"{name}{stage}": value for name, value in not_finite(built, config).items()}
        cached = configuration(stage, sgd(), negatives="accumulated")
        report |= {f"cached_{name}{stage}": value for name, value in not_finite(built, cached).items()}

    config = configuration(2)
    built = build(config)
    train(built, config, 0, 2)
    save(folder / "handover", built, 2)
    report["handover"] = train(built, config, 2, 5)
    keep(folder / "handover.safetensors", built)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    saved, checkpoint.save_file = checkpoint.save_file, full if distributed.rank() == 1 else save_file
    report["full"] = message_of(lambda: save(folder / "handover", built, 5))
    checkpoint.save_file = saved
    distributed.barrier()  # the first rank tidies up
    report["after_full"] = sorted(path.name for path in (folder / "handover").iterdir())

    damaged = save(folder / "damaged", built, 5)
    damaged = save(folder / "damaged", built, 6)
    if distributed.rank() == 0:
        content = bytearray((damaged / "part-00001.safetensors").read_bytes())
        content[-1] ^= 1
        (damaged / "part-00001.safetensors").write_bytes(content)
    distributed.barrier()
    loaded = checkpoint.load_newest(folder / "damaged", built)
    report["loaded"] = loaded.state.step if loaded else None

    save(folder / "shared", built, 5)
    newest = save(folder / "shared", built, 6).name
    mine = folder / f"shared{distributed.rank()}"  # what a rank would see whose file system lags behind
    shutil.copytree(folder / "shared", mine)
    if distributed.rank() == 1:
        body = files.read_json(mine / newest / "manifest.json")["body"] | {"best": {"step": 5, "value": 1.0}}
        files.write_json(mine / newest / "manifest.json", {"body": body, "sha256": files.sha256_json(body)})
    loaded = checkpoint.load_newest(mine, built)
    report["agreed"] = loaded.state.step if loaded else None
    return report


def fp16(folder: Path) -> dict[str, Any]:
    """fp16 at stage 0: gradients that overflow until the scale has fallen, and one that never fits."""
    config = configuration(0, sgd(), precision="fp16")
    built = build(config)
    scaler = built.torch_autocast_z0_gradscaler
    losses = train(built, config, 0, 3, total=3)
    keep(folder / "fp16.safetensors", built)
    cached = configuration(0, sgd(), precision="fp16", negatives="accumulated")
    one_pool = build(cached)
    report = {
        "losses": losses,
        "cached": train(one_pool, cached, 0, 3, total=3),
        "cached_skipped": one_pool.skipped_steps,
        "scale": scaler.get_scale(),
        "skipped": built.skipped_steps,
        "steps": built.global_steps,
    }
    keep(folder / "fp16_cached.safetensors", one_pool)
    save(folder / "fp16", built, 3)
    other = build(config, seed=1)
    checkpoint.load_newest(folder / "fp16", other)
    report["resumed_scale"] = other.torch_autocast_z0_gradscaler.get_scale()
    report["same"] = train(built, config, 3, 5) == train(other, config, 3, 5) and contents(built) == contents(other)
    model = SmallPairModel()
    model.image_projector.weight.register_hook(lambda gradient: gradient * math.inf)
    endless = engine.build(model, config, device=torch.device("cpu"))
    report["endless"] = message_of(lambda: train(endless, config, 0, 1))
    report["endless_skipped"] = endless.skipped_steps
    return report


def bf16(folder: Path) -> dict[str, Any]:
    """bf16 at stages 0 and 3: trains close to fp32, resumes bitwise."""
    report: dict[str, Any] = {}
    for stage in (0, 3):
        config = configuration(stage, sgd(), precision="bf16")
        built = build(config)
        report[f"losses{stage}"] = train(built, config, 0, 3, total=3)
        keep(folder / f"bf16_{stage}.safetensors", built)
        adamw = configuration(stage, precision="bf16")
        report[f"resumes{stage}"] = resumes(folder / f"bf16_{stage}", adamw)
    return report


def link(folder: Path) -> dict[str, Any]:
    """One link of a chain: load what is there, two updates, save. The ZeRO stage comes from the environment."""
    config = configuration(int(os.environ["STAGE"]))
    built = build(config, seed=1 if (folder / "chain").exists() else 0)
    loaded = checkpoint.load_newest(folder / "chain", built)
    start = loaded.state.step if loaded else 0
    losses = train(built, config, start, start + 2)
    save(folder / "chain", built, start + 2)
    keep(folder / "chain.safetensors", built)
    return {"losses": losses}


if __name__ == "__main__":
    distributed.start(60)
    target = Path(sys.argv[2])
    part = {"stages": stages, "fp16": fp16, "bf16": bf16, "link": link}[sys.argv[1]]
    files.write_json(target / f"{sys.argv[1]}-{distributed.rank()}.json", part(target))
    distributed.finish(0)
