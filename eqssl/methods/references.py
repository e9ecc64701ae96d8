"""The references for the methods in every table: labels or factors instead of pairs, and no method at all."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.distributed import all_reduce_mean
from eqssl.methods.base import Method, Pair, Sizes


class Supervised(Method):
    """Cross-entropy of a linear classifier on both views, under the same budget as the methods."""

    requires_labels: ClassVar[bool] = True

    def __init__(self, sizes: Sizes):
        super().__init__()
        if sizes.num_classes < 2:
            raise ValueError(
                "--method.name supervised needs labels; allowed here: a data source with 2 or more classes"
            )
        self.classifier = nn.Linear(sizes.inv, sizes.num_classes)

    def forward(self, pair: Pair) -> Tensor:
        return all_reduce_mean(F.cross_entropy(self.classifier(pair.inv), pair.labels.repeat(2)))


class SupervisedFactors(Method):
    """Regression of the known factors, the upper bound of R2 under the same budget as the methods.

    With pairs of objects a linear layer reads the absolute factors of each view from its own representation; with two
    augmentations of one image it reads the parameters of the transformation between them from both.
    """

    requires_factors: ClassVar[bool] = True

    def __init__(self, sizes: Sizes):
        super().__init__()
        dim = sizes.inv + sizes.equi
        self.absolute = sizes.factors is not None
        self.factors = (sizes.factors if self.absolute else sizes.theta) or {}
        if not self.factors:
            raise ValueError(
                "--method.name supervised_factors needs known factors; allowed: a data source with pose or hues, or "
                "pairs of one image with an --augment strength above 0"
            )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(dim if self.absolute else 2 * dim, size) for name, size in self.factors.items()}
        )

    def forward(self, pair: Pair) -> Tensor:
        z = torch.cat([pair.inv, pair.equi], dim=1)
        z = z if self.absolute else torch.cat(z.chunk(2), dim=1)
        targets = pair.factors if self.absolute else pair.theta
        errors = [F.mse_loss(self.heads[name](z), targets[name]) for name in self.factors]
        return all_reduce_mean(torch.stack(errors).mean())


class NoMethod(Method):
    """No loss but the reconstruction's (row `recon-only`)."""

    def __init__(self, sizes: Sizes):
        super().__init__()

    def forward(self, pair: Pair) -> Tensor:
        return pair.inv.new_zeros(())
