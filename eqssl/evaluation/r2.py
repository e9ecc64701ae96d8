"""How well known factors are predicted: R2 per factor, SIE's pooled value, angles, and AUROC for binary factors."""

import torch
from torch import Tensor

from eqssl.data.rotation import angle_between

ROTATION, ANGLE = "rotation", "angle_deg"
MIN_EXAMPLES = 3  # below which a share of variance means nothing: of two examples it is often far below 0


def varying(values: Tensor) -> Tensor:
    """Return which components vary by more than float32 rounds: on a turntable two of a quaternion's do not.

    Args:
        values: (N, k), in one unit or in several of about one size.

    Returns:
        bool (k,).
    """
    values = values.double()
    spread = (values - values.mean(0)).square().mean(0).sqrt()
    return spread > 1e-6 * values.square().mean().sqrt()


def r2(target: Tensor, predicted: Tensor) -> Tensor:
    """Return 1 - RSS / TSS per component, sklearn's `raw_values`.

    Args:
        target, predicted: (N, k), the target's components `varying`.

    Returns:
        float64 (k,).
    """
    target, predicted = target.double(), predicted.double()
    total = ((target - target.mean(0)) ** 2).sum(0)
    return 1 - ((target - predicted) ** 2).sum(0) / total


def r2_pooled(target: Tensor, predicted: Tensor) -> float:
    """Return R2 over all samples and components at once, around one mean, as SIE has it (arXiv 2302.10283, its code).

    A constant scores above 0 where the components' means differ: .229 on the relative quaternions of 3DIEBench.

    Args:
        target, predicted: (N, k).
    """
    return float(r2(target.reshape(-1, 1), predicted.reshape(-1, 1)))


def factor_r2(target: Tensor, predicted: Tensor) -> Tensor:
    """Return R2 of a factor per component that varies, float64 (up to k,), for target and prediction (N, k).

    It is empty for fewer than 3 examples.
    """
    varies = varying(target) & (len(target) >= MIN_EXAMPLES)
    return r2(target[:, varies], predicted[:, varies])


def factor_figures(targets: dict[str, Tensor], predicted: dict[str, Tensor], pooled: bool = False) -> dict[str, float]:
    """Return the metrics of continuous factors.

    Args:
        targets, predicted: factor -> (N, k).
        pooled: whether vectors have SIE's definition of R2 as well.

    Returns:
        `r2/<factor>`, the mean over its components that vary; `r2_mean` over factors, a vector counting once; for a
        relative quaternion (`rotation`) or an angle in the plane (`angle_deg`) `geodesic_deg`, the mean angle missed.
        Pooled, for vectors with all components: `r2_pooled` for a relative quaternion and `r2_pooled/<factor>` for any
        other. What does not vary in these samples is absent: there is nothing to predict.
    """
    values = {name: factor_r2(target, predicted[name]) for name, target in targets.items()}
    figures = {f"r2/{name}": float(value.mean()) for name, value in values.items() if len(value)}
    if figures:
        figures["r2_mean"] = sum(figures.values()) / len(figures)
    varying_targets = {name: target for name, target in targets.items() if len(values[name])}
    for name, target in varying_targets.items():
        if pooled and target.shape[1] > 1:
            figures["r2_pooled" if name == ROTATION else f"r2_pooled/{name}"] = r2_pooled(target, predicted[name])
    if ROTATION in varying_targets:
        figures["geodesic_deg"] = geodesic_deg(targets[ROTATION], predicted[ROTATION])
    if ANGLE in varying_targets:
        figures["geodesic_deg"] = float((targets[ANGLE] - predicted[ANGLE]).abs().mean())
    return figures


def pose_deg(target: Tensor, predicted: Tensor) -> float:
    """Return the mean angle between rotation matrices, both (N, 9), row by row.

    Returns:
        Degrees, 0 to 180.
    """
    one, two = (matrix.double().unflatten(1, (3, 3)) for matrix in (target, predicted))
    return float(torch.rad2deg(angle_between(one, two)).mean())


def geodesic_deg(target: Tensor, predicted: Tensor) -> float:
    """Return the mean angle between rotations, either sign of a quaternion being the same rotation.

    Args:
        target: (N, 4), unit quaternions.
        predicted: (N, 4), of any length.

    Returns:
        Degrees, 0 to 180.
    """
    target, predicted = target.double(), torch.nn.functional.normalize(predicted.double(), dim=1)
    cosine = (target * predicted).sum(1).abs().clamp(max=1)
    return float(torch.rad2deg(2 * cosine.acos()).mean())


def auroc(target: Tensor, score: Tensor) -> float:
    """Return the probability that a positive scores above a negative, ties counting half.

    Args:
        target: (N,), 0 or 1, both present.
        score: (N,).
    """
    positive, negative = score[target > 0.5], score[target <= 0.5].sort().values
    below = torch.searchsorted(negative, positive)
    not_above = torch.searchsorted(negative, positive, right=True)
    return float((below + not_above).double().mean() / (2 * len(negative)))
