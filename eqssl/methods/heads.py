"""The heads that methods share."""

from itertools import pairwise
from typing import Literal

from torch import nn


def projector(*widths: int, output: Literal["linear", "affine", "normalised"] = "linear") -> nn.Sequential:
    """Return a multilayer perceptron with batch normalisation and ReLU between its layers.

    Args:
        widths: of the input, the hidden layers and the output.
        output: the last layer is linear, has a bias too, or is batch-normalised without learned scale and shift.
    """
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        if i > 0:
            layers += [nn.BatchNorm1d(a), nn.ReLU(inplace=True)]
        layers.append(nn.Linear(a, b, bias=output == "affine" and i == len(widths) - 2))
    if output == "normalised":
        layers.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*layers)
