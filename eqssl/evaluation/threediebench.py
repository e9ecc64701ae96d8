"""The protocol of 3DIEBench (Garrido et al., arXiv 2302.10283) for pairs of views of one object.

Heads and figures are those of the reference code; their fitting is this package's: features of the frozen encoder,
taken once in inference mode, and pairs from a stored seed, where the reference code keeps the encoder in training mode
and draws pairs anew. Retrieval needs a predictor of z2 from z1 and the relative quaternion. Most methods have none, so
that one is fitted after the fact, the same for all: the ridge from [z1, theta, z1 x theta] of
`eqssl.evaluation.equivariance`; its figures say so: `posthoc_`. SIE and EquiMod are trained with a predictor of
projected embeddings, and have its figures, those that are published, beside them: `own_`.
"""

import dataclasses
from collections.abc import Collection

import torch
from torch import Tensor, nn

from eqssl.config import EvaluateConfig
from eqssl.data.dataset import Dataset, Split
from eqssl.data.pairs import HUES, relative_factors
from eqssl.evaluation.bank import ViewBank, encode_bank, object_views
from eqssl.evaluation.equivariance import fit_equivariance
from eqssl.evaluation.features import frozen, parts
from eqssl.evaluation.linear import linear_predict
from eqssl.evaluation.mlp import mlp_predict
from eqssl.evaluation.pairs import Pairs, encode_pairs, fixed_pairs, subset
from eqssl.evaluation.predictions import ALL, Prediction, class_prediction, figures_of, predictions_of
from eqssl.evaluation.r2 import ROTATION, varying
from eqssl.evaluation.retrieval import found_pose, ranks
from eqssl.evaluation.ridge import fit, moments
from eqssl.methods.base import Predictive

PROTOCOL = "3die"
HIDDEN = 1024  # units of the reference code's three-layer head


@dataclasses.dataclass(frozen=True)
class _Views:
    """What is taken of a split.

    Args:
        pairs: of targets `rotation` (N, 4), the relative quaternion, and `colour` (N, 2), the differences of hues.
        bank: T views of each of M objects.
        pose: float32 (M x T, 4), the unit quaternions of these.
        between: factor -> (M, T, k), all that is known between the first view of an object and each of its views.
    """

    pairs: Pairs
    bank: ViewBank
    pose: Tensor
    between: dict[str, Tensor]

    def part(self, channels: slice) -> "_Views":
        return dataclasses.replace(self, pairs=self.pairs.part(channels), bank=self.bank.part(channels))


@dataclasses.dataclass(frozen=True)
class _Search:
    """What is looked for among what.

    Args:
        predicted: (M, T, E), what each view is predicted to be from the first.
        views: (M, T, E), what they are.
        pose: float32 (M x T, 4).
        ids: int64 (M,), of the first views.
    """

    predicted: Tensor
    views: Tensor
    pose: Tensor
    ids: Tensor


def threediebench_figures(
    encoder: nn.Module,
    dataset: Dataset,
    config: EvaluateConfig,
    predictions: list[Prediction] | None = None,
    predictor: Predictive | None = None,
) -> dict[str, float]:
    """Return the figures of a frozen encoder: fitted on training images, scored on the held-out split.

    Args:
        encoder, dataset, config, predictions: as `eqssl.evaluation.protocol.evaluate` takes them.
        predictor: the method that the encoder was trained with, where it predicts embeddings, on the CPU.

    Returns:
        Figure -> value, `3die/<figure>` of all features, `inv/3die/<figure>` and `equi/3die/<figure>` of the parts:
        `top1`, a ridge classifier on one view; of the relative quaternion and the hues' differences, by a ridge on
        both views, `linear_r2/rotation` and `linear_r2/colour` (mean over components), SIE's own definition
        `linear_r2_pooled` and `linear_r2_pooled/colour`, and `linear_geodesic_deg`; the same with `mlp_`, of two hidden
        layers of 1024, and `constant_`, the training pairs' mean, the floor; `posthoc_mrr` and `posthoc_h1`, `_h2`,
        `_h5`, `_h10`, `_views` (`rank_figures`) of held-out objects; PRE (`pose_error`) of training views among these,
        `posthoc_pre_train_train`, and of held-out views, `posthoc_pre_held_held` and `posthoc_pre_held_all`. Retrieval
        is among T views of up to 256 objects a split (`object_views`). With a predictor that is told the rotation the
        same figures of it, `own_`, which has all features.

    Raises:
        ValueError: for data without pairs of one object, or whose pose or hues are not known or never change.
    """
    with frozen(encoder):
        train = _encode(encoder, dataset, dataset.train, config.train_images)
        held = _encode(encoder, dataset, getattr(dataset, config.split), config.images, (ROTATION, *HUES))
    said = _said("constant", held.pairs, train.pairs.target.mean(0).expand_as(held.pairs.target))
    for part, channels in parts(encoder, train.pairs.first.shape[1]).items():
        seen, asked = train.part(channels), held.part(channels)
        of_part = _probes(seen.pairs, asked.pairs) + _retrieval("posthoc", *_by_ridge(seen, asked))
        said += [dataclasses.replace(prediction, part=part) for prediction in of_part]
    if predictor is not None and ROTATION in predictor.factors:
        with frozen(predictor):
            said += _retrieval("own", *(_by(predictor, views) for views in (train, held)))
    if predictions is not None:
        predictions += said
    return figures_of(said)


def _encode(
    encoder: nn.Module, dataset: Dataset, split: Split, count: int, factors: Collection[str] | None = None
) -> _Views:
    if not dataset.paired:
        raise ValueError(f"the protocol of 3DIEBench needs pairs of views of one object; {dataset.name} has none")
    indices = subset(split, count)
    between = relative_factors(split, *fixed_pairs(split, indices))
    known = [name for name, value in between.items() if factors is not None or varying(value).any()]
    if missing := {ROTATION, *HUES} - set(known):
        raise ValueError(f"the protocol of 3DIEBench needs factors that {dataset.name} lacks: {', '.join(missing)}")
    pairs = encode_pairs(encoder, dataset, split, indices, ())
    targets = {ROTATION: between[ROTATION], "colour": torch.cat([between[hue] for hue in HUES], dim=1)}
    pairs = dataclasses.replace(pairs, targets=targets, transform=None, per_view=False)
    views = object_views(split)
    pose, from_first = split.factors["quaternion"][views.flatten()], relative_factors(split, views[:, :1], views)
    bank = dataclasses.replace(encode_bank(encoder, dataset, split, ()), theta=from_first[ROTATION])
    return _Views(pairs, bank, pose, from_first)


def _probes(train: Pairs, held: Pairs) -> list[Prediction]:
    said = []
    if train.labels is not None:
        classes = linear_predict(train.first, train.labels, held.first)
        said += class_prediction("top1", held.ids, held.labels, classes, PROTOCOL)
    mlps = [mlp_predict(train.inputs, target, held.inputs, HIDDEN, train.objects) for target in train.targets.values()]
    ridge = fit(moments(train.inputs, train.target))
    return said + _said("linear", held, ridge.predict(held.inputs)) + _said("mlp", held, torch.cat(mlps, dim=1))


def _said(head: str, held: Pairs, predicted: Tensor) -> list[Prediction]:
    return predictions_of(f"{head}_r2", held.ids, held.targets, predicted, PROTOCOL)


def _by_ridge(train: _Views, held: _Views) -> list[_Search]:
    predictor = fit_equivariance(train.pairs.first, train.pairs.targets[ROTATION], train.pairs.second)
    return [
        _Search(views.bank.predicted(predictor), views.bank.views, views.pose, views.bank.ids)
        for views in (train, held)
    ]


def _by(predictor: Predictive, asked: _Views) -> _Search:
    objects, views, _ = asked.bank.views.shape
    nothing = torch.zeros(objects, views, 1)  # of an augmentation, which these views do not have
    theta = torch.cat([asked.between.get(n, nothing.expand(-1, -1, k)) for n, k in predictor.factors.items()], dim=-1)
    embedded = predictor.embed(asked.bank.views.flatten(0, 1)).unflatten(0, (objects, views))
    predicted = predictor.predict(embedded[:, 0].repeat_interleave(views, 0), theta.flatten(0, 1))
    return _Search(predicted.unflatten(0, (objects, views)), embedded, asked.pose, asked.bank.ids)


def _retrieval(by: str, train: _Search, held: _Search) -> list[Prediction]:
    rank = ranks(held.predicted, held.views).float()
    said = [Prediction(f"{by}_rank", ALL, held.ids, torch.ones_like(rank), rank, PROTOCOL)]
    searches = {"train_train": (train, [train]), "held_held": (held, [held]), "held_all": (held, [train, held])}
    for where, (asked, among) in searches.items():
        stored, pose = torch.cat([s.views.flatten(0, 1) for s in among]), torch.cat([s.pose for s in among])
        found = found_pose(asked.predicted.flatten(0, 1), stored, pose)
        ids = asked.ids.repeat_interleave(asked.views.shape[1])
        said.append(Prediction(f"{by}_pre_{where}", ALL, ids, asked.pose, found, PROTOCOL))
    return said
