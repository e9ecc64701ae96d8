"""Optimizer, learning rate and weight decay: AdamW, SGD or LARS, linear warm-up and cosine decay."""

import logging
import math

import torch
from torch import nn

from eqssl.config import TrainConfig

LARS_TRUST = 1e-3  # as in LARS, SimCLR and VICReg by their authors; solo-learn has .02 and clips, so its rates differ
LARS_REACH = 0.1  # a rate that moves matrices by a smaller share of their norm in a whole training is too small


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer over all parameters; biases and normalisation, the second group, are neither decayed nor
    adapted by LARS."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if config.optimizer in ("adamw", "sgd"):
        optimizer: torch.optim.Optimizer
        if config.optimizer == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        else:
            optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=0.9, fused=True)
        optimizer.register_step_pre_hook(_match_memory_order)
        return optimizer
    from timm.optim import Lars  # 10 s to import, so only if it is needed

    # timm would otherwise apply plain SGD to every group without decay, including the matrices at a decay of 0.
    for group, adapts in zip(groups, (True, False), strict=True):
        group["always_adapt"] = adapts
    return Lars(groups, lr=config.lr, momentum=0.9, trust_coeff=LARS_TRUST)


def _match_memory_order(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    """Give gradients and moments the strides of their parameter, which loading a state of sharded ones can change.

    The fused update of torch 2.15 walks through memory and ignores strides: if they differ, it mixes up elements.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            strides, of_it = parameter.stride(), optimizer.state.get(parameter, {})
            if parameter.grad is not None and parameter.grad.stride() != strides:
                parameter.grad = torch.empty_like(parameter.detach()).copy_(parameter.grad)
            for name, moment in of_it.items():
                if isinstance(moment, torch.Tensor) and moment.shape == parameter.shape and moment.stride() != strides:
                    of_it[name] = torch.empty_like(parameter.detach()).copy_(moment)


def set_schedules(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, steps_per_epoch: int) -> None:
    """Set rate and decay of a step, which depend on nothing else, so that a resumed run needs no schedule's state.

    Args:
        optimizer: from `make_optimizer`.
        config: rate, decay, epochs and warm-up.
        step: from 0, over all epochs.
        steps_per_epoch: steps of one pass.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step, steps_per_epoch)
    if (end := config.weight_decay_end) is not None:
        share = (1 - math.cos(math.pi * step / (config.epochs * steps_per_epoch))) / 2
        optimizer.param_groups[0]["weight_decay"] = config.weight_decay + share * (end - config.weight_decay)


def warn_of_small_rate(config: TrainConfig, steps_per_epoch: int) -> None:
    """Warn of a rate at which LARS, whose steps are a share of a matrix's norm, cannot change the matrix."""
    steps = config.epochs * steps_per_epoch
    # Momentum .9 multiplies a step by ten at most; the mean rate is half the peak.
    reach = 10 * LARS_TRUST * 0.5 * config.lr * config.batch_size / 256 * steps
    if config.optimizer == "lars" and 0 < reach < LARS_REACH:
        logging.getLogger("eqssl").warning(
            "--train.lr is %g: in %d steps --train.optimizer lars moves a matrix by %.2g of its norm at most; "
            "published rates are .2 to 4.8", config.lr, steps, reach,
        )  # fmt: skip


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Return the rate of a step.

    Args:
        config: lr (for a batch of 256, scaled in proportion), epochs and warm-up.
        step: from 0, over all epochs.
        steps_per_epoch: steps of one pass.
    """
    peak = config.lr * config.batch_size / 256
    warmup = config.warmup_epochs * steps_per_epoch
    total = config.epochs * steps_per_epoch
    if step < warmup:
        return peak * min(1.0, (step + 1) / warmup)  # the last warm-up step may be a fraction of one
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))
