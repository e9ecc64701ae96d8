"""The protocol of 3DIEBench (Garrido et al., arXiv 2302.10283) for pairs of views of one object.

Heads and metrics are those of the reference code, but they are fitted on features of the frozen encoder, computed once
in inference mode, and on pairs from a stored seed; the reference code keeps the encoder in training mode and draws new
pairs. Retrieval needs a predictor of z2 from z1 and the relative quaternion. Most methods have none, so one is fitted
after training, the same for all (`fit_equivariance`): `posthoc_`. SIE and EquiMod are trained with a predictor of
projected embeddings; its metrics, the published ones, are reported too: `own_`.

N pairs, M objects with T views, E dimensions of features or embeddings. Similarity is cosine.
"""

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.config import EvaluateConfig
from eqssl.data.dataset import Dataset, Split
from eqssl.data.pairs import HUES, relative_factors
from eqssl.evaluation.equivariance import fit_equivariance
from eqssl.evaluation.features import Pairs, encode_bank, encode_pairs, fixed_pairs, frozen, object_views, parts, subset
from eqssl.evaluation.predictions import ALL, ROTATION, Prediction, factor_predictions, varying
from eqssl.evaluation.probes import class_predictions, linear_predict, mlp_predictions, ridge_predictions
from eqssl.methods.base import Predictive

PROTOCOL = "3die"
HIDDEN = 1024  # units of the reference code's three-layer head
BLOCK = 1024


def threediebench_predictions(
    encoder: nn.Module, dataset: Dataset, config: EvaluateConfig, predictor: Predictive | None = None
) -> list[Prediction]:
    """Return the predictions of a frozen encoder's probes: fitted on training images, scored on eval images.

    Args:
        encoder, dataset, config: as in `eqssl.evaluation.protocol.evaluate`.
        predictor: the method that the encoder was trained with, if it predicts embeddings, on the CPU.

    Returns:
        Predictions whose metrics (`metrics_of`) are `3die/<metric>` on all features, `inv/3die/<metric>` and
        `equi/3die/<metric>` on the parts. `top1`: a ridge classifier on one view. For the relative quaternion and the
        differences of hues, by a ridge on both views: `linear_r2/rotation` and `linear_r2/colour` (mean over
        components), by SIE's own definition `linear_r2_pooled` and `linear_r2_pooled/colour`, and
        `linear_geodesic_deg`. The same with `mlp_`, by an MLP with two hidden layers of 1024, and, as the floor, with
        `constant_`, by the training pairs' mean. `posthoc_mrr` and `posthoc_h1`, `_h2`, `_h5`, `_h10`, `_views`
        (`rank_metrics`): retrieval of eval objects. PRE (`pose_error`): `posthoc_pre_train_train`, queries and
        candidates from training; `posthoc_pre_held_held`, both from eval; `posthoc_pre_held_all`, eval queries among
        all candidates.
        Retrieval is among T views of up to 256 objects per split (`object_views`). With a predictor that is conditioned
        on the rotation, the same retrieval metrics of that predictor, `own_`, on all features.

    Raises:
        ValueError: for data without pairs of one object, or whose pose or hues are unknown or never change.
    """
    with frozen(encoder):
        train, train_bank = _encode(encoder, dataset, dataset.train, config.train_images)
        split = getattr(dataset, config.split)
        eval_pairs, eval_bank = _encode(encoder, dataset, split, config.images, must_vary=False)
    mean = train.target.mean(0).expand_as(eval_pairs.target)
    predictions = factor_predictions("constant_r2", eval_pairs.ids, eval_pairs.targets, mean)
    for part, channels in parts(encoder, eval_pairs.first.shape[1]).items():
        train_part, eval_part = train.part(channels), eval_pairs.part(channels)
        predict = fit_equivariance(train_part.first, train_part.targets[ROTATION], train_part.second)
        found = [
            *class_predictions("top1", train_part, eval_part, linear_predict),
            *ridge_predictions("linear_r2", train_part, eval_part),
            *mlp_predictions("mlp_r2", train_part, eval_part, HIDDEN),
        ]
        banks = [bank.part(channels) for bank in (train_bank, eval_bank)]
        predicted = [predict(bank.first, bank.transform[ROTATION]) for bank in banks]
        found += _retrieval("posthoc", banks, predicted, [bank.second for bank in banks])
        predictions += [dataclasses.replace(prediction, part=part) for prediction in found]
    if predictor is not None and ROTATION in predictor.factors:
        banks, predicted = [train_bank, eval_bank], []
        with frozen(predictor):
            for bank in banks:
                absent = torch.zeros(len(bank.ids), 1)  # augmentation parameters, which these views do not have
                known = [bank.transform.get(name, absent.expand(-1, k)) for name, k in predictor.factors.items()]
                predicted.append(predictor.predict(predictor.embed(bank.first), torch.cat(known, dim=1)))
            predictions += _retrieval("own", banks, predicted, [predictor.embed(bank.second) for bank in banks])
    return [dataclasses.replace(prediction, protocol=PROTOCOL) for prediction in predictions]


def _encode(
    encoder: nn.Module, dataset: Dataset, split: Split, count: int, must_vary: bool = True
) -> tuple[Pairs, Pairs]:
    """Return a split's pairs and its bank of views.

    The pairs' targets are `rotation` (N, 4), the relative quaternion, and `colour` (N, 2), the differences of hues; the
    bank's target is the views' `quaternion` (N, 4).
    """
    if not dataset.paired:
        raise ValueError(f"the protocol of 3DIEBench needs pairs of views of one object; {dataset.name} has none")
    between = relative_factors(split, *fixed_pairs(split, subset(split, count)))
    known = [name for name, value in between.items() if varying(value).any() or not must_vary]
    if missing := [name for name in (ROTATION, *HUES) if name not in known]:
        raise ValueError(f"the protocol of 3DIEBench needs factors that {dataset.name} lacks: {', '.join(missing)}")
    targets = {ROTATION: between[ROTATION], "colour": torch.cat([between[hue] for hue in HUES], dim=1)}
    pairs = encode_pairs(encoder, dataset, split, count, ())
    views = object_views(split)
    from_first = relative_factors(split, views[:, :1].expand_as(views).flatten(), views.flatten())
    quaternion = {"quaternion": split.factors["quaternion"][views.flatten()]}
    return (
        dataclasses.replace(pairs, targets=targets, transform=targets, per_view=False),
        dataclasses.replace(encode_bank(encoder, dataset, split, ()), targets=quaternion, transform=from_first),
    )


def _retrieval(
    by: str, banks: Sequence[Pairs], all_predicted: Sequence[Tensor], all_views: Sequence[Tensor]
) -> list[Prediction]:
    """Return the ranks of eval views within their objects, and the poses found for predictions in three searches.

    Args:
        by: posthoc or own.
        banks: views of train and of eval objects.
        all_predicted, all_views: for each bank the predicted and the true embeddings of its second views, (N, E).
    """
    (train, eval_pairs), (predicted_train, predicted), (train_views, views) = banks, all_predicted, all_views
    train_pose, pose = train.targets["quaternion"], eval_pairs.targets["quaternion"]
    both, both_pose = torch.cat([train_views, views]), torch.cat([train_pose, pose])
    found = {
        "train_train": (train.ids, train_pose, found_pose(predicted_train, train_views, train_pose)),
        "held_held": (eval_pairs.ids, pose, found_pose(predicted, views, pose)),
        "held_all": (eval_pairs.ids, pose, found_pose(predicted, both, both_pose)),
    }
    ids = eval_pairs.ids.unique_consecutive()
    shape = len(ids), len(views) // len(ids), -1  # objects, views, dimensions
    rank = ranks(predicted.view(shape), views.view(shape)).float()
    return [
        Prediction(f"{by}_rank", ALL, ids, torch.ones_like(rank), rank),
        *(Prediction(f"{by}_pre_{search}", ALL, *columns) for search, columns in found.items()),
    ]


def ranks(predicted: Tensor, views: Tensor) -> Tensor:
    """Return the rank of each view by its similarity to its prediction, among all T views of its own object.

    Args:
        predicted, views: (M, T, E), predictions of the views, and the views, the first of an object among them.

    Returns:
        int64 (M, T), 1 to T; identical views are ranked in their order.
    """
    similarity = F.normalize(predicted.double(), dim=-1) @ F.normalize(views.double(), dim=-1).mT
    # Similarities that float32, the features' type, cannot separate are a tie.
    order = similarity.float().argsort(dim=-1, descending=True, stable=True)
    return (order == torch.arange(views.shape[1])[:, None]).double().argmax(-1) + 1


def found_pose(predicted: Tensor, stored: Tensor, stored_pose: Tensor) -> Tensor:
    """Return the pose (n, 4) of the stored embedding that is most similar to each prediction.

    Args:
        predicted, stored: (n, E) and (m, E).
        stored_pose: (m, 4), unit quaternions.
    """
    stored = F.normalize(stored.float(), dim=1)
    # The length of a prediction is the same for all stored embeddings, so it needs no normalisation.
    return stored_pose[torch.cat([(block @ stored.T).argmax(1) for block in predicted.float().split(BLOCK)])]
