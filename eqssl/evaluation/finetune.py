"""Fine-tuning with few labels: the whole encoder and a linear head, compared with a linear probe on the same images."""

import copy
import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.augment import apply, draw
from eqssl.config import AUGMENTATIONS, EvaluateConfig, TrainConfig
from eqssl.data.dataset import Dataset, Split, to_float
from eqssl.evaluation.features import encode, frozen, subset
from eqssl.evaluation.predictions import LABEL, Prediction
from eqssl.evaluation.probes import linear_predict
from eqssl.evaluation.transforms import SEED
from eqssl.random import permutation
from eqssl.training.optim import learning_rate, make_optimizer

SHARES = {"finetune_1pct": 0.01, "finetune_10pct": 0.1}  # of the training labels
TRAINING = TrainConfig(epochs=30, batch_size=64, lr=1e-2, weight_decay=1e-4, warmup_epochs=1)
MIN_STEPS = 500  # since 30 epochs of a few dozen images teach nothing
STRENGTHS = dict.fromkeys(AUGMENTATIONS, 0.0) | {"crop": 0.5, "flip": 1.0}


def finetune_predictions(encoder: nn.Module, dataset: Dataset, config: EvaluateConfig) -> list[Prediction]:
    """Return the predicted classes of the encoder after fine-tuning with 1 % and with 10 % of all training labels.

    Args:
        encoder, dataset, config: as in `eqssl.evaluation.protocol.evaluate`. The images have labels; the encoder is not
            altered.

    Returns:
        Predictions whose metrics (`metrics_of`) are `finetune_1pct/accuracy`, `finetune_10pct/accuracy`; and
        `finetune_1pct/linear`, `finetune_10pct/linear` of a linear probe on the frozen features of the same images.
    """
    train, split = dataset.train, getattr(dataset, config.split)
    assert train.labels is not None
    indices = subset(split, config.images)
    with frozen(encoder):
        features = encode(encoder, split, indices)[0]
    predictions = []
    for protocol, share in SHARES.items():
        few = few_labels(train.labels, share)
        with frozen(encoder):
            train_features = encode(encoder, train, few)[0]
        model = finetune(encoder, train, few, (features.shape[1], dataset.num_classes))
        with frozen(model):
            logits = encode(model, split, indices)[0]
        predicted = {
            "accuracy": logits.argmax(1),
            "linear": linear_predict(train_features, train.labels[few], features),
        }
        for metric, classes in predicted.items():
            target, column = split.labels[indices, None].float(), classes[:, None].float()
            predictions.append(Prediction(metric, LABEL, split.ids[indices], target, column, protocol))
    return predictions


def few_labels(labels: Tensor, share: float) -> Tensor:
    """Return the training images that keep their labels, the same number per class, as in SimCLR (arXiv 2002.05709).

    Args:
        labels: int64 (N,).
        share: share of all labels to keep; at least one and at most all of each class.

    Returns:
        Indices, int64 (n,), cycling through the classes, from a fixed seed; a smaller share is part of a larger one.
    """
    order = permutation(SEED, 0, len(labels))
    order = order[labels[order].argsort(stable=True)]  # one class after another
    counts = labels.unique(return_counts=True)[1]
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    kept = place < max(1, round(share * len(labels) / len(counts)))
    return order[kept][place[kept].argsort(stable=True)]


def finetune(encoder: nn.Module, train: Split, indices: Tensor, head: tuple[int, int]) -> nn.Module:
    """Return a copy of the encoder with a linear head, trained together by cross-entropy.

    The same for all encoders: 30 epochs, or more to reach 500 steps, in batches of 64; AdamW with one epoch of warm-up
    to a learning rate of .0025 and a cosine decay to 0, weight decay 1e-4; BatchNorm in training mode; images are
    cropped to .54 of their area or more, and flipped.

    Args:
        encoder: images -> features; neither it nor torch's random state is altered.
        train, indices: the labelled images (n,).
        head: number of features and of classes.

    Returns:
        Images -> logits (B, classes).
    """
    assert train.labels is not None
    device = next(encoder.parameters(), torch.empty(0)).device
    steps = max(1, len(indices) // TRAINING.batch_size)
    training = dataclasses.replace(TRAINING, epochs=max(TRAINING.epochs, math.ceil(MIN_STEPS / steps)))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(SEED)
        model = nn.Sequential(copy.deepcopy(encoder), nn.Linear(*head)).to(device).train().requires_grad_(True)
        optimizer = make_optimizer(model, training)
        for epoch in range(training.epochs):
            order = permutation(SEED, epoch, len(indices))
            for step, rows in enumerate(indices[order].tensor_split(steps)):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(training, epoch * steps + step, steps)
                images = to_float(train.images.take(rows).to(device))
                size = images.shape[-1]
                params = draw(STRENGTHS, train.ids[rows], epoch=epoch, seed=SEED, view=0, image_size=size)
                optimizer.zero_grad()
                F.cross_entropy(model(apply(images, params)), train.labels[rows].to(device)).backward()
                optimizer.step()
    return model
