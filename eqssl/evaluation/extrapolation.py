"""Whether what a probe learned of small transforms holds for large ones: factors beyond the range it was fitted on."""

from torch import Tensor

from eqssl.data.pairs import HUES
from eqssl.data.rotation import angle_between, nearest_rotation
from eqssl.evaluation.pairs import Pairs
from eqssl.evaluation.predictions import Prediction, predictions_of
from eqssl.evaluation.ridge import fit, moments


def extrapolate(train: Pairs, held: Pairs) -> list[Prediction]:
    """Return a ridge's predictions of every factor, fitted where it is small and scored where it is large.

    Small is the inner half of the factor's range, and of poses the half that is nearer to the mean pose; the other
    factors go through all of theirs. A constant's R2 is about 0, but below it for poses, whose mean differs between
    the halves. A hue is on a circle, which has no inner half.

    Args:
        train, held: pairs that are fitted where the factor is small, and scored where it is large.

    Returns:
        For each factor its `extrapolation_r2`; nothing of a factor without large values.
    """
    predictions = []
    for factor, target in train.targets.items():
        if factor in HUES:
            continue
        size, held_size = (_angles if factor == "pose" else _distances)(target, held.targets[factor])
        limit = size.median() if factor == "pose" else size.max() / 2
        small, large = size <= limit, held_size > limit
        if large.sum() < 2:
            continue
        ridge = fit(moments(train.inputs[small], target[small]))
        predicted = ridge.predict(held.inputs[large])
        predictions += predictions_of(
            "extrapolation_r2", held.ids[large], {factor: held.targets[factor][large]}, predicted
        )
    return predictions


def _angles(target: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Return the angles of two sets of rotation matrices, (N, 9) and (M, 9), from the mean of the first."""
    middle = nearest_rotation(target.double().mean(0).view(3, 3))
    return tuple(angle_between(matrices.double().unflatten(1, (3, 3)), middle) for matrices in (target, held))


def _distances(target: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distances of two sets of a factor, (N, 1) and (M, 1), from the middle of the first one's range."""
    middle = (target.min() + target.max()) / 2
    return (target - middle).abs()[:, 0], (held - middle).abs()[:, 0]
