"""EquiMod (arXiv 2211.01244): predict how the transformation displaces the embedding."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from eqssl.config import Positive, PositiveInt
from eqssl.distributed import gather
from eqssl.methods.base import Predictive, Sizes
from eqssl.methods.conditioned import Auxiliary, join
from eqssl.methods.heads import projector
from eqssl.methods.simclr import nt_xent


class EquiMod(Predictive, Auxiliary):
    """A base method and a contrastive prediction of the second view's embedding from the first one's and theta.

    The authors predict both views from the unaugmented image, a third one in the batch; here the first view takes its
    place, as in SIE's comparison on 3DIEBench, so that every method sees the same images.

    Args:
        base, scale, factors, weight: see `Auxiliary`.
        width: of the equivariant projector's two hidden layers.
        embedding: width of the embedding and of the projected theta.
        temperature: of the contrast between predicted and true embeddings.
        base_temperature: of SimCLR, if that is the base; other bases have none.
    """

    parts: ClassVar = ("projector", "theta_projector", "predictor")
    # The authors' heads are the same on CIFAR and ImageNet, with a temperature of SimCLR of .5 and .2 (not set here:
    # LARS 4.0 and 2.4, decay 1e-6, batch 512 and 4096).
    scales: ClassVar = {
        "small": {"scale": "small", "width": 2048, "base_temperature": 0.5},
        "imagenet": {"scale": "imagenet", "width": 2048, "base_temperature": 0.2},
    }

    def __init__(
        self, sizes: Sizes, *,
        base: str = "simclr", scale: str = "tiny", factors: str = "all", weight: float = 1.0,
        width: PositiveInt = 512, embedding: PositiveInt = 128,
        temperature: Positive = 0.2, base_temperature: Positive = 0.2,
    ):  # fmt: skip
        options = {"temperature": base_temperature} if base == "simclr" else {}
        super().__init__(sizes, base, scale, factors, weight, **options)
        self.temperature = temperature
        self.projector = projector(sizes.inv + sizes.equi, width, width, embedding, output="normalised")
        self.theta_projector = nn.Sequential(
            nn.Linear(sum(self.factors.values()), embedding, bias=False), nn.BatchNorm1d(embedding)
        )
        self.predictor = projector(2 * embedding, embedding, output="normalised")

    def auxiliary(self, representation: Tensor, theta: dict[str, Tensor]) -> Tensor:
        z1, z2 = self.embed(representation).chunk(2)
        prediction = self.predict(z1, join(theta, self.factors))
        return nt_xent(gather(prediction), gather(z2), self.temperature)

    def embed(self, representation: Tensor) -> Tensor:
        return self.projector(representation)

    def predict(self, embedding: Tensor, theta: Tensor) -> Tensor:
        return self.predictor(torch.cat([embedding, self.theta_projector(theta)], dim=1))
