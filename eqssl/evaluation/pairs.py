"""Pairs whose transformation is known, as features: (clean, g(clean)), or two views of one object.

N pairs, D features, k components of a factor.
"""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqssl.data.dataset import Dataset, Split
from eqssl.data.pairs import pair_indices, relative_factors
from eqssl.evaluation.features import encode
from eqssl.evaluation.r2 import varying
from eqssl.evaluation.transforms import SEED, draw, draw_binary
from eqssl.random import permutation


@dataclass(frozen=True)
class Pairs:
    """Features of both images of every pair, and what lies between them.

    Args:
        first, second: float32 (N, D).
        targets: factor -> float32 (N, k), of the net transform from the first to the second.
        labels: int64 (N,), or None.
        ids: int64 (N,), the first images' identities.
        objects: int64 (N,), which object the first images show; None where every image is its own.
    """

    first: Tensor
    second: Tensor
    targets: dict[str, Tensor]
    labels: Tensor | None
    ids: Tensor
    objects: Tensor | None = None

    def part(self, channels: slice) -> "Pairs":
        """Return the pairs with some of the features."""
        return dataclasses.replace(self, first=self.first[:, channels], second=self.second[:, channels])

    @property
    def joint(self) -> Tensor:
        """[z1, z2], float32 (N, 2 D)."""
        return torch.cat([self.first, self.second], dim=1)

    @property
    def theta(self) -> Tensor:
        """All targets side by side, float32 (N, sum of k)."""
        return torch.cat(list(self.targets.values()), dim=1)


def subset(split: Split, count: int) -> Tensor:
    """Return int64 indices of up to `count` images, the same ones every time."""
    return permutation(SEED, 0, len(split))[:count]


def encode_pairs(
    encoder: nn.Module, dataset: Dataset, split: Split, indices: Tensor, factors: Collection[str] | None = None
) -> Pairs:
    """Return the fixed pairs that start from the images at `indices` (N,).

    Args:
        factors: of two views of one object, those that are targets: for held-out pairs the training pairs'; default:
            those that vary.
    """
    labels, objects = (None if known is None else known[indices] for known in (split.labels, split.objects))
    ids = split.ids[indices]
    if dataset.paired:
        one, two = pair_indices(split, indices, epoch=0, seed=SEED, paired=True)
        first, second = (encode(encoder, split, chosen)[0] for chosen in (one, two))
        return Pairs(first, second, differences(split, one, two, factors), labels, ids, objects)
    params = draw(ids, dataset.channels, dataset.image_size)
    first, second = encode(encoder, split, indices, (None, params))
    return Pairs(first, second, {name: value[:, None] for name, value in params.items()}, labels, ids, objects)


def encode_binary_pairs(encoder: nn.Module, dataset: Dataset, split: Split, indices: Tensor, clean: Tensor) -> Pairs:
    """Return pairs (clean, g(clean)) where g also flips, grayscales or solarizes; those are the targets.

    Args:
        indices: int64 (n,), of the first images.
        clean: (n, D), their features, which need not be taken again.
    """
    ids = split.ids[indices]
    binary = draw_binary(ids, dataset.channels)
    params = draw(ids, dataset.channels, dataset.image_size) | binary
    second = encode(encoder, split, indices, (params,))[0]
    return Pairs(clean, second, {name: value[:, None] for name, value in binary.items()}, None, ids)


def differences(
    split: Split, first: Tensor, second: Tensor, factors: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Return `relative_factors` of views, the named ones of them or those that vary."""
    between = relative_factors(split, first, second)
    return {
        name: value for name, value in between.items() if (varying(value).any() if factors is None else name in factors)
    }
