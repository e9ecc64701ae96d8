"""AugSelf (arXiv 2111.09613): predict the transformation between the views from both of them."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from eqssl.augment import MAX_PROBABILITY
from eqssl.config import PositiveInt
from eqssl.distributed import all_reduce_mean
from eqssl.methods.base import Sizes
from eqssl.methods.conditioned import Auxiliary, join
from eqssl.methods.heads import projector


class AugSelf(Auxiliary):
    """A base method and a three-layer perceptron that predicts the transformation from both representations.

    Deliberately, one perceptron predicts the whole transformation from the first view to the second, and its loss is
    one mean over all K components, as in SIE's code for 3DIEBench. The authors' code has a perceptron for each family
    (crop, colour, flip, blur), predicts in both orders, bounds the predictions by tanh and adds up one mean per
    family; its colour targets are divided by the full width of their range, ours by half of it. Their weight of 1 for
    colour is thus about K / 16 here: a quarter for each of four components, whose squared errors are four times as
    large.

    Args:
        base, scale, factors, weight: see `Auxiliary`.
        width: of the perceptron's hidden layers.
    """

    # The authors' perceptron is the same at every scale; their weights are 1 on STL-10 and .5 on ImageNet-100 (not set
    # here: SimSiam as the base, SGD .03 and .05, decay 5e-4 and 1e-4, batch 256).
    is_binary: Tensor
    scales: ClassVar = {"small": {"scale": "small"}, "imagenet": {"scale": "imagenet", "weight": 0.5}}

    def __init__(
        self, sizes: Sizes, *,
        base: str = "simclr", scale: str = "tiny", factors: str = "all", weight: float = 1.0, width: PositiveInt = 512,
    ):  # fmt: skip
        super().__init__(sizes, base, scale, factors, weight)
        is_binary = [name in MAX_PROBABILITY for name, size in self.factors.items() for _ in range(size)]
        self.register_buffer("is_binary", torch.tensor(is_binary), persistent=False)
        self.predictor = projector(2 * (sizes.inv + sizes.equi), width, width, len(is_binary), output="affine")

    def auxiliary(self, representation: Tensor, theta: dict[str, Tensor]) -> Tensor:
        prediction = self.predictor(torch.cat(representation.chunk(2), dim=1))
        return all_reduce_mean(augself_loss(prediction, join(theta, self.factors), self.is_binary))


def augself_loss(prediction: Tensor, theta: Tensor, is_binary: Tensor) -> Tensor:
    """Return the mean over components of the squared error, or of the cross-entropy for binary ones.

    Args:
        prediction: logits of binary components, values of the others, float (B, K).
        theta: the targets, 0 or 1 for binary components, float (B, K).
        is_binary: bool (K,).
    """
    entropy = F.binary_cross_entropy_with_logits(prediction, theta, reduction="none")
    return torch.where(is_binary, entropy, (prediction - theta).square()).mean()
