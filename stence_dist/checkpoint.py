"""Checkpoints of a DeepSpeed engine that any number of ranks at any ZeRO stage can resume from.

A checkpoint is a folder `step_NNNNNNNNN`: a safetensors part per rank with that rank's fragments under the keys
`NAME|fp32`, `NAME|exp_avg`, ..., and `manifest.json`, which says where each fragment lies in its parameter. It is
written under a temporary name, synced, and renamed, so it is whole or not there; parts and manifest carry hashes.
Nothing else needs saving: order, augmentation and learning rates are functions of the step.
"""

import contextlib
import json
import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from stence_dist import distributed, files, zero_views
from stence_dist.engine import Engine
from stence_dist.errors import CommonFailureError, DataError

logger = logging.getLogger("stence_dist")

FORMAT = 2
MANIFEST = "manifest.json"
_PREFIX = "step_"
_UNTRAINED = "untrained"


class SaveError(CommonFailureError):
    """A checkpoint could not be written. Raised on all ranks; the checkpoints before it are untouched."""


@dataclass(frozen=True)
class TrainState:
    """All that a run is, beside the engine."""

    step: int  # updates done
    config_hash: str
    index_hash: str


@dataclass(frozen=True)
class Best:
    """The best validation so far."""

    value: float
    step: int
    metric: str


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint held beside the engine's state."""

    path: Path
    state: TrainState
    best: Best | None


# ---- saving


def save(folder: Path, engine: Engine, state: TrainState, *, best: Best | None, keep_last: int) -> Path:
    """Commit a checkpoint of `state.step` under `folder` and return its path. Collective.

    Afterwards the `keep_last` newest remain, and the one of `best.step`. A checkpoint of the same step is replaced.
    Raises SaveError on all ranks where any rank fails; what was there before is then still there.
    """
    final = folder / f"{_PREFIX}{state.step:09d}"
    nonce = distributed.broadcast_bytes(secrets.token_hex(4).encode()).decode()
    temporary = folder / f"{files.TEMPORARY_PREFIX}{final.name}-{nonce}"
    zero_views.initialize_states(engine)
    untrained = zero_views.untrained(engine)

    def prepare() -> None:
        if distributed.rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            files.sweep(folder)
            temporary.mkdir()

    def commit() -> None:
        if distributed.rank() == 0:
            body = _manifest_body(engine, state, best, [json.loads(description) for description in descriptions])
            _check_sizes(temporary, body["parts"])  # a rank on another file system wrote its part elsewhere
            files.write_json(temporary / MANIFEST, {"body": body, "sha256": files.sha256_json(body)})
            if final.exists():
                files.remove_tree(final)
            os.rename(temporary, final)

    try:
        _together(prepare)
        descriptions = _together(lambda: json.dumps(_write_part(temporary, engine, untrained)))
        _together(commit)
    except SaveError:
        if distributed.rank() == 0:
            files.sweep(folder)
        raise
    if distributed.rank() == 0:
        _settle(folder, state.step, best, keep_last)
    distributed.barrier()
    return final


def _together(action: Callable[[], str | None]) -> list[str]:
    """Run a local `action` on each rank; what each returned. SaveError on all ranks where it failed on any."""
    failure: Exception | None = None
    try:
        answer = "+" + (action() or "")
    except Exception as error:
        failure = error
        answer = f"-{type(error).__name__}: {error}"
    answers = [content.decode() for content in distributed.all_gather_bytes(answer.encode())]
    failing = [rank for rank, text in enumerate(answers) if text.startswith("-")]
    if failing:
        hosts = distributed.hosts()
        failed = [f"rank {rank} on {hosts[rank]}: {answers[rank][1:]}" for rank in failing]
        raise SaveError(
            f"The checkpoint could not be written ({'; '.join(failed)}). The previous checkpoints are untouched. Make "
            "room or mend the folder, then start the same command again: it resumes from the newest one."
        ) from failure
    return [text[1:] for text in answers]


def _write_part(temporary: Path, engine: Engine, untrained: dict[str, Tensor]) -> dict[str, Any]:
    """Write this rank's part; what the manifest says about it."""
    rank, world_size = distributed.rank(), distributed.world_size()
    replicated = engine.zero_optimization_stage() == 0
    tensors: dict[str, Tensor] = {}
    spans: dict[str, list[int]] = {}
    steps: dict[str, int | None] = {}
    for fragment in zero_views.fragments(engine):
        # With fp32 and autocast the optimizer's values and the model's weights are one thing; were a view mistaken
        # about where DeepSpeed keeps what, they would differ.
        if not torch.equal(fragment.values[zero_views.FP32], fragment.weights):
            raise RuntimeError(f"the fp32 values of {fragment.name} are not the model's weights")
        saved = fragment.part(rank, world_size) if replicated else fragment
        if saved.numel:
            spans[saved.name] = [saved.start, saved.numel]
            steps[saved.name] = None if saved.steps is None else int(saved.steps)
            for key, value in saved.values.items():
                tensors[f"{saved.name}|{key}"] = value.detach().to("cpu", copy=True)
    if rank == 0:
        tensors |= {f"{name}|{_UNTRAINED}": value.contiguous() for name, value in untrained.items()}
    path = temporary / f"part-{rank:05d}.safetensors"
    with files.replacing(path) as unfinished:
        save_file(tensors, unfinished)
    description = {"file": path.name, "bytes": path.stat().st_size, "sha256": files.sha256_file(path)}
    return description | {"spans": spans, "steps": steps}


def _manifest_body(
    engine: Engine, state: TrainState, best: Best | None, descriptions: list[dict[str, Any]]
) -> dict[str, Any]:
    steps: dict[str, int | None] = {}
    for description in descriptions:
        for name, count in description.pop("steps").items():
            assert steps.setdefault(name, count) == count, f"ranks have counted different updates of {name}"
    return {
        "format": FORMAT,
        "state": asdict(state),
        "best": asdict(best) if best else None,
        "world_size": distributed.world_size(),
        "zero_stage": engine.zero_optimization_stage(),
        "keys": list(zero_views.value_keys(engine)),
        "parameters": {
            name: {"shape": list(shape), "step": steps[name]} for name, shape in zero_views.shapes(engine).items()
        },
        "counters": zero_views.counters(engine),
        "parts": descriptions,
    }


def _settle(folder: Path, step: int, best: Best | None, keep_last: int) -> None:
    """Make the new checkpoint's name durable, then remove those beyond retention. Failures are only logged: the
    checkpoint is there.
    """
    try:
        files.sync_folder(folder)
        # Anything newer was found damaged when the run resumed from before it.
        kept = [path for path in _committed(folder) if _step_of(path) <= step and _is_readable(path)][:keep_last]
        for path in _committed(folder):
            if path not in kept and not (best and _step_of(path) == best.step):
                files.remove_tree(path)
    except OSError as error:
        logger.warning("checkpoint of step %d is written, but tidying %s failed: %s", step, folder, error)


# ---- finding


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _committed(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=_step_of, reverse=True)


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest's body. Raises DataError unless its hash holds and the parts have the sizes that it names."""
    content = files.read_json(path / MANIFEST)
    body = content.get("body") if isinstance(content, dict) else None
    if not isinstance(body, dict) or content.get("sha256") != files.sha256_json(body):
        raise DataError(f"{path / MANIFEST} does not match its own hash")
    if body["format"] != FORMAT:
        raise DataError(f"{path} has format {body['format']}, this version reads format {FORMAT}")
    _check_sizes(path, body["parts"])
    return body


def _check_sizes(path: Path, parts: list[dict[str, Any]]) -> None:
    for part in parts:
        file = path / part["file"]
        try:
            size = file.stat().st_size
        except OSError:
            size = -1
        if size != part["bytes"]:
            raise DataError(f"{file} is missing" if size < 0 else f"{file} has {size} of {part['bytes']} bytes")


def _is_readable(path: Path) -> bool:
    try:
        _read_manifest(path)
    except DataError:
        return False
    return True


def _none_whole(folder: Path, reasons: list[str]) -> DataError:
    error = DataError(
        f"{folder} holds checkpoints, but none that is whole on all ranks: {'; '.join(reasons)}. Restore one, or move "
        "the folder away to start this run again from step 0."
    )
    error.quiet = distributed.rank() != 0  # all ranks have agreed on it
    return error


def _agree_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole as all ranks see it, with its manifest. Collective; the same everywhere."""
    manifests: dict[str, dict[str, Any]] = {}
    reasons: dict[str, str] = {}
    for path in _committed(folder):
        try:
            manifests[path.name] = _read_manifest(path)
        except DataError as error:
            reasons[path.name] = str(error)
    hashes = {name: files.sha256_json(manifest) for name, manifest in manifests.items()}
    views = [json.loads(view) for view in distributed.all_gather_bytes(json.dumps([hashes, reasons]).encode())]
    names = sorted({name for view in views for kind in view for name in kind}, reverse=True)
    problems: list[str] = []
    for name in names:
        problem = _first_problem(folder / name, manifests.get(name), views)
        if problem is None:
            for skipped in problems:
                _log_on_first_rank(f"skipping a damaged checkpoint: {skipped}")
            return folder / name, manifests[name]
        problems.append(problem)
    if names:
        raise _none_whole(folder, problems)
    if any(folder.glob(f"{files.TEMPORARY_PREFIX}*")):
        _log_on_first_rank(f"{folder} holds only an unfinished save, which is no checkpoint: starting at step 0")
    return None


def _first_problem(path: Path, manifest: dict[str, Any] | None, views: list[list[dict[str, str]]]) -> str | None:
    """Why a checkpoint cannot be used, None where it is whole. views: by rank, (hashes, reasons). Collective."""
    for rank, (hashes, reasons) in enumerate(views):
        if path.name not in hashes:
            return reasons.get(path.name, f"{path} is not there on rank {rank}")
        if hashes[path.name] != views[0][0][path.name]:
            return f"{path} is another one on rank {rank} than on rank 0"
    assert manifest is not None
    broken = ""
    for part in manifest["parts"][distributed.rank() :: distributed.world_size()]:
        try:
            if files.sha256_file(path / part["file"]) != part["sha256"]:
                broken = f"{path / part['file']} does not match its hash"
        except OSError as error:
            broken = f"{path / part['file']} cannot be read ({error})"
    return next((answer.decode() for answer in distributed.all_gather_bytes(broken.encode()) if answer), None)


def _log_on_first_rank(message: str) -> None:
    if distributed.rank() == 0:
        logger.warning(message)


# ---- loading


def load_newest(folder: Path, engine: Engine) -> Loaded | None:
    """Bring the newest whole checkpoint into `engine`; None where nothing was ever committed. Collective.

    A damaged newer one is skipped with a warning. Raises DataError where checkpoints are there, but none is whole, or
    where it holds other parameters than the engine.
    """
    newest = _agree_newest(folder)
    if newest is None:
        return None
    path, manifest = newest
    zero_views.initialize_states(engine)
    try:
        pieces = _pieces(path, manifest, engine)
    except DataError as error:
        error.quiet = distributed.rank() != 0  # all ranks read one manifest
        raise
    with contextlib.ExitStack() as stack:
        readers = [
            stack.enter_context(safe_open(path / part["file"], framework="pt", device="cpu"))
            for part in manifest["parts"]
        ]
        for fragment in zero_views.fragments(engine):
            _read_fragment(fragment, readers, pieces[fragment.name])
        untrained = {
            key.removesuffix(f"|{_UNTRAINED}"): readers[0].get_tensor(key)
            for key in readers[0].keys()  # noqa: SIM118  (a reader is no mapping)
            if key.endswith(f"|{_UNTRAINED}")
        }
    zero_views.set_steps(engine, {name: entry["step"] for name, entry in manifest["parameters"].items()})
    zero_views.set_untrained(engine, untrained)
    zero_views.publish(engine)
    zero_views.set_counters(engine, manifest["counters"])
    best = Best(**manifest["best"]) if manifest["best"] else None
    return Loaded(path, TrainState(**manifest["state"]), best)


@torch.no_grad()
def _read_fragment(fragment: zero_views.Fragment, readers: list[Any], pieces: list[tuple[int, int, int]]) -> None:
    """Copy a fragment's values out of the stored pieces (part, start, numel) that overlap it."""
    for part, start, numel in pieces:
        low, high = max(start, fragment.start), min(start + numel, fragment.start + fragment.numel)
        if low < high:
            for key, target in fragment.values.items():
                stored = readers[part].get_slice(f"{fragment.name}|{key}")[low - start : high - start]
                target[low - fragment.start : high - fragment.start].copy_(stored)


def _pieces(path: Path, manifest: dict[str, Any], engine: Engine) -> dict[str, list[tuple[int, int, int]]]:
    """Where each parameter's elements are: (part, start, numel) in order of start, without gap or overlap.

    Raises DataError where the checkpoint and the engine differ in parameters, shapes or optimizer.
    """
    expected = {name: list(shape) for name, shape in zero_views.shapes(engine).items()}
    found = {name: entry["shape"] for name, entry in manifest["parameters"].items()}
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if different:
        shown = ", ".join(f"{name} (here {expected.get(name)}, stored {found.get(name)})" for name in different[:3])
        raise DataError(f"{path} holds another model: {len(different)} parameters differ, e.g. {shown}.")
    if tuple(manifest["keys"]) != zero_views.value_keys(engine):
        raise DataError(
            f"{path} holds {', '.join(manifest['keys'])} per parameter; this optimizer needs "
            f"{', '.join(zero_views.value_keys(engine))}."
        )
    pieces: dict[str, list[tuple[int, int, int]]] = {name: [] for name in expected}
    for part, description in enumerate(manifest["parts"]):
        for name, (start, numel) in description["spans"].items():
            pieces[name].append((part, start, numel))
    for name, spans in pieces.items():
        spans.sort(key=lambda span: span[1])
        ends = [0, *(start + numel for _, start, numel in spans)]
        if ends[:-1] != [start for _, start, _ in spans] or ends[-1] != torch.Size(expected[name]).numel():
            raise DataError(f"{path}: the stored pieces of {name} do not make a whole.")
    return pieces
