"""The protocol: a frozen encoder and a dataset -> features -> probes -> predictions -> metrics.

Metrics without a prefix are on all features; `inv/` and `equi/` on the two parts, if the encoder has them.
"""

import dataclasses
import logging
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from eqssl.config import EvaluateConfig
from eqssl.data.dataset import Dataset
from eqssl.data.pairs import HUES
from eqssl.data.rotation import nearest_rotation
from eqssl.evaluation import probes
from eqssl.evaluation.dense import dense_predictions
from eqssl.evaluation.equivariance import geometry_predictions
from eqssl.evaluation.features import EncodedViews, Pairs, encode_views, frozen, parts
from eqssl.evaluation.predictions import ALL, MIN_EXAMPLES, Prediction, factor_predictions, metrics_of, prefix
from eqssl.metrics import METRICS, Need

logger = logging.getLogger(__name__)


def evaluate(
    encoder: nn.Module,
    dataset: Dataset,
    *,
    config: EvaluateConfig | None = None,
    device: torch.device | None = None,
    predictions: list[Prediction] | None = None,
) -> dict[str, float]:
    """Return the metrics of a frozen encoder: probes are fitted on training images and scored on eval images.

    Args:
        encoder: images float32 (B, C, H, W) in [0, 1] -> features (B, D); with `dim_inv` below D, its first `dim_inv`
            features are the invariant part. Its modes are not altered.
        dataset: its train split and `config.split` are used.
        config: level, split, numbers of images; default: `EvaluateConfig()`.
        device: the encoder is moved there; default: it is not moved.
        predictions: a list that the probes' predictions are added to; default: they are not kept.

    Returns:
        Metric -> value. Quick: `knn`, `linear`, `r2/<factor>`, `r2_mean`, `pose_deg` (pairs of one object) or
        `geodesic_deg` (of the angle in the plane), `auroc/<factor>`, `std`, `std_min`, `spread`, `rank`. Full adds the
        R2 of an MLP, `mlp_r2/<factor>` and `mlp_r2_mean`; `extrapolation_r2/<factor>`; `invariance`, `equivariance`,
        `equivariance/<factor>`, `equivariance_raw`, `hit1`; and `dense/r2`, where the data have masks
        and the encoder has `tokens` and a `grid`, as `Encoder` does. Metrics that the data do not allow (accuracy
        without labels, colour of grey images) are absent, as are R2, shares of variance and measures of collapse with
        fewer than 3 eval images. Registered metrics with a function (`Metric.fn`) come last.

    Raises:
        ValueError: if all training images are of one class.
    """
    config = config or EvaluateConfig()
    if device is not None:
        encoder.to(device)
    with frozen(encoder):
        views = encode_views(encoder, dataset, config)
        channels_of_parts = parts(encoder, views.eval.first.shape[1])
        has_masks = dataset.train.masks is not None and getattr(dataset, config.split).masks is not None
        is_dense = config.level == "full" and has_masks
        dense = dense_predictions(encoder, dataset, config, channels_of_parts) if is_dense else []
    if (count := len(views.eval.first)) < MIN_EXAMPLES:
        logger.warning(
            "%s: accuracies are of %d images of %s, and metrics that need %d or more are left out",
            dataset.name, count, config.split, MIN_EXAMPLES,
        )  # fmt: skip
    metrics: dict[str, float] = {}
    for part, channels in channels_of_parts.items():
        of_part = views.part(channels)
        found = _predictions(of_part, config.level)
        others = collapse_metrics(of_part.eval.first) if len(of_part.eval.first) >= MIN_EXAMPLES else {}
        others |= registered_metrics(of_part, config.level, len(channels_of_parts) > 1, has_masks)
        found = [dataclasses.replace(prediction, part=part) for prediction in found]
        found += [prediction for prediction in dense if prediction.part == part]
        metrics |= metrics_of(found) | {prefix(part=part) + name: value for name, value in others.items()}
        if predictions is not None:
            predictions += found
    return metrics


def _predictions(views: EncodedViews, level: str) -> list[Prediction]:
    """Return the predictions of all probes of one part of the features."""
    train, eval_pairs = views.train, views.eval
    predictions = probes.class_predictions("knn", train, eval_pairs, probes.knn_predict)
    predictions += probes.class_predictions("linear", train, eval_pairs, probes.linear_predict)
    if train.targets:
        predictions += regress(train, eval_pairs)
    if train.binary and eval_pairs.binary:
        predictions += probes.ridge_predictions("auroc", train.binary, eval_pairs.binary)
    if level == "full" and train.targets:
        predictions += probes.mlp_predictions("mlp_r2", train, eval_pairs) + extrapolate(train, eval_pairs)
        predictions += geometry_predictions(views)
    return predictions


def regress(train: Pairs, eval_pairs: Pairs) -> list[Prediction]:
    """Return the predictions of all factors by ridge regression.

    If the pose of a view is among them, also the rotation between the views, from the predicted poses of both.
    """
    ridge, ids, targets = probes.fit_ridge(train.inputs, train.target), eval_pairs.ids, eval_pairs.targets
    predictions = factor_predictions("r2", ids, targets, ridge.predict(eval_pairs.inputs))
    if train.per_view and "pose" in targets:
        of_second = factor_predictions("r2", ids, targets, ridge.predict(eval_pairs.second))
        first, second = (
            nearest_rotation(next(one.predicted for one in found if one.factor == "pose").double().view(-1, 3, 3))
            for found in (predictions, of_second)
        )
        between = (first.mT @ second).flatten(1).float()
        predictions.append(Prediction("pose_deg", ALL, ids, eval_pairs.transform["pose"].float(), between))
    return predictions


def extrapolate(train: Pairs, eval_pairs: Pairs) -> list[Prediction]:
    """Return ridge predictions of each factor where it is large, fitted where it is small, over the others' full range.

    Small means the inner half of the factor's range, or for poses the half nearer to the mean pose. A constant's R2 is
    about 0, but lower for poses, whose mean differs between the halves. Factors without large values are absent, and so
    are hues: a circle has no inner half.
    """
    predictions = []
    for factor, target in train.targets.items():
        if factor in HUES:
            continue
        eval_target = eval_pairs.targets[factor]
        if factor == "pose":
            poses, eval_poses = (Rotation.from_matrix(matrix.view(-1, 3, 3)) for matrix in (target, eval_target))
            to_middle = poses.mean().inv()
            size, eval_size = (torch.from_numpy((to_middle * pose).magnitude()) for pose in (poses, eval_poses))
            limit = size.median()
        else:
            middle = (target.min() + target.max()) / 2
            size, eval_size = ((values - middle).abs()[:, 0] for values in (target, eval_target))
            limit = size.max() / 2
        small, large = size <= limit, eval_size > limit
        if large.sum() >= 2:
            predicted = probes.fit_ridge(train.inputs[small], target[small]).predict(eval_pairs.inputs[large])
            targets = {factor: eval_target[large]}
            predictions += factor_predictions("extrapolation_r2", eval_pairs.ids[large], targets, predicted)
    return predictions


def registered_metrics(views: EncodedViews, level: str, is_split: bool, has_masks: bool) -> dict[str, float]:
    """Return the registered metrics with a function (`Metric.fn`), where the data and the level allow them.

    Args:
        views: of one part of the features.
        level: quick or full.
        is_split: whether the encoder has an invariant and an equivariant part.
        has_masks: whether the data have masks of the object.

    Raises:
        ValueError: for a function that does not return a number, or factor -> number for a family.
    """
    train = views.train
    given: dict[Need, bool] = {
        "labels": train.labels is not None,
        "factors": bool(train.targets),
        "pose": "pose" in train.targets,
        "binary factors": train.binary is not None,
        "split": is_split,
        "masks": has_masks,
    }
    values: dict[str, float] = {}
    for metric in METRICS.values():
        if metric.fn is None or (metric.level == "full" and level == "quick"):
            continue
        if not all(given[need] for need in metric.needs):
            continue
        value = metric.fn(views)
        if isinstance(value, Mapping) != metric.per_factor:
            allowed = "factor -> number" if metric.per_factor else "a number, or factor -> number with per_factor=True"
            raise ValueError(f"the function of metric {metric.name} returns {value!r}; allowed: {allowed}")
        if isinstance(value, Mapping):
            values |= {f"{metric.name}/{factor}": float(of_factor) for factor, of_factor in value.items()}
        else:
            values[metric.name] = float(value)
    return values


def collapse_metrics(features: Tensor) -> dict[str, float]:
    """Return metrics of collapse, to a point or to few directions.

    Args:
        features: (N, D).

    Returns:
        `std`, `std_min`: mean and minimum standard deviation of a dimension, in the features' unit; `spread`: root of
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
    varies = (std > 1e-7 * mean.abs()).any()  # a spread below float32's resolution is rounding error
    rank = float(entropy.exp()) if varies else 0.0
    spread = F.normalize(features.double(), dim=1).var(0, correction=0).sum().sqrt()
    return {"std": float(std.mean()), "std_min": float(std.min()), "spread": float(spread), "rank": rank}
