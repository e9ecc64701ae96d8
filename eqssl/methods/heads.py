"""The heads that methods share."""

from itertools import pairwise

from torch import nn


def projector(*widths: int) -> nn.Sequential:
    """Return a multilayer perceptron with batch normalisation and ReLU between its layers.

    Args:
        widths: of the input, the hidden layers and the output.
    """
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        if i > 0:
            layers += [nn.BatchNorm1d(a), nn.ReLU(inplace=True)]
        layers.append(nn.Linear(a, b, bias=False))
    return nn.Sequential(*layers)
