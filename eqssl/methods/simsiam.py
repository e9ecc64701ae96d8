"""SimSiam (arXiv 2011.10566): predict the embedding of the other view, which gets no gradient."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from eqssl.config import PositiveInt
from eqssl.distributed import all_reduce_mean
from eqssl.methods.base import Method, Pair, Sizes
from eqssl.methods.heads import projector
from eqssl.methods.presets import cifar, imagenet


class SimSiam(Method):
    """Three-layer projector, its output normalised, and a predictor with a bottleneck.

    Batch normalisation sees both views together, whereas the authors' code passes them one after the other.

    Args:
        width: width of the projector's three layers.
        bottleneck: hidden width of the predictor.
    """

    # CIFAR: solo-learn's settings; ImageNet: the authors'.
    scales: ClassVar = {
        "small": {"width": 2048, "bottleneck": 512},
        "imagenet": {"width": 2048, "bottleneck": 512},
    }
    presets: ClassVar = {
        "cifar": cifar("kNN .819 after 200 epochs; .904 after 800 in batches of 512"),
        "imagenet": imagenet(
            "the authors' (arXiv 2011.10566), ResNet-50; here the predictor's learning rate decays too",
            "linear 68.1 % after 100 epochs",
            optimizer="sgd", lr=0.05, weight_decay=1e-4, warmup_epochs=0.0, epochs=100, batch_size=512,
        ),
    }  # fmt: skip

    def __init__(self, sizes: Sizes, *, width: PositiveInt = 512, bottleneck: PositiveInt = 128):
        super().__init__()
        self.projector = projector(sizes.inv, width, width, width, output="normalised")
        self.predictor = projector(width, bottleneck, width, output="affine")

    def forward(self, pair: Pair) -> Tensor:
        z = self.projector(pair.inv)
        (z1, z2), (p1, p2) = z.chunk(2), self.predictor(z).chunk(2)
        return all_reduce_mean((simsiam_loss(p1, z2) + simsiam_loss(p2, z1)) / 2)


def simsiam_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return D(p, stopgrad(z)) = -cos(p, z) (arXiv 2011.10566, Eq. 1 and 3), the mean over the batch.

    Args:
        prediction, target: from one view and from the other, float (B, D), any norm; no gradient reaches the target.
    """
    return -F.cosine_similarity(prediction, target.detach()).mean()
