"""Which training samples a probe is fitted on and which choose among its fits, so that no object is on both sides."""

import torch
from torch import Tensor


def hold_back(order: Tensor, one_in: int, objects: Tensor | None, least: int = 0) -> tuple[Tensor, Tensor]:
    """Return the samples that choose and those that are fitted: an object's views say what its others are.

    Args:
        order: int64 (n,), the samples; those of the objects that come first choose.
        one_in: of so many objects one chooses, rounded down.
        objects: int64 (n,), which object a sample shows; None where every sample is its own. A single object is no
            reason to choose by nothing, so that its samples count as their own.
        least: objects that choose in any case.

    Returns:
        int64 (k,) and (n - k,), in order.
    """
    if objects is None or bool((objects == objects[:1]).all()):
        objects = torch.arange(len(order))
    names, which = objects[order].unique(return_inverse=True)
    first = torch.full_like(names, len(order)).scatter_reduce(0, which, torch.arange(len(order)), "amin")
    chooses = first.argsort().argsort()[which] < max(least, len(names) // one_in)
    return order[chooses], order[~chooses]
