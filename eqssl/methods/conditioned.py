"""The parts that methods conditioned on the transformation between the views share."""

from typing import ClassVar, cast

import torch
from torch import Tensor

from eqssl.config import MethodConfig, Scale
from eqssl.methods import build_method
from eqssl.methods.base import Method, Pair, Sizes


def choose_factors(sizes: Sizes, factors: str) -> dict[str, int]:
    """Return factor -> number of components of the transformation that a method is conditioned on.

    Args:
        sizes: with the factors known between the views.
        factors: `all`, or names separated by commas.

    Raises:
        ValueError: if no factor is known, or a named one is not.
    """
    if not sizes.theta:
        raise ValueError(
            "every --augment strength is 0 and no factor of the images is known, so there is no transformation to "
            "condition this method on; allowed: a strength above 0, such as --augment.rotation 0.5, or paired objects"
        )
    names = list(sizes.theta) if factors == "all" else [name.strip() for name in factors.split(",")]
    for name in names:
        if name not in sizes.theta:
            raise ValueError(f"--method.options factors names {name!r}; allowed: all, {', '.join(sizes.theta)}")
    return {name: sizes.theta[name] for name in names}


def join(theta: dict[str, Tensor], factors: dict[str, int]) -> Tensor:
    """Return the components of the chosen factors side by side, (B, K)."""
    return torch.cat([theta[name] for name in factors], dim=1)


class Auxiliary(Method):
    """A base method on the invariant part plus a weighted loss that relates the whole representation to theta.

    Args:
        base: name of a method that needs neither teacher nor labels.
        scale: of the base method's heads.
        factors: of the transformation, `all` or names separated by commas.
        weight: of the auxiliary loss.
        options: of the base method, in addition to its scale's.
    """

    requires_transform: ClassVar[bool] = True

    def __init__(self, sizes: Sizes, base: str, scale: str, factors: str, weight: float, **options: float | str):
        super().__init__()
        self.base = build_method(MethodConfig(name=base, scale=cast(Scale, scale), options=options), sizes)
        if self.base.momentum is not None or self.base.requires_labels:
            raise ValueError(
                f"--method.options base is {base!r}; "
                "allowed: methods without a teacher or labels, such as simclr and vicreg"
            )
        self.factors, self.weight = choose_factors(sizes, factors), weight

    def forward(self, pair: Pair) -> Tensor:
        return self.base(pair) + self.weight * self.auxiliary(torch.cat([pair.inv, pair.equi], dim=1), pair.theta)

    def auxiliary(self, representation: Tensor, theta: dict[str, Tensor]) -> Tensor:
        """Return the auxiliary loss of representations (2 B, D)."""
        raise NotImplementedError
