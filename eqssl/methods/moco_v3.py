"""MoCo v3 (arXiv 2104.02057): find the teacher's key of the other view among those of the batch."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from eqssl.config import Fraction, Positive, PositiveInt
from eqssl.distributed import gather
from eqssl.methods.base import Method, Pair, Sizes
from eqssl.methods.heads import projector
from eqssl.methods.presets import cifar, imagenet
from eqssl.models.teacher import Teacher


class MoCoV3(Method):
    """Three-layer projector and two-layer predictor, their outputs normalised; the keys are the teacher's projections.

    These are the authors' heads for vision transformers; their ResNets have one projector layer fewer. Batch
    normalisation sees both views together, whereas their code passes them one after the other.

    Args:
        width: hidden width of projector and predictor.
        embedding: width of the embedding.
        temperature: tau of Eq. 1.
        momentum: of the teacher at the start.
    """

    # CIFAR: solo-learn's settings; ImageNet: the authors' for ViT, not those for ResNet-50, whose temperature is 1.
    scales: ClassVar = {"small": {"width": 4096, "embedding": 256}, "imagenet": {"width": 4096, "embedding": 256}}
    presets: ClassVar = {
        "cifar": cifar("kNN .838 after 200 epochs; .899 after 800 in batches of 512 (MoCo v2's queue)"),
        "imagenet": imagenet(
            "the authors' (arXiv 2104.02057), ViT-S/16; here the patch embedding is trained, which may be less stable",
            "linear 73.2 % after 300 epochs",
            encoder="vit_small_patch16_224", optimizer="adamw", lr=1.5e-4, weight_decay=0.1, warmup_epochs=40.0,
            epochs=300, batch_size=4096,
        ),
    }  # fmt: skip

    def __init__(
        self, sizes: Sizes, *,
        width: PositiveInt = 512, embedding: PositiveInt = 128, temperature: Positive = 0.2, momentum: Fraction = 0.99,
    ):  # fmt: skip
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.projector = projector(sizes.inv, width, width, embedding, output="normalised")
        self.predictor = projector(embedding, width, embedding, output="normalised")
        self.teacher = Teacher(self.projector)

    def forward(self, pair: Pair) -> Tensor:
        q1, q2 = map(gather, self.predictor(self.projector(pair.inv)).chunk(2))
        k1, k2 = map(gather, self.teacher(pair.teacher.mean(1)).chunk(2))
        return moco_v3_loss(q1, k2, self.temperature) + moco_v3_loss(q2, k1, self.temperature)


def moco_v3_loss(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Return 2 tau times InfoNCE (arXiv 2104.02057, Eq. 1 and Algorithm 1), the mean over the queries.

    Args:
        queries, keys: of the student from one view and the teacher from the other, float (B, D), any norm.
        temperature: tau.
    """
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    positives = torch.arange(len(logits), device=logits.device)
    return 2 * temperature * F.cross_entropy(logits, positives)
