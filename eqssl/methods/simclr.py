"""SimCLR (arXiv 2002.05709): views of one image attract, views of other images repel."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from eqssl.config import Positive, PositiveInt
from eqssl.distributed import gather
from eqssl.methods.base import Method, Pair, Sizes
from eqssl.methods.heads import projector
from eqssl.methods.presets import cifar, imagenet


class SimCLR(Method):
    """Two-layer projector and the normalised temperature-scaled cross-entropy.

    Args:
        width: hidden width of the projector.
        embedding: width of the embedding.
        temperature: tau of Eq. 1.
    """

    # CIFAR and ImageNet-100: solo-learn's settings.
    scales: ClassVar = {"small": {"width": 2048, "embedding": 256}, "imagenet": {"width": 4096, "embedding": 512}}
    presets: ClassVar = {
        "cifar": cifar("kNN .847 after 200 epochs; .879 after 800 in batches of 512"),
        "imagenet": imagenet(
            "the authors' (arXiv 2002.05709), ResNet-50; here heads and temperature are solo-learn's for ImageNet-100",
            "linear 69.3 % after 1,000 epochs",
            optimizer="lars", lr=0.3, weight_decay=1e-6, warmup_epochs=10.0, epochs=1000, batch_size=4096,
        ),
    }  # fmt: skip

    def __init__(
        self, sizes: Sizes, *, width: PositiveInt = 512, embedding: PositiveInt = 128, temperature: Positive = 0.2
    ):
        super().__init__()
        self.temperature = temperature
        self.projector = projector(sizes.inv, width, embedding)

    def forward(self, pair: Pair) -> Tensor:
        z1, z2 = self.projector(pair.inv).chunk(2)
        return nt_xent(gather(z1), gather(z2), self.temperature)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Return NT-Xent (arXiv 2002.05709, Eq. 1), the mean over the 2B anchors.

    Args:
        z1, z2: embeddings of both views, float (B, D), any norm.
        temperature: tau.
    """
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(-torch.inf)
    batch = len(z1)
    positives = torch.arange(2 * batch, device=z.device).roll(batch)
    return F.cross_entropy(logits, positives)
