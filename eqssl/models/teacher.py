"""A teacher that is the moving average of its student (arXiv 1703.01780): the target of BYOL, MoCo v3 and DINO."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """The exponential moving average of a module's parameters, without gradients.

    Batch normalisation is the exception: the average normalises by the statistics of its own batches.

    Args:
        student: the module that `update` follows.
    """

    def __init__(self, student: nn.Module):
        super().__init__()
        self._student = (student,)  # a tuple hides it from torch: its parameters are not this module's
        self.average = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        return self.average(*inputs)

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Move every parameter to momentum x average + (1 - momentum) x student (arXiv 1703.01780, section 2).

        Args:
            momentum: in [0, 1]; 1 leaves the average unchanged.
        """
        averages: list[Tensor] = list(self.average.parameters())
        parameters: list[Tensor] = list(self._student[0].parameters())
        torch._foreach_lerp_(averages, parameters, 1 - momentum)
