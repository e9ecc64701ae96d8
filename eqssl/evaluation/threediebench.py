"""The protocol of 3DIEBench (Garrido et al., arXiv 2302.10283) for pairs of views of one object.

Heads and figures are those of the reference code; their fitting is this package's: features of the frozen encoder,
taken once in inference mode, and pairs from a stored seed, where the reference code keeps the encoder in training mode
and draws pairs anew. Retrieval needs a predictor of z2 from z1 and the relative quaternion. An encoder alone has none,
so that one is fitted after the fact, the ridge from [z1, theta, z1 x theta] of `eqssl.evaluation.equivariance`; its
figures say so: `posthoc_`. SIE and EquiMod are trained with a predictor of their own, of projected embeddings. It goes
with the heads when the encoder is exported, and they too are judged by the ridge: all methods by the same predictor of
the representation, none by the one whose MRR, H@k and PRE are published.
"""

import dataclasses
from collections.abc import Collection

import torch
from torch import Tensor, nn

from eqssl.config import EvaluateConfig
from eqssl.data.dataset import Dataset, Split
from eqssl.data.pairs import HUES
from eqssl.evaluation.bank import Bank, encode_bank, object_views
from eqssl.evaluation.equivariance import fit_motion
from eqssl.evaluation.features import frozen, parts
from eqssl.evaluation.linear import linear_predict
from eqssl.evaluation.mlp import mlp_predict
from eqssl.evaluation.pairs import Pairs, encode_pairs, subset
from eqssl.evaluation.predictions import Prediction, class_prediction, figures_of, predictions_of, prefix
from eqssl.evaluation.r2 import ROTATION
from eqssl.evaluation.retrieval import pose_error, rank_figures
from eqssl.evaluation.ridge import fit, moments

PROTOCOL = "3die"
HIDDEN = 1024  # units of the reference code's three-layer head


@dataclasses.dataclass(frozen=True)
class _Views:
    """What is taken of a split.

    Args:
        pairs: of targets `rotation` (N, 4), the relative quaternion, and `colour` (N, 2), the differences of hues.
        bank: T views of each of M objects.
        pose: float32 (M x T, 4), the unit quaternions of these.
    """

    pairs: Pairs
    bank: Bank
    pose: Tensor

    def part(self, channels: slice) -> "_Views":
        return _Views(self.pairs.part(channels), self.bank.part(channels), self.pose)


def threediebench_figures(
    encoder: nn.Module, dataset: Dataset, config: EvaluateConfig, predictions: list[Prediction] | None = None
) -> dict[str, float]:
    """Return the figures of a frozen encoder: fitted on training images, scored on the held-out split.

    Args:
        encoder, dataset, config, predictions: as `eqssl.evaluation.protocol.evaluate` takes them.

    Returns:
        Figure -> value, `3die/<figure>` of all features, `inv/3die/<figure>` and `equi/3die/<figure>` of the parts:
        `top1`, logistic regression on one view; of the relative quaternion and the hues' differences, by a ridge on
        both views, `linear_r2/rotation` and `linear_r2/colour` (mean over components), SIE's own definition
        `linear_r2_pooled` and `linear_r2_pooled/colour`, and `linear_geodesic_deg`; the same with `mlp_`, of two hidden
        layers of 1024, and `constant_`, the training pairs' mean, the floor; `posthoc_mrr` and `posthoc_h1`, `_h2`,
        `_h5`, `_h10` (`rank_figures`) of held-out objects; PRE (`pose_error`) of training views among training views,
        `posthoc_pre_train_train`, and of held-out views, `posthoc_pre_held_held` and `posthoc_pre_held_all`. Retrieval
        is among all views of up to 256 objects a split.

    Raises:
        ValueError: for data without pairs of one object, or whose pose or hues are not known or never change.
    """
    with frozen(encoder):
        train = _encode(encoder, dataset, dataset.train, config.train_images)
        held = _encode(encoder, dataset, getattr(dataset, config.split), config.images, (ROTATION, *HUES))
    said = _said("constant", held.pairs, train.pairs.theta.mean(0).expand_as(held.pairs.theta))
    figures = {}
    for part, channels in parts(encoder, train.pairs.first.shape[1]).items():
        seen, asked = train.part(channels), held.part(channels)
        said += [dataclasses.replace(prediction, part=part) for prediction in _probes(seen.pairs, asked.pairs)]
        found = _retrieval(seen, asked).items()
        figures |= {f"{prefix(PROTOCOL, part)}posthoc_{name}": value for name, value in found}
    if predictions is not None:
        predictions += said
    return figures_of(said) | figures


def _encode(
    encoder: nn.Module, dataset: Dataset, split: Split, count: int, factors: Collection[str] | None = None
) -> _Views:
    if not dataset.paired:
        raise ValueError(f"the protocol of 3DIEBench needs pairs of views of one object; {dataset.name} has none")
    pairs = encode_pairs(encoder, dataset, split, subset(split, count), factors)
    if missing := {ROTATION, *HUES} - pairs.targets.keys():
        raise ValueError(f"the protocol of 3DIEBench needs factors that {dataset.name} lacks: {', '.join(missing)}")
    colour = torch.cat([pairs.targets[hue] for hue in HUES], dim=1)
    pairs = dataclasses.replace(pairs, targets={ROTATION: pairs.targets[ROTATION], "colour": colour})
    pose = split.factors["quaternion"][object_views(split).flatten()]
    return _Views(pairs, encode_bank(encoder, dataset, split, [ROTATION]), pose)


def _probes(train: Pairs, held: Pairs) -> list[Prediction]:
    said = []
    if train.labels is not None:
        classes = linear_predict(train.first, train.labels, held.first, train.objects)
        said += class_prediction("top1", held.ids, held.labels, classes, PROTOCOL)
    mlps = [mlp_predict(train.joint, target, held.joint, HIDDEN, train.objects) for target in train.targets.values()]
    ridge = fit(moments(train.joint, train.theta))
    return said + _said("linear", held, ridge.predict(held.joint)) + _said("mlp", held, torch.cat(mlps, dim=1))


def _said(head: str, held: Pairs, predicted: Tensor) -> list[Prediction]:
    return predictions_of(f"{head}_r2", held.ids, held.targets, predicted, PROTOCOL)


def _retrieval(train: _Views, held: _Views) -> dict[str, float]:
    motion = fit_motion(train.pairs.first, train.pairs.targets[ROTATION], train.pairs.second)
    figures = rank_figures(held.bank.predicted(motion), held.bank.views)
    searches = {"train_train": (train, [train]), "held_held": (held, [held]), "held_all": (held, [train, held])}
    for name, (asked, stored) in searches.items():
        figures[f"pre_{name}"] = pose_error(
            asked.bank.predicted(motion).flatten(0, 1),
            asked.pose,
            torch.cat([views.bank.views.flatten(0, 1) for views in stored]),
            torch.cat([views.pose for views in stored]),
        )
    return figures
