"""What a DeepSpeed engine holds, by parameter name: this rank's pieces of the fp32 values and the optimizer's state.

DeepSpeed's own getters and setters by name fail or hang for most combinations of stage, group and world size
(0.19.8), so these views go to its flat buffers. `engine._check_internals` lists the private names they stand on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stence_dist.engine import Engine, gathered, stored_buffers

FP32 = "fp32"


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + numel) of one flattened trainable parameter, as this rank holds them."""

    name: str
    shape: tuple[int, ...]  # of the whole parameter
    start: int
    numel: int
    values: dict[str, Tensor]  # (numel,) each: "fp32" and the optimizer's tensors. Writing to them changes the engine
    steps: Tensor | None  # 0-d: updates that the optimizer has counted; pieces of one flat buffer share it
    weights: Tensor  # (numel,): the same elements of the weights that the model computes with

    def part(self, index: int, parts: int) -> "Fragment":
        """The `index`-th of `parts` nearly equal pieces; what each rank saves where all hold everything."""
        low, high = self.numel * index // parts, self.numel * (index + 1) // parts
        values = {key: value[low:high] for key, value in self.values.items()}
        return Fragment(self.name, self.shape, self.start + low, high - low, values, self.steps, self.weights[low:high])


def value_keys(engine: Engine) -> tuple[str, ...]:
    """Names of what is kept per element: the fp32 value and the optimizer's tensors."""
    return (FP32, *_state_keys(_inner(engine)))


def _inner(engine: Engine) -> torch.optim.Optimizer:
    """The torch optimizer inside DeepSpeed's."""
    optimizer: torch.optim.Optimizer = (
        engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer
    )
    return optimizer


def _state_keys(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    if isinstance(optimizer, torch.optim.AdamW):
        return ("exp_avg", "exp_avg_sq")
    assert isinstance(optimizer, torch.optim.SGD)
    return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()


def _stepped_tensors(engine: Engine) -> list[Tensor]:
    """What the torch optimizer updates: parameters at stage 0, flat partitions above."""
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    if stage > 0:
        return list(engine.optimizer.single_partition_of_fp32_groups)
    return [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]


def initialize_states(engine: Engine) -> None:
    """Give the optimizer the state that it would make at its first update, where it has none yet."""
    optimizer = _inner(engine)
    for tensor in _stepped_tensors(engine):
        state = optimizer.state[tensor]
        for key in _state_keys(optimizer):
            if state.get(key) is None:
                state[key] = torch.zeros_like(tensor)
        if isinstance(optimizer, torch.optim.AdamW):
            state.setdefault("step", torch.zeros((), dtype=torch.float32))


def fragments(engine: Engine) -> Iterator[Fragment]:
    """This rank's fragments of the trainable parameters, in the model's order. No communication, no copies.

    Call `initialize_states` before. At stage 0 every rank holds everything; above, each element has one holder.
    """
    stage = engine.zero_optimization_stage()
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if stage == 0:
            yield _whole(engine, name, parameter)
        elif stage == 3:
            yield from _of_partitioned_parameter(engine, name, parameter)
        elif parameter._hp_mapping is not None:
            yield _of_flat_group(engine, name, parameter)


def _fragment(
    engine: Engine, name: str, shape: tuple[int, ...], start: int, weights: Tensor, flat: Tensor, offset: int
) -> Fragment:
    """The fragment whose elements begin at `offset` of `flat`, which the optimizer updates."""
    optimizer = _inner(engine)
    state: dict[str, Any] = optimizer.state[flat]
    numel = weights.numel()
    held = {FP32: flat.data, **{key: state[key] for key in _state_keys(optimizer)}}
    values = {key: tensor.view(-1).narrow(0, offset, numel) for key, tensor in held.items()}
    return Fragment(name, shape, start, numel, values, state.get("step"), weights)


def _whole(engine: Engine, name: str, parameter: nn.Parameter) -> Fragment:
    return _fragment(engine, name, tuple(parameter.shape), 0, parameter.data.view(-1), parameter, 0)


def _of_flat_group(engine: Engine, name: str, parameter: Any) -> Fragment:
    """Stages 1 and 2: one flat buffer per group, cut into equal parts per rank, anywhere inside a parameter."""
    mapping = parameter._hp_mapping
    flat = engine.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    piece, held = mapping.lp_fragment_address, mapping.hp_fragment_address
    weights = parameter.data.view(-1).narrow(0, piece.start, piece.numel)
    return _fragment(engine, name, tuple(parameter.shape), piece.start, weights, flat, held.start)


def _of_partitioned_parameter(engine: Engine, name: str, parameter: Any) -> Iterator[Fragment]:
    """Stage 3: each parameter is cut into equal parts per rank, the last ones padded."""
    optimizer = engine.optimizer
    group, offset, share = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = share * optimizer._get_param_partition_rank(parameter)
    numel = min(share, parameter.ds_numel - start)
    if numel > 0:
        flat = optimizer.fp32_partitioned_groups_flat[group]
        weights = parameter.ds_tensor.data.view(-1)[:numel]
        yield _fragment(engine, name, tuple(parameter.ds_shape), start, weights, flat, offset)


def shapes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """Whole shapes of the trainable parameters by name, alike on all ranks."""
    return {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    }


def set_steps(engine: Engine, steps: dict[str, int]) -> None:
    """Set the optimizer's count of updates by parameter name; nothing where the optimizer keeps none."""
    counts: dict[int, int] = {}
    for fragment in fragments(engine):
        if fragment.steps is not None:
            count = steps[fragment.name]
            assert counts.setdefault(id(fragment.steps), count) == count, (
                f"one count for all of {fragment.name}'s group"
            )
            fragment.steps.fill_(count)  # in place: each buffer must keep a tensor of its own


def untrained(engine: Engine) -> dict[str, Tensor]:
    """Frozen parameters and stored buffers, whole, copied to CPU, on every rank. Collective."""
    state = {}
    for name, parameter in _frozen(engine).items():
        with gathered(engine, [parameter]):
            state[name] = parameter.detach().to("cpu", copy=True)
    return state | {name: buffer.detach().to("cpu", copy=True) for name, buffer in stored_buffers(engine).items()}


def _frozen(engine: Engine) -> dict[str, nn.Parameter]:
    return {name: value for name, value in engine.module.named_parameters() if not value.requires_grad}


def set_untrained(engine: Engine, state: dict[str, Tensor]) -> None:
    """Write what `untrained` returned, the same on every rank. Collective."""
    with torch.no_grad():
        for name, parameter in _frozen(engine).items():
            with gathered(engine, [parameter], modify=True):
                parameter.copy_(state[name])
        for name, buffer in stored_buffers(engine).items():
            buffer.copy_(state[name])


def publish(engine: Engine) -> None:
    """Bring fp32 values written through fragments into the weights that the model computes with. Collective."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer.invalidate_secondary_tensor()
        if optimizer.persistent_parameters:
            first = optimizer.persistent_parameters[0]
            first.partition(optimizer.persistent_parameters)
            first.all_gather(optimizer.persistent_parameters)


def counters(engine: Engine) -> dict[str, Any]:
    """The engine's own counters and fp16's loss scale (None elsewhere), as JSON values."""
    scaler = engine.torch_autocast_z0_gradscaler
    return {
        "global_steps": engine.global_steps,
        "global_samples": engine.global_samples,
        "skipped_steps": engine.skipped_steps,
        "scaler": scaler.state_dict() if scaler else None,
    }


def set_counters(engine: Engine, state: dict[str, Any]) -> None:
    """Write what `counters` returned."""
    for name in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, name, int(state[name]))
    engine.micro_steps = engine.global_steps * engine.gradient_accumulation_steps()
    if engine.torch_autocast_z0_gradscaler and state["scaler"]:
        engine.torch_autocast_z0_gradscaler.load_state_dict(state["scaler"])
