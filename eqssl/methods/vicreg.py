"""VICReg (arXiv 2105.04906): invariance, variance and covariance."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from eqssl.config import PositiveInt
from eqssl.distributed import gather
from eqssl.methods.base import Method, Pair, Sizes
from eqssl.methods.heads import projector
from eqssl.methods.presets import cifar, imagenet


class VICReg(Method):
    """Three-layer expander and the three-term loss.

    Args:
        width: width of the expander's three layers.
        sim_coeff, std_coeff, cov_coeff: weights of the terms, 25, 25 and 1 as published.
    """

    # CIFAR: solo-learn's settings, whose 25 weights a variance term that is not halved; ImageNet: the authors'.
    scales: ClassVar = {"small": {"width": 2048, "std_coeff": 50.0}, "imagenet": {"width": 8192}}
    presets: ClassVar = {
        "cifar": cifar("not published with these; solo-learn, LARS .3, 1,000 epochs: linear 92.07 %"),
        "imagenet": imagenet(
            "the authors' (arXiv 2105.04906), ResNet-50",
            "linear 73.2 % after 1,000 epochs",
            optimizer="lars", lr=0.2, weight_decay=1e-6, warmup_epochs=10.0, epochs=1000, batch_size=2048,
        ),
    }  # fmt: skip

    def __init__(
        self, sizes: Sizes, *,
        width: PositiveInt = 512, sim_coeff: float = 25.0, std_coeff: float = 25.0, cov_coeff: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        self.coefficients = (sim_coeff, std_coeff, cov_coeff)
        self.projector = projector(sizes.inv, width, width, width)

    def forward(self, pair: Pair) -> Tensor:
        z1, z2 = self.projector(pair.inv).chunk(2)
        return vicreg_loss(gather(z1), gather(z2), *self.coefficients)


def vicreg_loss(z1: Tensor, z2: Tensor, sim_coeff: float, std_coeff: float, cov_coeff: float) -> Tensor:
    """Return the VICReg loss (arXiv 2105.04906, Eq. 6), with the variance term halved as in the authors' code.

    Args:
        z1, z2: embeddings of both views, float (B, D).
        sim_coeff, std_coeff, cov_coeff: lambda, mu and nu.
    """
    similarity = F.mse_loss(z1, z2)
    variance = (hinge(z1) + hinge(z2)) / 2
    covariance = _covariance(z1) + _covariance(z2)
    return sim_coeff * similarity + std_coeff * variance + cov_coeff * covariance


def hinge(z: Tensor) -> Tensor:
    """Return the mean over dimensions of max(0, 1 - sqrt(var + 1e-4)) (arXiv 2105.04906, Eq. 1 and 2).

    Args:
        z: embeddings of one view, float (B, D); var is the unbiased variance over the batch.

    Returns:
        Scalar in [0, 1).
    """
    return F.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean()


def _covariance(z: Tensor) -> Tensor:
    """Return the squared off-diagonal covariances of embeddings (B, D), summed, over D (Eq. 3 and 4)."""
    batch, width = z.shape
    z = z - z.mean(0)
    diagonal = z.square().sum(0).square().sum()
    return (squared_products(z, z) - diagonal) / (batch - 1) ** 2 / width


def squared_products(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of the squares of a^T b, over all pairs of dimensions.

    It also equals the scalar product of a a^T and b b^T, the smaller computation for a batch smaller than the width.

    Args:
        a, b: float (B, D).
    """
    if len(a) < a.shape[1]:
        return (a @ a.T * (b @ b.T)).sum()
    return (a.T @ b).square().sum()
