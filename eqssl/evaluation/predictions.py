"""Predictions of probes for eval examples, their metrics, each example's contribution to a metric, and files of both.

N examples, k components of a factor.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from sklearn.metrics import roc_auc_score
from torch import Tensor

from eqssl.files import on_disk, write_atomically

LABEL, ALL = "label", "all"  # `factor` of class predictions, and of those of all factors together
PROTOCOL, PART = "eqssl", "all"  # the defaults, whose metrics have no prefix
ROTATION, ANGLE = "rotation", "angle_deg"  # factors with an angular error: a relative quaternion, an angle in the plane
MIN_EXAMPLES = 3  # a share of variance means nothing with fewer: with two examples it is often far below 0
HITS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Prediction:
    """The predictions of one probe for eval examples about one factor.

    Args:
        metric: name of the score: in `R2`, `RANKS`, `EQUIVARIANCE`, `INVARIANCE`, `SCORES`, `DENSE`, or of an accuracy.
        factor: the predicted factor, or `LABEL` or `ALL`.
        examples: int64 (N,), identities of the images, or of the first images of pairs.
        target, predicted: float32 (N, k); for equivariance, invariance and `DENSE`, contributions to the total variance
            and to the remaining variance; for ranks, the best rank and the rank.
        protocol, part: evaluation protocol; all, inv or equi features.
    """

    metric: str
    factor: str
    examples: Tensor
    target: Tensor
    predicted: Tensor
    protocol: str = PROTOCOL
    part: str = PART


def factor_predictions(
    metric: str, examples: Tensor, targets: Mapping[str, Tensor], predicted: Tensor
) -> list[Prediction]:
    """Return a probe's predictions (N, sum of k) of the targets, factor -> (N, k), one for each factor."""
    columns = predicted.float().split([target.shape[1] for target in targets.values()], dim=1)
    return [
        Prediction(metric, factor, examples, target.float(), column)
        for (factor, target), column in zip(targets.items(), columns, strict=True)
    ]


def varying(values: Tensor) -> Tensor:
    """Return bool (k,): which components of (N, k), all of similar size, vary by more than float32 rounding.

    On a turntable two components of a quaternion do not.
    """
    values = values.double()
    spread = (values - values.mean(0)).square().mean(0).sqrt()
    return spread > 1e-6 * values.square().mean().sqrt()


def r2_pooled(target: Tensor, predicted: Tensor) -> float:
    """Return R2 of (N, k) over all samples and components at once, around one mean (SIE's code, arXiv 2302.10283).

    A constant scores above 0 where the components' means differ: .229 on the relative quaternions of 3DIEBench.
    """
    target, predicted = target.double(), predicted.double()
    return float(1 - (target - predicted).square().sum() / (target - target.mean()).square().sum())


def auroc(target: Tensor, score: Tensor) -> float:
    """Return the area under the ROC curve of scores (N, 1) for targets (N, 1), 0 or 1, both present."""
    return float(roc_auc_score(target[:, 0].numpy(), score[:, 0].numpy()))


def pose_deg(target: Tensor, predicted: Tensor) -> float:
    """Return the mean angle between rotation matrices (N, 9), row by row: degrees, 0 to 180."""
    one, two = (Rotation.from_matrix(matrix.double().unflatten(1, (3, 3)).numpy()) for matrix in (target, predicted))
    return float(np.rad2deg((one.inv() * two).magnitude()).mean())


def geodesic_deg(target: Tensor, predicted: Tensor) -> float:
    """Return the mean angle between the rotations of quaternions (N, 4), of any sign and length: degrees, 0 to 180."""
    one, two = (Rotation.from_quat(quaternion.double().numpy()) for quaternion in (target, predicted))
    return float(np.rad2deg((one.inv() * two).magnitude()).mean())


def pose_error(target: Tensor, predicted: Tensor) -> float:
    """Return SIE's PRE, the mean of 1 - <q, q'>^2 over unit quaternions (N, 4): 0 (the same rotation) to 1 (half a turn
    apart); .627 between random poses of 3DIEBench."""
    return float(1 - (target.double() * predicted.double()).sum(1).square().mean())


def rank_metrics(rank: Tensor) -> dict[str, float]:
    """Return the retrieval metrics of ranks (N, T) among T views.

    Returns:
        `mrr`, the mean of 1 / rank; `h1`, `h2`, `h5`, `h10` if below T, the share of ranks up to that; `views`, T.
        Chance level for T = 50: mrr .090, h1 .02, h5 .10.
    """
    views = rank.shape[1]
    hits = {f"h{k}": float((rank <= k).double().mean()) for k in HITS if k < views}
    return {"mrr": float((1 / rank.double()).mean()), **hits, "views": float(views)}


# Metrics of predictions by how they are scored; all others are accuracies.
R2, RANKS = ("r2", "mlp_r2", "extrapolation_r2", "linear_r2", "constant_r2"), ("posthoc_rank", "own_rank")
EQUIVARIANCE, INVARIANCE = ("equivariance", "equivariance_raw"), ("invariance",)
DENSE = "dense/r2"
SEARCHES = ("train_train", "held_held", "held_all")
SCORES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "auroc": auroc,
    "pose_deg": pose_deg,
    **{f"{by}_pre_{search}": pose_error for by in ("posthoc", "own") for search in SEARCHES},
}
CONTRIBUTED = {  # by part
    "all": ("knn", "linear", "r2", "mlp_r2", "equivariance", "invariance", DENSE),
    "inv": INVARIANCE,
}


def metrics_of(predictions: Iterable[Prediction]) -> dict[str, float]:
    """Return metric -> value of predictions, means over factors included; metrics of too few examples are absent."""
    groups: dict[tuple[str, str, str], list[Prediction]] = defaultdict(list)
    for one in predictions:
        groups[one.protocol, one.part, one.metric].append(one)
    metrics: dict[str, float] = {}
    for (protocol, part, metric), group in groups.items():
        start = prefix(protocol, part)
        if metric in R2:
            values, start = _r2_metrics(group), start + metric.removesuffix("r2")
        elif metric in RANKS:
            values, start = rank_metrics(group[0].predicted), start + metric.removesuffix("rank")
        else:
            values = {_name(one): _score(one) for one in group if _is_scorable(one)}
        metrics |= {start + name: value for name, value in values.items()}
    return metrics


def _r2_metrics(group: list[Prediction]) -> dict[str, float]:
    """Return the metrics of one probe's continuous factors; factors that do not vary in these examples are absent.

    Returns:
        `r2/<factor>`, the mean over components that vary; `r2_mean`, the mean over factors, where a vector counts once;
        for a relative quaternion (`rotation`) or an angle in the plane (`angle_deg`) `geodesic_deg`, the mean angular
        error. For vectors, except in our own protocol, also `r2_pooled` of a relative quaternion or
        `r2_pooled/<factor>` of another vector.
    """
    group = [one for one in group if _is_scorable(one)]
    metrics = {f"r2/{one.factor}": _score(one) for one in group}
    if metrics:
        metrics["r2_mean"] = sum(metrics.values()) / len(metrics)
    for one in group:
        if one.protocol != PROTOCOL and one.target.shape[1] > 1:
            name = "r2_pooled" if one.factor == ROTATION else f"r2_pooled/{one.factor}"
            metrics[name] = r2_pooled(one.target, one.predicted)
        if one.factor == ROTATION:
            metrics["geodesic_deg"] = geodesic_deg(one.target, one.predicted)
        elif one.factor == ANGLE:
            metrics["geodesic_deg"] = float((one.target - one.predicted).abs().mean())
    return metrics


def prefix(protocol: str = PROTOCOL, part: str = PART) -> str:
    """Return the prefix of the metrics' names."""
    return ("" if part == PART else f"{part}/") + ("" if protocol == PROTOCOL else f"{protocol}/")


def _name(one: Prediction) -> str:
    return one.metric if one.factor in (LABEL, ALL) else f"{one.metric}/{one.factor}"


def _is_scorable(one: Prediction) -> bool:
    """Return whether the examples suffice: both classes for AUROC, three for variance shares, some variance for R2."""
    if one.metric == "auroc":
        return len(one.target.unique()) == 2
    if one.metric in (*R2, *EQUIVARIANCE, *INVARIANCE, DENSE) and len(one.target) < MIN_EXAMPLES:
        return False
    return one.metric not in R2 or bool(varying(one.target).any())


def _score(one: Prediction) -> float:
    if one.metric in SCORES:
        return SCORES[one.metric](one.target, one.predicted)
    part, whole = _ratio(one)
    return float((part.sum(0) / whole.sum(0)).mean())


def _ratio(one: Prediction) -> tuple[Tensor, Tensor]:
    """Return each example's contributions to a metric sum(part) / sum(whole), float64 (N, up to k).

    Accuracy is a share of examples, R2 is per component that varies, the others are variance shares.
    """
    target, predicted = one.target.double(), one.predicted.double()
    if one.metric in R2:
        varies = varying(target)
        target, predicted = target[:, varies], predicted[:, varies]
        total = (target - target.mean(0)).square()
        return total - (target - predicted).square(), total
    if one.metric not in (*EQUIVARIANCE, *INVARIANCE, DENSE):
        correct = (target == predicted).double()
        return correct, torch.ones_like(correct)
    total, is_invariance = target[:, :1], one.metric in INVARIANCE
    if not total.any():  # a constant feature is invariant, not equivariant
        return torch.full_like(total, is_invariance), torch.ones_like(total)
    return (total - predicted if one.metric not in EQUIVARIANCE else predicted[:, :1] - predicted[:, 1:]), total


# Metric -> ids of units int64 (U,), ascending; their contributions float32 (U,); weights float32 (U,).
Contributions = dict[str, tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]]


def unit_contributions(predictions: Iterable[Prediction], objects: Mapping[int, int] | None = None) -> Contributions:
    """Return each eval unit's contribution to a metric, for the sampling variance of eval units.

    A metric that is a ratio of sums is linearised (delta method): the contribution of an example is the metric plus the
    example's influence on it, so that weights do not depend on the encoder and the variance of the contributions is
    that of the metric.

    Args:
        predictions: of one evaluation.
        objects: example -> object, if units are objects with all their views; default: a unit is an image.

    Returns:
        Contributions, whose weighted mean is the metric; a weight is the unit's number of examples. The metrics are, on
        all features, `knn`, `linear`, R2 and equivariance of every factor, their means, `invariance`, `dense/r2`; and
        `inv/invariance`.
    """
    of_examples: dict[str, tuple[Tensor, Tensor]] = {}
    r2: dict[str, list[Tensor]] = defaultdict(list)
    for one in predictions:
        contributed = one.protocol == PROTOCOL and one.metric in CONTRIBUTED.get(one.part, ())
        if not contributed or len(one.target) < MIN_EXAMPLES or not _is_scorable(one):
            continue
        part, whole = _ratio(one)
        ratio = part.mean(0) / whole.mean(0)
        values = (ratio + (part - ratio * whole) / whole.mean(0)).mean(1)
        of_examples[prefix(part=one.part) + _name(one)] = one.examples, values
        if one.metric in R2:
            r2[one.metric].append(values)
            of_examples[f"{one.metric}_mean"] = one.examples, torch.stack(r2[one.metric]).mean(0)
    contributions: Contributions = {}
    for metric, (examples, values) in of_examples.items():
        ids = examples.numpy() if objects is None else np.array([objects[example] for example in examples.tolist()])
        units, which, weights = np.unique(ids, return_inverse=True, return_counts=True)
        means = np.bincount(which, values.numpy()) / weights
        contributions[metric] = units, means.astype(np.float32), weights.astype(np.float32)
    return contributions


COLUMNS = {"protocol": "protocol", "part": "part", "figure": "metric", "factor": "factor"}  # column -> field


def save_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """Write a Parquet file: a row for every probe, eval example and component of the factor.

    Its columns are protocol, part, figure (the metric), factor, component (0 to k - 1), example, target, predicted.
    """
    tables = []
    for one in predictions:
        examples, components = one.target.shape
        columns = {column: getattr(one, field) for column, field in COLUMNS.items()}
        columns["component"] = np.tile(np.arange(components, dtype=np.int8), examples)
        columns["example"] = one.examples.repeat_interleave(components).numpy()
        columns |= {"target": one.target.flatten().numpy(), "predicted": one.predicted.flatten().numpy()}
        tables.append(pd.DataFrame(columns))
    _write(pd.concat(tables), path)


def load_predictions(path: Path) -> list[Prediction]:
    """Return the predictions of a file that `save_predictions` wrote."""
    with on_disk(path) as local:
        table = pd.read_parquet(local)
    predictions = []
    for keys, rows in table.groupby(list(COLUMNS), sort=False):
        fields = {field: str(key) for field, key in zip(COLUMNS.values(), keys, strict=True)}
        shape = (-1, int(rows["component"].max()) + 1)
        example, target, predicted = (
            torch.tensor(rows[name].to_numpy().reshape(shape)) for name in ("example", "target", "predicted")
        )
        predictions.append(Prediction(examples=example[:, 0], target=target, predicted=predicted, **fields))
    return predictions


def save_contributions(predictions: Iterable[Prediction], path: Path, objects: Mapping[int, int] | None = None) -> None:
    """Write the `unit_contributions` of an evaluation as a Parquet file: metric, unit, value, weight."""
    contributions = unit_contributions(predictions, objects)
    tables = [
        pd.DataFrame({"metric": metric, "unit": units, "value": values, "weight": weights})
        for metric, (units, values, weights) in contributions.items()
    ]
    table = pd.concat(tables) if tables else pd.DataFrame(columns=["metric", "unit", "value", "weight"])
    _write(table.astype({"metric": "category"}), path)


def _write(table: pd.DataFrame, path: Path) -> None:
    write_atomically(path, lambda temporary: table.to_parquet(temporary, compression="zstd", index=False))
