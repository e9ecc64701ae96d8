"""Barlow Twins (arXiv 2103.03230): the cross-correlation of the two views becomes the identity."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from eqssl.config import PositiveInt
from eqssl.distributed import gather
from eqssl.methods.base import Method, Pair, Sizes
from eqssl.methods.heads import projector
from eqssl.methods.presets import cifar, imagenet
from eqssl.methods.vicreg import squared_products


class BarlowTwins(Method):
    """Three-layer projector and the redundancy-reduction loss.

    Args:
        width: width of the projector's three layers.
        off_diagonal: lambda of Eq. 1.
        loss_scale: factor of the whole loss, which is a sum over dimensions, whereas the reconstruction loss is a mean.
    """

    # CIFAR: solo-learn's settings (not set here: LARS .3, decay 1e-4); ImageNet: the authors' (not set here: LARS .2,
    # decay 1e-6, batch 2048).
    scales: ClassVar = {
        "small": {"width": 2048, "off_diagonal": 0.005, "loss_scale": 0.1},
        "imagenet": {"width": 8192, "off_diagonal": 0.0051, "loss_scale": 1.0},
    }
    presets: ClassVar = {
        "cifar": cifar("kNN .842 after 200 epochs; .859 after 800 in batches of 512"),
        "imagenet": imagenet(
            "the authors' (arXiv 2103.03230), ResNet-50; here biases have the learning rate of matrices, not .0048",
            "linear 73.2 % after 1,000 epochs",
            optimizer="lars", lr=0.2, weight_decay=1e-6, warmup_epochs=10.0, epochs=1000, batch_size=2048,
        ),
    }  # fmt: skip

    def __init__(self, sizes: Sizes, *, width: PositiveInt = 512, off_diagonal: float = 0.005, loss_scale: float = 0.1):
        super().__init__()
        self.off_diagonal, self.loss_scale = off_diagonal, loss_scale
        self.projector = projector(sizes.inv, width, width, width)

    def forward(self, pair: Pair) -> Tensor:
        z1, z2 = self.projector(pair.inv).chunk(2)
        return self.loss_scale * barlow_twins_loss(gather(z1), gather(z2), self.off_diagonal)


def barlow_twins_loss(z1: Tensor, z2: Tensor, off_diagonal: float) -> Tensor:
    """Return sum_i (1 - C_ii)^2 + lambda sum_(i != j) C_ij^2 for the cross-correlation C (arXiv 2103.03230, Eq. 1, 2).

    Args:
        z1, z2: embeddings of both views, float (B, D).
        off_diagonal: lambda.
    """
    z1, z2 = _standardise(z1), _standardise(z2)
    diagonal = (z1 * z2).mean(0)
    redundancy = squared_products(z1, z2) / len(z1) ** 2 - diagonal.square().sum()
    return (1 - diagonal).square().sum() + off_diagonal * redundancy


def _standardise(z: Tensor) -> Tensor:
    """Return z with mean 0 and variance 1 over the batch; a constant dimension stays finite, at 0."""
    return F.batch_norm(z, None, None, training=True)
