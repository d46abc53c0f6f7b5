"""One optimizer update: learning rates, gradients over the micro-batches, the checks before anything is applied."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stence_dist import distributed
from stence_dist.batch import PairBatch
from stence_dist.config.optimizer import OptimizerConfig
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.config.targets import TargetsConfig
from stence_dist.engine import Engine, peak_rates
from stence_dist.errors import CommonFailureError
from stence_dist.losses import contrastive_part, pair_loss, stenosis_part
from stence_dist.models.pair_model import PairOutput
from stence_dist.profile import span
from stence_dist.targets import stenosis_labels

logger = logging.getLogger("stence_dist")

MOST_REPEATS = 20


class NonFiniteError(CommonFailureError):
    """A loss or a gradient became NaN or infinite; the update was not applied. Raised on all ranks."""


def learning_rates(step: int, total: int, config: OptimizerConfig) -> dict[str, float]:
    """The rates of update `step` (0 to total - 1) by tower: linear warm-up, then half a cosine down to `final`."""
    warmup = round(config.warmup * total)
    if step < warmup:
        share = (step + 1) / warmup
    else:
        progress = (step - warmup) / max(total - warmup, 1)
        share = config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return {tower: peak * share for tower, peak in peak_rates(config).items()}


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
        terms_by_rank, faulty, logit_scale = accumulate(engine, micro_batches, step, known, config, active)
        loss, contrastive, stenosis = _global_means(terms_by_rank(), faulty, step, micro_batches)
        with span("optimizer"):
            norm = _apply(engine)
        if math.isfinite(norm):
            return StepResult(loss, contrastive, stenosis, norm, logit_scale, rates["ecg"], rates["image"])
        if engine.torch_autocast_z0_gradscaler is None:
            break
        # DeepSpeed counts a step that the loss scaler skipped; the schedule and the data order do not.
        engine.global_steps -= 1
        engine.global_samples -= config.engine.global_batch_size
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
) -> tuple[Callable[[], Tensor], Tensor, float]:
    """Gradients of all micro-batches, each with its own pool of negatives. What gives the means (W, 3) of loss,
    contrastive and stenosis by rank, gathered while the last gradients are computed; which of this rank's rows (A*B,)
    the model answered with something that is not finite; the logit scale.
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
        if index + 1 == len(micro_batches):
            terms_by_rank = distributed.all_gather_later(terms[None] / len(micro_batches))
        with span("backward"):
            engine.backward(loss.total)
        logit_scale = float(output.logit_scale.detach())
        del output, loss  # with their graph, which keeps a tile of logits: not through the next forward
        if index + 1 < len(micro_batches):
            engine.step()  # counts the micro-batch; the update is applied with the last one
    return terms_by_rank, torch.cat(faulty), logit_scale


def _accumulate_cached(
    engine: Engine,
    micro_batches: Sequence[PairBatch],
    step: int,
    known: Tensor,
    config: PretrainConfig,
    active: NDArray[np.bool_] | None,
) -> tuple[Callable[[], Tensor], Tensor, float]:
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
    means_by_rank = distributed.all_gather(torch.stack([mean, mean, 0 * mean])[None])
    _global_means(means_by_rank, _faulty(ecg, image), step, micro_batches)
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
        if index + 1 == len(micro_batches):
            total = mean + config.loss.stenosis_weight * stenosis
            terms_by_rank = distributed.all_gather_later(torch.stack([total, mean, stenosis])[None])
        # The micro-batches' gradients add up to the step's: no division by A.
        with span("backward"):
            engine.backward(backward_from + config.loss.stenosis_weight * share, scale_wrt_gas=False)
        if index + 1 < len(micro_batches):
            engine.step()
    return terms_by_rank, torch.cat(faulty), float(leaves[2].detach())


def _faulty(*values: Tensor) -> Tensor:
    """(B,) True for rows with an entry that is not finite in any of `values` (B, ...)."""
    return ~torch.cat([value.detach() for value in values], dim=1).isfinite().all(dim=1)


def _labels(batch: PairBatch, config: TargetsConfig, active: NDArray[np.bool_] | None) -> Tensor:
    """Labels (B, 11), NaN where unknown or where the target does not take part. Every pair has a study."""
    labels = stenosis_labels(batch.segments.numpy(), config, np.ones(len(batch), dtype=np.bool_))
    if active is not None:
        labels[:, ~active] = np.nan
    return torch.from_numpy(labels)


def _global_means(by_rank: Tensor, faulty: Tensor, step: int, micro_batches: Sequence[PairBatch]) -> list[float]:
    """Means (3,) over ranks of what is (W, 3) by rank; NonFiniteError on all ranks where any rank's is not finite."""
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
