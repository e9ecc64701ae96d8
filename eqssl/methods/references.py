"""The references that stand in every table beside the methods: labels instead of pairs, and no method at all."""

import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.distributed import mean_over_workers
from eqssl.methods.base import Method, Pair, Sizes


class Supervised(Method):
    """Cross-entropy of a linear classifier on both views, under the same budget as the methods.

    Args:
        sizes: of the representation.
    """

    def __init__(self, sizes: Sizes):
        super().__init__()
        if sizes.num_classes < 2:
            raise ValueError(
                "--method.name supervised needs labels; allowed here: a data source with 2 or more classes"
            )
        self.classifier = nn.Linear(sizes.inv, sizes.num_classes)

    def forward(self, pair: Pair) -> Tensor:
        return mean_over_workers(F.cross_entropy(self.classifier(pair.inv), pair.labels.repeat(2)))


class NoMethod(Method):
    """No loss but the reconstruction's (row `recon-only`)."""

    def __init__(self, sizes: Sizes):
        super().__init__()

    def forward(self, pair: Pair) -> Tensor:
        return pair.inv.new_zeros(())
