"""The references that stand in every table beside the methods: labels instead of pairs, and no method at all."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.distributed import mean_over_workers


class Supervised(nn.Module):
    """Cross-entropy of a linear classifier on both views, under the same budget as the methods.

    Args:
        dim: width of the representation.
        num_classes: number of classes.
    """

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        if num_classes < 2:
            raise ValueError(
                "--method.name supervised needs labels; allowed here: a data source with 2 or more classes"
            )
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, first: Tensor, second: Tensor, labels: Tensor | None) -> Tensor:
        logits = self.classifier(torch.cat([first, second]))
        return mean_over_workers(F.cross_entropy(logits, labels.repeat(2)))


class NoMethod(nn.Module):
    """No loss but the reconstruction's (row `recon-only`)."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()

    def forward(self, first: Tensor, second: Tensor, labels: Tensor | None) -> Tensor:
        return first.new_zeros(())
