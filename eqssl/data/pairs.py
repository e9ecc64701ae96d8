"""Which two images make a pair, two views of one object or one image twice, and what is known to lie between them."""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from eqssl.data.dataset import Dataset, Split
from eqssl.data.synthetic.rotation import quaternion_to_matrix
from eqssl.random import counter_uniform

PAIR_STREAM = 100  # of the counter-based generator
HUES = ("floor_hue", "light_hue")  # the colour targets of SIE on 3DIEBench
KNOWN = ("quaternion", *HUES)  # factors of which the difference between views of one object is taken
# Augmentation family -> the factor that it would alter unseen. A mirrored object is none turned. Saturation, brightness
# and contrast leave every hue as it is.
ALTERED_BY = {
    "rotation": "quaternion",
    "flip": "quaternion",
    "hue": "floor_hue",
    "grayscale": "floor_hue",
    "solarize": "light_hue",
}


def is_known(dataset: Dataset) -> bool:
    """Return whether anything is known to lie between the views of a pair: of one image twice, its augmentations."""
    return not dataset.paired or not dataset.train.factors.keys().isdisjoint(KNOWN)


def altered_by(factors: Collection[str]) -> dict[str, str]:
    """Return augmentation family -> which of the known factors it would alter."""
    return {family: factor for family, factor in ALTERED_BY.items() if factor in factors}


@dataclass(frozen=True)
class _Groups:
    """The views of every object, one object after another.

    Args:
        order: int64 (N,), image indices sorted by object.
        place: int64 (N,), where an image stands in order.
        start, size: int64 (N,), where the views of an image's object begin in order, and how many there are.
    """

    order: Tensor
    place: Tensor
    start: Tensor
    size: Tensor


_groups = WeakTensorKeyDictionary()  # a split's objects -> its _Groups, so that they are sorted only once


def pair_indices(split: Split, indices: Tensor, epoch: int, seed: int, paired: bool) -> tuple[Tensor, Tensor]:
    """Return the two images of each pair.

    Args:
        split: where they come from.
        indices: int64 (B,), the first images.
        epoch: pass over the images.
        seed: seed of the run.
        paired: whether the second is another view of the same object, drawn uniformly by (seed, epoch, image), or the
            first again.

    Returns:
        int64 (B,) twice.

    Raises:
        ValueError: for an object with a single view.
    """
    if not paired:
        return indices, indices
    if split.objects not in _groups:
        _groups[split.objects] = _group(split.objects)
    groups = _groups[split.objects]
    size = groups.size[indices]
    uniform = counter_uniform(seed, epoch, split.ids[indices], PAIR_STREAM, 1)[:, 0]
    step = 1 + (uniform.double() * (size - 1)).long()
    start = groups.start[indices]
    return indices, groups.order[start + (groups.place[indices] - start + step) % size]


def _group(objects: Tensor) -> _Groups:
    order = objects.argsort(stable=True)
    names, group, counts = objects.unique(return_inverse=True, return_counts=True)
    if bool((counts == 1).any()):
        raise ValueError(f"object {int(names[counts == 1][0])} has a single view; a pair of views needs two or more")
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return _Groups(order, place, (counts.cumsum(0) - counts)[group], counts[group])


def absolute_factors(split: Split, indices: Tensor) -> dict[str, Tensor]:
    """Return the known factors of single views, in coordinates that are continuous: the targets of one view's probes.

    Args:
        split: with factors `quaternion` (N, 4), of any length above 0, and hues (N, 1) in turns, each where it is
            known.
        indices: int64 (...), of the views.

    Returns:
        `pose` float32 (..., 9), the rotation matrix row by row; hues float32 (..., 2), cosine and sine, since a hue is
        an angle.
    """
    known = split.factors
    factors = {}
    if "quaternion" in known:
        factors["pose"] = quaternion_to_matrix(known["quaternion"][indices]).flatten(-2)
    return factors | {name: _on_circle(known[name][indices]) for name in HUES if name in known}


def relative_transform(split: Split, first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Return the transformation between views of one object, in the coordinates of `absolute_factors`.

    Args:
        split: as `absolute_factors` takes it.
        first, second: int64 (...), indices of the views.

    Returns:
        `pose` float32 (..., 9), R1^T R2 row by row; hues float32 (..., 2), cosine and sine of second - first.
    """
    known = split.factors
    between = {}
    if "quaternion" in known:
        one, two = (quaternion_to_matrix(known["quaternion"][view]) for view in (first, second))
        between["pose"] = (one.mT @ two).flatten(-2)
    return between | {name: _on_circle(known[name][second] - known[name][first]) for name in HUES if name in known}


def _on_circle(turns: Tensor) -> Tensor:
    return torch.cat([torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)], dim=-1)


def relative_factors(split: Split, first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Return the rotation and the hue differences between views of one object, as SIE has them on 3DIEBench.

    Methods that are conditioned on the transformation train on these; `absolute_factors` and `relative_transform` are
    those of the evaluation.

    Args:
        split: with factors `quaternion` (N, 4) and hues (N, 1), each where it is known.
        first, second: int64 (...), indices of the views.

    Returns:
        `rotation` (..., 4), the relative quaternion R1^-1 R2 as (x, y, z, w), its sign as it comes; hues (..., 1),
        second - first, not wrapped.
    """
    known = split.factors
    between = {}
    if "quaternion" in known:
        between["rotation"] = relative_quaternion(known["quaternion"][first], known["quaternion"][second])
    return between | {name: known[name][second] - known[name][first] for name in HUES if name in known}


def relative_quaternion(first: Tensor, second: Tensor) -> Tensor:
    """Return R1^-1 R2 of unit quaternions (..., 4), (x, y, z, w), with the sign that the product has."""
    (v1, w1), (v2, w2) = (q.split([3, 1], dim=-1) for q in (first, second))
    vector = w1 * v2 - w2 * v1 - torch.linalg.cross(v1, v2)
    return torch.cat([vector, w1 * w2 + (v1 * v2).sum(-1, keepdim=True)], dim=-1)
