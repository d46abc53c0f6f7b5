"""The DeepSpeed engine around PairModel: its whole configuration, its parameter groups, and its weights made whole.

The only importer of deepspeed. `build` returns the DeepSpeed engine itself, no wrapper; `train_step` updates it and
`zero_views` reads what it holds by parameter name.
"""

import contextlib
import importlib
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from stence_dist import distributed
from stence_dist.config.engine import EngineConfig
from stence_dist.config.optimizer import AdamWConfig, OptimizerConfig, SgdConfig
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.errors import RefusedError

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed chooses its accelerator while it is imported

import deepspeed
import deepspeed.ops
from deepspeed.runtime import compiler

if deepspeed.accelerator.get_accelerator().device_name() == "cpu":
    # Otherwise DeepSpeed's first start on CPU compiles a C++ operator: it dies where there is no compiler, and hangs
    # for ever on the lock of a killed build. Setting the whole table also skips its compiler probes.
    vars(deepspeed.ops).setdefault("__compatible_ops__", defaultdict(bool))
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _import_muon_uncompiled() -> None:
    """DeepSpeed imports its Muon optimizer whichever optimizer is used, and Muon is compiled as it is imported: that
    costs every rank seconds of its start, all of them in the import of torch's compiler.
    """
    compile_lazily = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compile_lazily


_import_muon_uncompiled()

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


def resolve_precision(config: EngineConfig, device: torch.device) -> str:
    """`fp32`, `bf16` or `fp16`: what `engine.precision` means on `device`."""
    if config.precision != "auto":
        return config.precision
    # GPUs before Ampere only emulate bf16, slower than float32.
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def deepspeed_config(
    config: EngineConfig, optimizer: OptimizerConfig, *, elements: int, world_size: int, device: torch.device
) -> dict[str, Any]:
    """DeepSpeed's whole configuration. Every key that acts is written: DeepSpeed clips at 1.0 when the key is missing
    and accepts misspelt top-level keys in silence. `elements` is the number of parameters, each counted whole.

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
            # Below stage 3, true is the same all-reduce between two copies of every gradient.
            "reduce_scatter": config.zero_stage == 3,
            "overlap_comm": device.type == "cuda",
            # A buffer of this size is allocated in every backward pass.
            "reduce_bucket_size": min(BUCKET_ELEMENTS, elements),
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
    """Optimizer groups by learning rate and weight decay, none of them empty; `tower` says whose rate a group follows.

    Norms, biases and logit_scale are not decayed; frozen parameters are left out. Towers of one rate share a group:
    ZeRO takes a norm and gathers weights over all ranks once per group.
    """
    rates = peak_rates(config)
    first_of_rate = {rate: tower for tower, rate in reversed(rates.items())}
    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tower = _TOWERS[name.partition(".")[0]]
            decays = parameter.ndim > 1 and tower != "scale" and not name.endswith("bias")
            members.setdefault((first_of_rate[rates[tower]], decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "tower": tower,
            "lr": rates[tower],
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (tower, decays), parameters in members.items()
    ]


def peak_rates(config: OptimizerConfig) -> dict[str, float]:
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
    settings = deepspeed_config(
        config.engine,
        config.optimizer,
        elements=sum(parameter.numel() for parameter in model.parameters()),
        world_size=distributed.world_size(),
        device=device,
    )
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
