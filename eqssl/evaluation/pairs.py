"""Pairs whose transformation is known, as features: (clean, g(clean)), or two views of one object.

N pairs, D features, k components of a factor.
"""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqssl.data.dataset import Dataset, Split
from eqssl.data.pairs import absolute_factors, pair_indices, relative_transform
from eqssl.evaluation.features import encode
from eqssl.evaluation.r2 import varying
from eqssl.evaluation.transforms import SEED, draw, draw_binary
from eqssl.random import permutation


@dataclass(frozen=True)
class Pairs:
    """Features of both images of every pair, the factors that probes predict, and the transformation.

    Args:
        first, second: float32 (N, D).
        targets: factor -> float32 (N, k): of two views of one object the first view's own factors
            (`absolute_factors`), else the parameters of the net transform from the first to the second.
        labels: int64 (N,), or None.
        ids: int64 (N,), the first images' identities.
        objects: int64 (N,), which object the first images show; None where every image is its own.
        transform: factor -> float32 (N, k), from the first to the second: of two views of one object their
            `relative_transform`; default: the targets.
        per_view: whether the targets are those of the first view, and read from it alone.
    """

    first: Tensor
    second: Tensor
    targets: dict[str, Tensor]
    labels: Tensor | None
    ids: Tensor
    objects: Tensor | None = None
    transform: dict[str, Tensor] | None = None
    per_view: bool = False

    def part(self, channels: slice) -> "Pairs":
        """Return the pairs with some of the features."""
        return dataclasses.replace(self, first=self.first[:, channels], second=self.second[:, channels])

    @property
    def inputs(self) -> Tensor:
        """What probes read the targets from: z1, float32 (N, D), or [z1, z2], float32 (N, 2 D)."""
        return self.first if self.per_view else torch.cat([self.first, self.second], dim=1)

    @property
    def target(self) -> Tensor:
        """All targets side by side, float32 (N, sum of k)."""
        return torch.cat(list(self.targets.values()), dim=1)

    @property
    def between(self) -> dict[str, Tensor]:
        """The factors of the transformation."""
        return self.targets if self.transform is None else self.transform

    @property
    def theta(self) -> Tensor:
        """All parameters of the transformation side by side, float32 (N, sum of k)."""
        return torch.cat(list(self.between.values()), dim=1)


def subset(split: Split, count: int) -> Tensor:
    """Return int64 indices of up to `count` images, the same ones every time."""
    return permutation(SEED, 0, len(split))[:count]


def encode_pairs(
    encoder: nn.Module, dataset: Dataset, split: Split, indices: Tensor, factors: Collection[str] | None = None
) -> Pairs:
    """Return the fixed pairs that start from the images at `indices` (N,).

    Args:
        factors: of two views of one object, the targets: for held-out pairs the training pairs'; default: the known
            factors that vary.
    """
    labels, objects = (None if known is None else known[indices] for known in (split.labels, split.objects))
    ids = split.ids[indices]
    if not dataset.paired:
        params = draw(ids, dataset.channels, dataset.image_size)
        first, second = encode(encoder, split, indices, (None, params))
        return Pairs(first, second, {name: value[:, None] for name, value in params.items()}, labels, ids, objects)
    one, two = fixed_pairs(split, indices)
    shown, place = torch.cat([one, two]).unique(return_inverse=True)  # most second views are others' first ones
    features = encode(encoder, split, shown)[0]
    first, second = features[place].split(len(indices))
    targets = absolute_factors(split, one)
    if factors is None:
        factors = [name for name, value in targets.items() if varying(value).any()]
    targets = {name: targets[name] for name in factors}
    return Pairs(first, second, targets, labels, ids, objects, named_transform(split, one, two, factors), per_view=True)


def fixed_pairs(split: Split, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return int64 indices (N,) of the two views of each pair that the evaluation takes, the same ones every time."""
    return pair_indices(split, indices, epoch=0, seed=SEED, paired=True)


def named_transform(split: Split, first: Tensor, second: Tensor, factors: Collection[str]) -> dict[str, Tensor]:
    """Return those of the `relative_transform` that are named."""
    between = relative_transform(split, first, second)
    return {name: between[name] for name in factors}


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
