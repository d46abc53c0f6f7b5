"""One rank of test_gradients.py: `gradient_ranks.py FOLDER CASE...`, gradients and three updates of each case.

Rank 0 writes FOLDER/CASE.safetensors: `gradient|NAME` of the first update, `weight|NAME` after the third.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gradient_cases import ACCUMULATION, STEPS, Case, batch_of, configuration_of, model_of
from small_pair_model import known_counts, micro_batches

from stence_dist import distributed, engine, losses, train_step, zero_views
from stence_dist.losses import contrastive_part, stenosis_part, tiles
from stence_dist.targets import STENOSIS_PARTS


def part_of_gradient(value: Tensor, share: float) -> Tensor:
    """The same value, with `share` of its gradient."""
    return share * value + (1 - share) * value.detach()


def towers(ecg: Tensor, image: Tensor, *others: Tensor, **options: Any) -> Tensor:
    """Wrong: the embeddings get 1/W of their gradient."""
    share = 1 / distributed.world_size()
    return contrastive_part(part_of_gradient(ecg, share), part_of_gradient(image, share), *others, **options)


def scale(ecg: Tensor, image: Tensor, logit_scale: Tensor, *others: Tensor, **options: Any) -> Tensor:
    """Wrong: the scale gets W times its gradient."""
    return contrastive_part(ecg, image, part_of_gradient(logit_scale, distributed.world_size()), *others, **options)


def denominators(logits: Tensor, labels: Tensor, *, known: Tensor, **options: Any) -> Tensor:
    """Wrong: each rank averages over the labels that it knows itself."""
    here = torch.stack([(~labels[:, part].isnan()).sum() for part in STENOSIS_PARTS])
    return stenosis_part(logits, labels, known=here * options["passes"], **options)


@contextmanager
def as_wrong_as(name: str) -> Iterator[None]:
    """One of the mistakes above in place of what training calls; an empty name changes nothing."""
    replaced: dict[str, tuple[str, Callable[..., Tensor]]] = {
        "towers": ("contrastive_part", towers),
        "scale": ("contrastive_part", scale),
        "denominators": ("stenosis_part", denominators),
    }
    with ExitStack() as stack:
        if name:
            for module in (train_step, losses):
                stack.enter_context(mock.patch.object(module, *replaced[name]))
        yield


def whole_gradients(built: engine.Engine) -> dict[str, Tensor]:
    """Every parameter's gradient after the first update: then it is SGD's momentum buffer."""
    found = {}
    pieces: dict[str, list[zero_views.Fragment]] = {}
    for fragment in zero_views.fragments(built):
        if built.zero_optimization_stage() > 0 or distributed.rank() == 0:
            pieces.setdefault(fragment.name, []).append(fragment)
    for name, shape in zero_views.shapes(built).items():
        whole = torch.zeros(shape).flatten()
        for fragment in pieces.get(name, []):
            whole[fragment.start : fragment.start + fragment.numel] = fragment.values["momentum_buffer"]
        found[name] = distributed.all_reduce_sum(whole).reshape(shape)
    return found


def run(case: Case, folder: Path) -> None:
    """Three updates of one case."""
    tiles._SIZES = {"cpu": (2, 5, 0) if case.tiled else (512, 4096, 2**23)}
    engine.PERSISTENCE_ELEMENTS = 40  # at stage 3 some parameters stay whole, some do not
    config = configuration_of(case)
    built = engine.build(model_of(case), config, device=torch.device("cpu"))
    zero_views.initialize_states(built)
    values: dict[str, Tensor] = {}
    with as_wrong_as(case.mistake):
        for step in range(STEPS):
            batch = batch_of(case, step)
            share = micro_batches(batch, distributed.rank(), distributed.world_size(), ACCUMULATION)
            known = known_counts(batch, config)
            train_step.train_step(built, share, step=step, total=STEPS, known=known, config=config)
            if step == 0:
                values |= {f"gradient|{name}": value for name, value in whole_gradients(built).items()}
    values |= {f"weight|{name}": value for name, value in engine.full_state(built).items()}
    if distributed.rank() == 0:
        save_file(values, folder / f"{case.name}.safetensors")


if __name__ == "__main__":
    distributed.start(60)
    for text in sys.argv[2:]:
        run(Case.parse(text), Path(sys.argv[1]))
    distributed.finish(0)
