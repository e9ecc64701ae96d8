"""Whether what a probe learned of small transforms holds for large ones: factors beyond the range it was fitted on."""

from torch import Tensor

from eqssl.evaluation.pairs import Pairs
from eqssl.evaluation.predictions import Prediction, predictions_of
from eqssl.evaluation.r2 import ROTATION
from eqssl.evaluation.ridge import fit, moments


def extrapolate(train: Pairs, held: Pairs) -> list[Prediction]:
    """Return a ridge's predictions of every factor, fitted where it is small and asked where it is large.

    Small is the inner half of the factor's range, and of rotations in space the half with the lesser angles; the other
    factors go through all of theirs. A constant's R2 is about 0, but below it for rotations, whose mean quaternion
    differs between small and large angles.

    Args:
        train, held: pairs that are fitted where the factor is small, and asked where it is large.

    Returns:
        For each factor its `extrapolation_r2`.
    """
    said = []
    for factor, target in train.targets.items():
        asked = held.targets[factor]
        size, asked_size = (_angle(q) for q in (target, asked)) if factor == ROTATION else _distances(target, asked)
        limit = size.median() if factor == ROTATION else size.max() / 2
        small, large = size <= limit, asked_size > limit
        ridge = fit(moments(train.joint[small], target[small]))
        targets = {factor: asked[large]}
        said += predictions_of("extrapolation_r2", held.ids[large], targets, ridge.predict(held.joint[large]))
    return said


def _angle(quaternion: Tensor) -> Tensor:
    """Return the angles of rotations, (N,), in [0, pi]."""
    return 2 * quaternion[:, 3].abs().clamp(max=1).acos()


def _distances(target: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far two sets of a factor, (N, 1) and (M, 1), are from the middle of the first one's range."""
    middle = (target.min() + target.max()) / 2
    return (target - middle).abs()[:, 0], (asked - middle).abs()[:, 0]
