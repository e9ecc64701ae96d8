"""Many views of the same held-out image, for invariance and retrieval.

N images or objects, T views, D features, k components of theta, m outputs.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from eqssl.data.dataset import Dataset, Split
from eqssl.evaluation.equivariance import EquivariancePredictor, Projection
from eqssl.evaluation.features import encode
from eqssl.evaluation.invariance import variances
from eqssl.evaluation.pairs import named_transform, subset
from eqssl.evaluation.predictions import ALL, Prediction
from eqssl.evaluation.transforms import BANK_STREAM, SEED, draw
from eqssl.random import permutation

IMAGES = 256
TRANSFORMS = 50
INVARIANCE_TRANSFORMS = 16


@dataclass(frozen=True)
class ViewBank:
    """Views of each image, and the transforms that lead to them.

    Args:
        first: float32 (N, D), the clean images, or the first view of each object.
        views: float32 (N, T, D), under the T fixed transforms, or T views of the object (`object_views`).
        theta: float32 (N, T, k), of the transforms from the first to each view.
        ids: int64 (N,), the first ones' identities.
    """

    first: Tensor
    views: Tensor
    theta: Tensor
    ids: Tensor

    def part(self, channels: slice) -> "ViewBank":
        """Return the bank with some of the features."""
        return replace(self, first=self.first[:, channels], views=self.views[..., channels])

    def predictions(self, predictor: EquivariancePredictor, whiten: Projection) -> list[Prediction]:
        """Return the predictions behind invariance and retrieval.

        `invariance` is that over the first 16 views. `hit1` is how often the predicted whitened z2 is nearest
        (Euclidean) to its own view among the T, by chance 1 / T.
        """
        images, views, _ = self.theta.shape
        true = whiten(self.views.flatten(0, 1)).unflatten(0, (images, views))
        nearest = torch.cdist(self.predicted(predictor), true).argmin(2)
        own = torch.arange(views).expand_as(nearest)
        found = {"hit1": (own, nearest), "invariance": variances(self.views[:, :INVARIANCE_TRANSFORMS])}
        return [Prediction(figure, ALL, self.ids, *(t.float() for t in asked)) for figure, asked in found.items()]

    def predicted(self, predictor: EquivariancePredictor) -> Tensor:
        """Return the predicted z2 of each view from the first, float64 (N, T, m)."""
        images, views, _ = self.theta.shape
        predicted = predictor.predict(self.first.repeat_interleave(views, 0), self.theta.flatten(0, 1))
        return predicted.unflatten(0, (images, views))


def encode_bank(encoder: nn.Module, dataset: Dataset, split: Split, factors: Collection[str]) -> ViewBank:
    """Return the bank of a held-out split.

    Args:
        factors: the components of theta, in the order that `Pairs.theta` has them.
    """
    if dataset.paired:
        return _objects(encoder, split, factors)
    indices = subset(split, IMAGES)
    params = draw(torch.arange(TRANSFORMS), dataset.channels, dataset.image_size, BANK_STREAM)
    each = [{name: value[t].expand(len(indices)) for name, value in params.items()} for t in range(TRANSFORMS)]
    first, *views = encode(encoder, split, indices, [None, *each])
    theta = torch.stack([params[name] for name in factors], dim=1).expand(len(indices), -1, -1)
    return ViewBank(first, torch.stack(views, dim=1), theta, split.ids[indices])


def _objects(encoder: nn.Module, split: Split, factors: Collection[str]) -> ViewBank:
    indices = object_views(split)
    features = encode(encoder, split, indices.flatten())[0].unflatten(0, indices.shape)
    between = named_transform(split, indices[:, :1].expand_as(indices), indices, factors)
    theta = torch.cat([torch.empty(*indices.shape, 0), *between.values()], dim=-1)
    return ViewBank(features[:, 0], features, theta, split.ids[indices[:, 0]])


def object_views(split: Split) -> Tensor:
    """Return int64 indices (N, T) of the views of up to 256 objects, the same ones every time, in order.

    T is the median number of views, at most 50; an object with fewer is left out, so that one which lacks a view does
    not make the search easier for all.
    """
    order = split.objects.argsort(stable=True)
    counts = split.objects.unique(return_counts=True)[1]
    views = min(int(counts.median()), TRANSFORMS)
    starts = counts.cumsum(0) - counts
    chosen = permutation(SEED, 0, len(starts))
    chosen = chosen[counts[chosen] >= views][:IMAGES]
    return order[starts[chosen][:, None] + torch.arange(views)]
