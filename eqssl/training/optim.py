"""Optimizer and learning rate: AdamW or LARS, linear warm-up and cosine decay."""

import math

import torch
from torch import nn

from eqssl.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer over all parameters; biases and normalisation get neither decay nor LARS' adaptation."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    from timm.optim import Lars  # 10 s to import, so only where it is asked for

    # timm would otherwise leave every group without decay to plain SGD, the matrices at a decay of 0 among them.
    for group, adapts in zip(groups, (True, False), strict=True):
        group["always_adapt"] = adapts
    # The coefficient of the authors of LARS, SimCLR and VICReg: solo-learn has .02 and clips, so its rates are others.
    return Lars(groups, lr=config.lr, momentum=0.9, trust_coeff=1e-3)


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Return the rate of a step, a function of nothing else, so that a resumed run needs no schedule's state.

    Args:
        config: lr (for a batch of 256, scaled in proportion), epochs and warm-up.
        step: from 0, over all epochs.
        steps_per_epoch: steps of one pass.
    """
    peak = config.lr * config.batch_size / 256
    warmup = config.warmup_epochs * steps_per_epoch
    total = config.epochs * steps_per_epoch
    if step < warmup:
        return peak * min(1.0, (step + 1) / warmup)  # its last step may be a part of one
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))
