"""BYOL (arXiv 2006.07733): predict the teacher's embedding of the other view."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from eqssl.config import Fraction, PositiveInt
from eqssl.distributed import all_reduce_mean
from eqssl.methods.base import Method, Pair, Sizes
from eqssl.methods.heads import projector
from eqssl.methods.presets import cifar, imagenet
from eqssl.models.teacher import Teacher


class BYOL(Method):
    """Two-layer projector and predictor; the target is the teacher's projection.

    Batch normalisation sees both views together, whereas the authors' code passes them one after the other.

    Args:
        width: hidden width of projector and predictor.
        embedding: width of the embedding.
        momentum: of the teacher at the start.
    """

    # CIFAR: solo-learn's settings; ImageNet: the authors'.
    scales: ClassVar = {
        "small": {"width": 4096, "embedding": 256, "momentum": 0.99},
        "imagenet": {"width": 4096, "embedding": 256, "momentum": 0.996},
    }
    presets: ClassVar = {
        "cifar": cifar("kNN .869 after 200 epochs; .910 after 800 in batches of 512"),
        "imagenet": imagenet(
            "the authors' (arXiv 2006.07733), ResNet-50; here both views have the same augmentations",
            "linear 74.3 % after 1,000 epochs",
            optimizer="lars", lr=0.2, weight_decay=1.5e-6, warmup_epochs=10.0, epochs=1000, batch_size=4096,
        ),
    }  # fmt: skip

    def __init__(
        self, sizes: Sizes, *, width: PositiveInt = 512, embedding: PositiveInt = 128, momentum: Fraction = 0.99
    ):
        super().__init__()
        self.momentum = momentum
        self.projector = projector(sizes.inv, width, embedding)
        self.predictor = projector(embedding, width, embedding)
        self.teacher = Teacher(self.projector)

    def forward(self, pair: Pair) -> Tensor:
        p1, p2 = self.predictor(self.projector(pair.inv)).chunk(2)
        z1, z2 = self.teacher(pair.teacher.mean(1)).chunk(2)
        return all_reduce_mean(byol_loss(p1, z2) + byol_loss(p2, z1))


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return ||p - z||^2 = 2 - 2 cos(p, z) of vectors of unit norm (arXiv 2006.07733, Eq. 2), the mean over the batch.

    Args:
        prediction, target: of the student from one view and the teacher from the other, float (B, D), any norm.
    """
    return 2 - 2 * F.cosine_similarity(prediction, target).mean()
