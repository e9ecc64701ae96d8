"""The rows of a table that need no training: raw pixels and the floor of a constant."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.config import EvaluateConfig
from eqssl.data.dataset import Dataset
from eqssl.evaluation.pairs import subset
from eqssl.evaluation.predictions import LABEL, Prediction, figures_of
from eqssl.evaluation.protocol import evaluate

MAX_VALUES = 1024


class Pixels(nn.Module):
    """Pixels as features: averaged over 2x2 until at most 1024 values are left (32x32 grey, 16x16 in colour)."""

    def forward(self, images: Tensor) -> Tensor:
        while images[0].numel() > MAX_VALUES:
            images = F.avg_pool2d(images, 2)
        return images.flatten(1)


class Constant(nn.Module):
    """One feature that is the same for every image."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 1, device=images.device)


def constant_figures(
    dataset: Dataset, config: EvaluateConfig | None = None, predictions: list[Prediction] | None = None
) -> dict[str, float]:
    """Return the floor: the metrics of an encoder that sees nothing.

    Accuracy is that of naming the most frequent training class every time; a vote among equally near neighbours would
    depend on their order.

    Args:
        dataset, config, predictions: as `evaluate` takes them.
    """
    config = config or EvaluateConfig()
    said: list[Prediction] = []
    figures = evaluate(Constant(), dataset, config=config, predictions=said)
    if dataset.train.labels is not None:
        majority = dataset.train.labels[subset(dataset.train, config.train_images)].mode().values
        said = [
            dataclasses.replace(one, predicted=majority.float().expand_as(one.predicted))
            if one.factor == LABEL
            else one
            for one in said
        ]
    if predictions is not None:
        predictions += said
    return figures | figures_of(said)
