"""Fine-tuning with few labels: the whole encoder and a linear head, beside a linear probe of the same few images."""

import copy
import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.augment import apply, draw
from eqssl.config import AUGMENTATIONS, EvaluateConfig, TrainConfig
from eqssl.data.dataset import Dataset, Split, to_float
from eqssl.evaluation.features import device_of, encode, frozen
from eqssl.evaluation.linear import linear_predict
from eqssl.evaluation.pairs import subset
from eqssl.evaluation.predictions import Prediction, class_prediction, figures_of
from eqssl.evaluation.transforms import SEED
from eqssl.random import permutation
from eqssl.training.optim import learning_rate, make_optimizer

SHARES = {"finetune_1pct": 0.01, "finetune_10pct": 0.1}  # of the training labels
RECIPE = TrainConfig(epochs=30, batch_size=64, lr=1e-2, weight_decay=1e-4, warmup_epochs=1)
MIN_STEPS = 500  # since 30 epochs of a few dozen images teach nothing
STRENGTHS = dict.fromkeys(AUGMENTATIONS, 0.0) | {"crop": 0.5, "flip": 1.0}


def finetune_figures(
    encoder: nn.Module, dataset: Dataset, config: EvaluateConfig, predictions: list[Prediction] | None = None
) -> dict[str, float]:
    """Return the accuracy of the encoder after fine-tuning with 1 % and with 10 % of all training labels.

    Args:
        encoder, dataset, config, predictions: as `evaluate` takes them. The images have labels; the encoder is not
            altered.

    Returns:
        `finetune_1pct/accuracy`, `finetune_10pct/accuracy`; `finetune_1pct/linear`, `finetune_10pct/linear` of a linear
        probe of the frozen features of the same images.
    """
    train, held = dataset.train, getattr(dataset, config.split)
    indices = subset(held, config.images)
    labels, ids = held.labels[indices], held.ids[indices]
    with frozen(encoder):
        features = encode(encoder, held, indices)[0]
    said = []
    for protocol, share in SHARES.items():
        few = few_labels(train.labels, share)
        with frozen(encoder):
            seen = encode(encoder, train, few)[0]
        probed = linear_predict(seen, train.labels[few], features)
        model = finetune(encoder, train, few, (features.shape[1], dataset.num_classes))
        with frozen(model):
            tuned = encode(model, held, indices)[0].argmax(1)
        said += class_prediction("accuracy", ids, labels, tuned, protocol)
        said += class_prediction("linear", ids, labels, probed, protocol)
    if predictions is not None:
        predictions += said
    return figures_of(said)


def few_labels(labels: Tensor, share: float) -> Tensor:
    """Return which training images keep their labels: equally many of each class, as SimCLR has it (arXiv 2002.05709).

    Args:
        labels: int64 (N,).
        share: of all labels, that are kept; at least one a class, at most all that it has.

    Returns:
        int64 (n,), class by turns, by a fixed seed; a smaller share is a part of a larger one.
    """
    order = permutation(SEED, 0, len(labels))
    order = order[labels[order].argsort(stable=True)]  # one class after another
    counts = labels.unique(return_counts=True)[1]
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    kept = place < max(1, round(share * len(labels) / len(counts)))
    return order[kept][place[kept].argsort(stable=True)]


def finetune(encoder: nn.Module, train: Split, indices: Tensor, head: tuple[int, int]) -> nn.Module:
    """Return a copy of the encoder with a linear head, trained together by cross-entropy.

    The recipe is the same for all: 30 epochs, or more for 500 steps, in batches of 64; AdamW, learning rate .0025
    after one epoch of warm-up and then by a cosine to 0, weight decay 1e-4; BatchNorm in training mode; images are
    cropped to .54 of their area or more, and flipped.

    Args:
        encoder: images -> features; neither it nor torch's random state is altered.
        train, indices: the labelled images (n,).
        head: number of features and of classes.

    Returns:
        Images -> logits (B, classes).
    """
    device = device_of(encoder)
    steps = max(1, len(indices) // RECIPE.batch_size)
    recipe = dataclasses.replace(RECIPE, epochs=max(RECIPE.epochs, math.ceil(MIN_STEPS / steps)))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(SEED)
        model = nn.Sequential(copy.deepcopy(encoder), nn.Linear(*head)).to(device).train().requires_grad_(True)
        optimizer = make_optimizer(model, recipe)
        for epoch in range(recipe.epochs):
            order = permutation(SEED, epoch, len(indices))
            for step, rows in enumerate(indices[order].tensor_split(steps)):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, epoch * steps + step, steps)
                views = _augmented(train.images.take(rows).to(device), train.ids[rows], epoch)
                optimizer.zero_grad()
                F.cross_entropy(model(views), train.labels[rows].to(device)).backward()
                optimizer.step()
    return model


def _augmented(pixels: Tensor, ids: Tensor, epoch: int) -> Tensor:
    params = draw(STRENGTHS, ids, epoch=epoch, seed=SEED, view=0, image_size=pixels.shape[-1])
    return apply(to_float(pixels), params)
