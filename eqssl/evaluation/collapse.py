"""Whether features have collapsed: to a point, or to few directions."""

import torch
import torch.nn.functional as F
from torch import Tensor


def collapse_figures(features: Tensor) -> dict[str, float]:
    """Return the spread of features.

    Args:
        features: (N, D).

    Returns:
        `std`, `std_min`: mean and least standard deviation of a dimension, in the features' own unit; `spread`: root of
        the total variance of the features at unit norm, 1 where they have no direction in common and 0 at one point;
        `rank`: effective rank, the exponential of the entropy of the normalised singular values of the centred features
        (Roy and Vetterli, EUSIPCO 2007), 1 to D, and 0 where nothing varies.
    """
    mean = features.double().mean(0)
    centred = features.double() - mean
    std = centred.square().mean(0).sqrt()
    share = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0).sqrt()
    share = share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
    entropy = -torch.special.xlogy(share, share).sum()
    varies = (std > 1e-7 * mean.abs()).any()  # below float32's resolution a spread is rounding
    rank = float(entropy.exp()) if varies else 0.0
    directions = F.normalize(features.double(), dim=1)
    spread = directions.var(0, correction=0).sum().sqrt()
    return {"std": float(std.mean()), "std_min": float(std.min()), "spread": float(spread), "rank": rank}
