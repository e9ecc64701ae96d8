"""Pairs of images, two views of one object or one image twice, and the known transformation between them."""

import math

import torch
from torch import Tensor

from eqssl.data.dataset import Dataset, Split
from eqssl.data.rotation import quaternion_to_matrix
from eqssl.random import counter_uniform

PAIR_STREAM = 100  # of the counter-based generator
HUES = ("floor_hue", "light_hue")  # the colour targets of SIE on 3DIEBench
# Factors whose difference between views of one object is computed -> number of components.
KNOWN = {"quaternion": 4, **dict.fromkeys(HUES, 1)}


def find_fault(name: str, values: Tensor) -> tuple[int, str] | None:
    """Return the first image whose factor cannot be used, and the reason; None if all can.

    Args:
        name: the factor's name; quaternions and hues have additional checks.
        values: float (N, k).
    """
    count = values.shape[1]
    if name in KNOWN and count != KNOWN[name]:
        return 0, f"has {count} numbers; allowed: {KNOWN[name]} for each image"
    faulty, allowed = ~values.float().isfinite().all(dim=1), "finite numbers of 32 bits"
    if name == "quaternion":
        faulty |= values.double().norm(dim=1) == 0
        allowed += ", not all 0"
    if not faulty.any():
        return None
    row = int(faulty.nonzero()[0])
    return row, f"is {values[row].tolist()} ({int(faulty.sum())} such; allowed: {allowed})"


def is_known(dataset: Dataset) -> bool:
    """Return whether the transformation between a pair's views is known: its augmentations, for one image twice."""
    return not dataset.paired or not dataset.train.factors.keys().isdisjoint(KNOWN)


def pair_indices(split: Split, indices: Tensor, epoch: int, seed: int, paired: bool) -> tuple[Tensor, Tensor]:
    """Return the two images of each pair.

    Args:
        split: the images to choose from.
        indices: int64 (B,), the first images.
        epoch: pass over the images.
        seed: seed of the run.
        paired: whether the second is another view of the same object, drawn uniformly by (seed, epoch, image), rather
            than the first again.

    Returns:
        int64 (B,) twice.

    Raises:
        ValueError: for an object with a single view.
    """
    if not paired:
        return indices, indices
    order, rank, first_rank, views = split.sorted_by_object
    uniform = counter_uniform(seed, epoch, split.ids[indices], PAIR_STREAM, 1)[:, 0]
    step = 1 + (uniform.double() * (views[indices] - 1)).long()
    start = first_rank[indices]
    return indices, order[start + (rank[indices] - start + step) % views[indices]]


def absolute_factors(split: Split, indices: Tensor) -> dict[str, Tensor]:
    """Return the known factors of single views in continuous coordinates, the targets of probes on one view.

    Args:
        split: its factors may include `quaternion` (N, 4), of any length above 0, and hues (N, 1) in turns.
        indices: int64 (...), of the views.

    Returns:
        `pose` float32 (..., 9), the rotation matrix row by row; hues float32 (..., 2), cosine and sine of an angle.
    """
    known = split.factors
    factors = {}
    if "quaternion" in known:
        factors["pose"] = quaternion_to_matrix(known["quaternion"][indices]).flatten(-2)
    return factors | {name: _on_circle(known[name][indices]) for name in HUES if name in known}


def relative_transform(split: Split, first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Return the transformation between views of one object, in the coordinates of `absolute_factors`.

    Args:
        split: see `absolute_factors`.
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
    """Return the rotation and the hue differences between views of one object, as in SIE on 3DIEBench.

    Methods that are conditioned on the transformation train on these; the evaluation uses `absolute_factors` and
    `relative_transform`.

    Args:
        split: see `absolute_factors`.
        first, second: int64 (...), indices of the views.

    Returns:
        `rotation` (..., 4), the relative quaternion R1^-1 R2 as (x, y, z, w), its sign not canonicalised; hues
        (..., 1), second - first, not wrapped.
    """
    known = split.factors
    between = {}
    if "quaternion" in known:
        between["rotation"] = relative_quaternion(known["quaternion"][first], known["quaternion"][second])
    return between | {name: known[name][second] - known[name][first] for name in HUES if name in known}


def relative_quaternion(first: Tensor, second: Tensor) -> Tensor:
    """Return R1^-1 R2 of unit quaternions (..., 4), (x, y, z, w), the sign not canonicalised."""
    (v1, w1), (v2, w2) = (q.split([3, 1], dim=-1) for q in (first, second))
    vector = w1 * v2 - w2 * v1 - torch.linalg.cross(v1, v2)
    return torch.cat([vector, w1 * w2 + (v1 * v2).sum(-1, keepdim=True)], dim=-1)
