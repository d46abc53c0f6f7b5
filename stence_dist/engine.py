"""The DeepSpeed engine around PairModel: its whole configuration, parameter groups, learning rates, and one step.

The only importer of deepspeed. `build` returns the DeepSpeed engine itself, no wrapper; `zero_views` reads what it
holds by parameter name.
"""

import contextlib
import logging
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from stence_dist import distributed
from stence_dist.batch import PairBatch
from stence_dist.config.engine import EngineConfig
from stence_dist.config.optimizer import AdamWConfig, OptimizerConfig, SgdConfig
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.config.targets import TargetsConfig
from stence_dist.errors import CommonFailureError, RefusedError
from stence_dist.losses import contrastive_part, pair_loss, stenosis_part
from stence_dist.models.pair_model import PairOutput
from stence_dist.profile import span
from stence_dist.targets import stenosis_labels

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed chooses its accelerator while it is imported

import deepspeed
import deepspeed.ops

if deepspeed.accelerator.get_accelerator().device_name() == "cpu":
    # Otherwise DeepSpeed's first start on CPU compiles a C++ operator: it dies where there is no compiler, and hangs
    # for ever on the lock of a killed build. Setting the whole table also skips its compiler probes.
    vars(deepspeed.ops).setdefault("__compatible_ops__", defaultdict(bool))
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

logger = logging.getLogger("stence_dist")
# What these say is known and harmless: no tensor inside a PairBatch has a gradient that ZeRO-3 would have to find,
# SGD under ZeRO is tested here, and torch's older names of collectives are what DeepSpeed 0.19 calls.
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
logging.getLogger("DeepSpeed").addFilter(
    lambda record: not any(known in record.getMessage() for known in ("PairBatch", "untested optimizer"))
)
warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*is deprecated", category=FutureWarning)

Engine = Any  # deepspeed.DeepSpeedEngine, which is untyped

DEEPSPEED_VERSION = "0.19.8"
BUCKET_ELEMENTS = 50_000_000
PERSISTENCE_ELEMENTS = 100_000
MOST_REPEATS = 20

# Which tower's learning rate a parameter follows, by the first part of its name.
_TOWERS = {
    "ecg_tower": "ecg",
    "image_tower": "image",
    "image_projector": "image",
    "stenosis_head": "image",
    "logit_scale": "scale",
    "logit_bias": "scale",
}
_AUTOCAST_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# DeepSpeed's private names that `zero_views` stands on, by ZeRO stage.
_PARTITION_NAMES = ("single_partition_of_fp32_groups", "bit16_groups", "update_lp_params")
_INTERNAL_NAMES: dict[int, tuple[str, ...]] = {
    0: (),
    1: _PARTITION_NAMES,
    2: _PARTITION_NAMES,
    3: (
        "fp16_groups",
        "fp32_partitioned_groups_flat",
        "grad_position",
        "get_param_id",
        "persistent_parameters",
        "invalidate_secondary_tensor",
        "_get_param_partition_rank",
        "_reassign_or_swap_out_partitioned_parameters",
    ),
}


class NonFiniteError(CommonFailureError):
    """A loss or a gradient became NaN or infinite; the update was not applied. Raised on all ranks."""


def resolve_precision(config: EngineConfig, device: torch.device) -> str:
    """`fp32`, `bf16` or `fp16`: what `engine.precision` means on `device`."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if device.type == "cuda" else "fp32"


def deepspeed_config(
    config: EngineConfig, optimizer: OptimizerConfig, *, world_size: int, device: torch.device
) -> dict[str, Any]:
    """DeepSpeed's whole configuration. Every key that acts is written: DeepSpeed clips at 1.0 when the key is missing
    and accepts misspelt top-level keys in silence.

    Raises ConfigError where W*A does not divide G.
    """
    precision = resolve_precision(config, device)
    return {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch(world_size),
        "gradient_accumulation_steps": config.accumulation,
        "managed_gradient_accumulation": True,
        "gradient_clipping": config.gradient_clipping,
        "gradient_allreduce_op": "mean",
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": None,
        "data_types": {"grad_accum_dtype": "fp32"},
        # Parameters and gradient reductions stay fp32 under autocast, so ZeRO stages agree with each other.
        "torch_autocast": {
            "enabled": precision != "fp32",
            "dtype": str(_AUTOCAST_DTYPES[precision]).removeprefix("torch."),
            "lower_precision_safe_modules": [],
        },
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "zero_allow_untested_optimizer": isinstance(optimizer, SgdConfig),
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": config.zero_stage,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "overlap_comm": device.type == "cuda",
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            "round_robin_gradients": False,  # true would scramble which rank holds which piece of a parameter
            # True replaces torch's linear in the whole process at stage 3, by one that rounds differently in bf16.
            "memory_efficient_linear": False,
            "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
            "stage3_param_persistence_threshold": PERSISTENCE_ELEMENTS,
        },
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
        "dump_state": False,
    }


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Optimizer groups by tower (`ecg`, `image`, `scale`, under the key `tower`) and weight decay, none of them empty.

    Norms, biases and logit_scale are not decayed; frozen parameters are left out.
    """
    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tower = _TOWERS[name.partition(".")[0]]
            decays = parameter.ndim > 1 and tower != "scale" and not name.endswith("bias")
            members.setdefault((tower, decays), []).append(parameter)
    rates = _peak_rates(config)
    return [
        {
            "params": parameters,
            "tower": tower,
            "lr": rates[tower],
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (tower, decays), parameters in members.items()
    ]


def _peak_rates(config: OptimizerConfig) -> dict[str, float]:
    return {"ecg": config.ecg_lr, "image": config.image_lr, "scale": config.scale_lr}


def _optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    # One tensor at a time: the fused and multi-tensor forms round differently from build to build.
    if isinstance(config, AdamWConfig):
        betas = (config.beta1, config.beta2)
        return torch.optim.AdamW(groups, betas=betas, eps=config.epsilon, foreach=False, fused=False)
    if isinstance(config, SgdConfig):
        return torch.optim.SGD(groups, lr=config.ecg_lr, momentum=config.momentum, foreach=False, fused=False)
    raise TypeError(f"no optimizer is known for {type(config).__name__}")


def build(model: nn.Module, config: PretrainConfig, *, device: torch.device) -> Engine:
    """The DeepSpeed engine of `model`, in training mode. The process group must exist (`distributed.start`).

    Raises ConfigError where W*A does not divide G, RefusedError where DeepSpeed is not the version that `zero_views`
    was written for.
    """
    for name, parameter in model.named_parameters():
        # DeepSpeed's initial broadcast cannot take either.
        assert parameter.ndim > 0, f"{name} has no dimension"
        assert parameter.is_contiguous(), f"{name} is not contiguous"
    for module in model.modules():
        # Draws come with the batch: torch's own would differ between the two passes of `_accumulate_cached` and
        # between numbers of ranks.
        assert not isinstance(module, _DropoutNd) or module.p == 0, f"{type(module).__name__} draws for itself"
    settings = deepspeed_config(config.engine, config.optimizer, world_size=distributed.world_size(), device=device)
    model.to(device)
    optimizer = _optimizer(parameter_groups(model, config.optimizer), config.optimizer)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    distributed.limit_all_groups(config.engine.timeout_s)
    _check_internals(engine)
    engine.train()
    return engine


def _check_internals(engine: Engine) -> None:
    stage = engine.zero_optimization_stage()
    missing = [name for name in _INTERNAL_NAMES[stage] if not hasattr(engine.optimizer, name)]
    if stage in (1, 2) and not all(hasattr(p, "_hp_mapping") for p in engine.module.parameters() if p.requires_grad):
        missing.append("_hp_mapping")
    if missing:
        raise RefusedError(
            f"DeepSpeed {deepspeed.__version__} lacks {', '.join(missing)}, by which checkpoints read its partitions. "
            f"Install the version that they were written for: pip install deepspeed=={DEEPSPEED_VERSION}."
        )


def learning_rates(step: int, total: int, config: OptimizerConfig) -> dict[str, float]:
    """The rates of update `step` (0 to total - 1) by tower: linear warm-up, then half a cosine down to `final`."""
    warmup = round(config.warmup * total)
    if step < warmup:
        share = (step + 1) / warmup
    else:
        progress = (step - warmup) / max(total - warmup, 1)
        share = config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return {tower: peak * share for tower, peak in _peak_rates(config).items()}


@dataclass(frozen=True)
class StepResult:
    """What one update is logged with: global means, alike on all ranks."""

    loss: float
    contrastive: float
    stenosis: float
    grad_norm: float  # over all parameters, before clipping
    logit_scale: float  # the inverse temperature that the loss used
    lr_ecg: float
    lr_image: float


def train_step(
    engine: Engine,
    micro_batches: Sequence[PairBatch],
    *,
    step: int,
    total: int,
    known: Tensor,
    config: PretrainConfig,
    active: NDArray[np.bool_] | None = None,
) -> StepResult:
    """Update `step` of `total` with this rank's A micro-batches (on CPU), and what it is logged with.

    known (3,): labels known in the whole step over all ranks, per part of the stenosis loss, counted over active
    targets; active (11,): targets that take part, None = all. In fp16 a step whose gradient overflows is repeated at
    the lower loss scale. Raises NonFiniteError on all ranks, before anything is applied, where a loss or a gradient is
    not finite.
    """
    assert len(micro_batches) == config.engine.accumulation
    rates = learning_rates(step, total, config.optimizer)
    for group in engine.optimizer.param_groups:
        group["lr"] = rates[group["tower"]]
    one_pool_of_several = config.engine.negatives == "accumulated" and len(micro_batches) > 1
    accumulate = _accumulate_cached if one_pool_of_several else _accumulate
    for repeat in range(MOST_REPEATS + 1):
        terms, faulty, logit_scale = accumulate(engine, micro_batches, step, known, config, active)
        loss, contrastive, stenosis = _global_means(terms, faulty, step, micro_batches)
        with span("optimizer"):
            norm = _apply(engine)
        if math.isfinite(norm):
            return StepResult(loss, contrastive, stenosis, norm, logit_scale, rates["ecg"], rates["image"])
        if engine.torch_autocast_z0_gradscaler is None:
            break
        # DeepSpeed counts a step that the loss scaler skipped; the schedule and the data order do not.
        engine.global_steps -= 1
        engine.skipped_steps += 1
        scale = engine.torch_autocast_z0_gradscaler.get_scale()
        logger.warning("step %d: the gradient overflowed in fp16; repeat %d at scale %g", step + 1, repeat + 1, scale)
    samples = distributed.all_gather(_samples(micro_batches))
    raise NonFiniteError(
        f"step {step + 1}: the gradient norm is {norm} on all ranks while the loss is finite ({loss:.6g}); the update "
        f"was not applied. Samples of the batch: {listed(samples)}. Lower optimizer.ecg_lr and optimizer.image_lr, or "
        "use engine.precision=fp32."
    )


def _accumulate(
    engine: Engine,
    micro_batches: Sequence[PairBatch],
    step: int,
    known: Tensor,
    config: PretrainConfig,
    active: NDArray[np.bool_] | None,
) -> tuple[Tensor, Tensor, float]:
    """Gradients of all micro-batches, each with its own pool of negatives. This rank's means (3,) of loss, contrastive
    and stenosis; which of its rows (A*B,) the model answered with something that is not finite; the logit scale.
    """
    passes = distributed.world_size() * len(micro_batches)
    terms = torch.zeros(3, dtype=torch.float64, device=engine.device)
    faulty = []
    known = known.to(engine.device)
    for index, micro_batch in enumerate(micro_batches):
        labels = _labels(micro_batch, config.targets, active).to(engine.device)
        batch = micro_batch.to(engine.device)
        with span("forward"):
            output: PairOutput = engine(batch)
        with span("loss"):
            loss = pair_loss(output, labels, batch.patient, known=known, passes=passes, config=config.loss)
        terms += torch.stack([loss.total.detach(), loss.contrastive, loss.stenosis]).double()
        faulty.append(_faulty(output.ecg, output.image, output.stenosis_logits))
        with span("backward"):
            engine.backward(loss.total)
        logit_scale = float(output.logit_scale.detach())
        del output, loss  # with their graph, which keeps a tile of logits: not through the next forward
        if index + 1 < len(micro_batches):
            engine.step()  # counts the micro-batch; the update is applied with the last one
    return terms / len(micro_batches), torch.cat(faulty), logit_scale


def _accumulate_cached(
    engine: Engine,
    micro_batches: Sequence[PairBatch],
    step: int,
    known: Tensor,
    config: PretrainConfig,
    active: NDArray[np.bool_] | None,
) -> tuple[Tensor, Tensor, float]:
    """As `_accumulate`, but with one pool of negatives over all micro-batches: the gradient of the batch in one piece.

    Gao et al. 2021 (arXiv:2101.06983): embed all micro-batches without a graph, take the loss once and its gradient
    by the embeddings, then embed each again and feed it its part of that gradient. Both passes see the same model:
    dropped paths come with the batch, nothing else in it is random.
    """
    with torch.no_grad(), span("forward"):
        outputs: list[PairOutput] = [engine(batch.to(engine.device)) for batch in micro_batches]
    ecg, image = torch.cat([output.ecg for output in outputs]), torch.cat([output.image for output in outputs])
    leaves = [value.detach().requires_grad_() for value in (ecg, image, outputs[0].logit_scale, outputs[0].logit_bias)]
    patient = torch.cat([batch.patient for batch in micro_batches]).to(engine.device)
    with span("loss"):
        contrastive = contrastive_part(*leaves, patient=patient, config=config.loss)
    # Before the second pass: it would take a gradient that is not finite into every weight.
    mean = contrastive.detach().double()
    _global_means(torch.stack([mean, mean, 0 * mean]), _faulty(ecg, image), step, micro_batches)
    with span("loss"):
        gradients = torch.autograd.grad(contrastive, leaves, allow_unused=True, materialize_grads=True)
    del contrastive, outputs  # the second pass needs the memory
    sizes = [len(batch) for batch in micro_batches]
    of_ecg, of_image = torch.split(gradients[0], sizes), torch.split(gradients[1], sizes)
    faulty, stenosis = [], torch.zeros((), dtype=torch.float64, device=engine.device)
    for index, micro_batch in enumerate(micro_batches):
        labels = _labels(micro_batch, config.targets, active).to(engine.device)
        with span("forward"):
            output: PairOutput = engine(micro_batch.to(engine.device))
        # The scale and the bias are one and the same in all micro-batches: the first carries their whole gradient,
        # the others a zero, so that ZeRO sees them in each.
        scale_share = float(index == 0)
        backward_from = sum(
            (value * gradient).sum()
            for value, gradient in (
                (output.ecg, of_ecg[index]),
                (output.image, of_image[index]),
                (output.logit_scale, scale_share * gradients[2]),
                (output.logit_bias, scale_share * gradients[3]),
            )
        )
        share = stenosis_part(
            output.stenosis_logits,
            labels,
            known=known.to(engine.device),
            passes=distributed.world_size(),
            config=config.loss,
        )
        stenosis += share.detach()
        faulty.append(_faulty(output.ecg, output.image, output.stenosis_logits))
        # The micro-batches' gradients add up to the step's: no division by A.
        with span("backward"):
            engine.backward(backward_from + config.loss.stenosis_weight * share, scale_wrt_gas=False)
        if index + 1 < len(micro_batches):
            engine.step()
    total = mean + config.loss.stenosis_weight * stenosis
    return torch.stack([total, mean, stenosis]), torch.cat(faulty), float(leaves[2].detach())


def _faulty(*values: Tensor) -> Tensor:
    """(B,) True for rows with an entry that is not finite in any of `values` (B, ...)."""
    return ~torch.cat([value.detach() for value in values], dim=1).isfinite().all(dim=1)


def _labels(batch: PairBatch, config: TargetsConfig, active: NDArray[np.bool_] | None) -> Tensor:
    """Labels (B, 11), NaN where unknown or where the target does not take part. Every pair has a study."""
    labels = stenosis_labels(batch.segments.numpy(), config, np.ones(len(batch), dtype=np.bool_))
    if active is not None:
        labels[:, ~active] = np.nan
    return torch.from_numpy(labels)


def _global_means(terms: Tensor, faulty: Tensor, step: int, micro_batches: Sequence[PairBatch]) -> list[float]:
    """Means (3,) over ranks; NonFiniteError on all ranks where any rank's loss is not finite."""
    by_rank = distributed.all_gather(terms[None])
    bad = (~by_rank.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        # The gathered columns carry one rank's NaN into the losses of all, so the rows say where it came from.
        samples = distributed.all_gather(_samples(micro_batches)[None])
        sources = distributed.all_gather(faulty.to(samples.device, torch.uint8)[None]).bool()
        rank = next(iter(sources.any(dim=1).nonzero().flatten().tolist()), bad[0])
        total, contrastive, stenosis = by_rank[rank].tolist()
        raise NonFiniteError(
            f"step {step + 1}: the loss on rank {rank} on {distributed.hosts()[rank]} is {total:g} (contrastive "
            f"{contrastive:g}, stenosis {stenosis:g}); the update was not applied. Samples whose embedding or logits "
            f"are not finite: {listed(samples[sources]) or 'none'}. Look at these samples, or lower optimizer.ecg_lr "
            "and optimizer.image_lr."
        )
    means: list[float] = by_rank.mean(dim=0).tolist()
    return means


def _samples(micro_batches: Sequence[PairBatch]) -> Tensor:
    return torch.cat([batch.sample for batch in micro_batches]).to(distributed.collective_device())


def listed(samples: Tensor) -> str:
    """Sample numbers (n,) as text, the first 32 of them."""
    shown = " ".join(str(sample) for sample in samples[:32].tolist())
    return shown if len(samples) <= 32 else f"{shown} and {len(samples) - 32} more"


def _apply(engine: Engine) -> float:
    """The gradient's norm before clipping, after the update; not finite where the update was not applied."""
    if engine.zero_optimization_stage() > 0:
        engine.step()
        return float(engine.get_global_grad_norm()) if engine.was_step_applied() else math.inf
    scaler = engine.torch_autocast_z0_gradscaler
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients, foreach=False)) / (scaler.get_scale() if scaler else 1.0)
    if scaler is not None or math.isfinite(norm):  # stage 0 applies whatever it is given; only fp16's scaler skips
        engine.step()
    return norm


@contextlib.contextmanager
def gathered(engine: Engine, parameters: Sequence[nn.Parameter], *, modify: bool = False) -> Iterator[None]:
    """Inside, `parameters` are whole at every ZeRO stage. Collective. With modify, rank 0's changes reach all ranks
    at stage 3; below, every rank must make them.
    """
    if engine.zero_optimization_stage() < 3:
        yield
        return
    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0 if modify else None):
        yield


def full_state(engine: Engine) -> dict[str, Tensor]:
    """All parameters and stored buffers by name, whole, on CPU, floats as float32; on every rank. Collective."""
    state: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        with gathered(engine, [parameter]):
            state[name] = parameter.detach().to("cpu", torch.float32, copy=True)
    for name, buffer in stored_buffers(engine).items():
        dtype = torch.float32 if buffer.is_floating_point() else buffer.dtype
        state[name] = buffer.detach().to("cpu", dtype, copy=True)
    return state


def stored_buffers(engine: Engine) -> dict[str, Tensor]:
    """The module's persistent buffers by name; the others follow from the configuration."""
    stored = engine.module.state_dict().keys()
    return {name: buffer for name, buffer in engine.module.named_buffers() if name in stored}
