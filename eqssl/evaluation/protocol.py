"""The protocol: an encoder and a dataset in, flat metrics out.

Metrics without a prefix are of all features; `inv/` and `equi/` of the two parts, where an encoder has them.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqssl.config import EvaluateConfig
from eqssl.data.dataset import Dataset
from eqssl.data.rotation import nearest_rotation
from eqssl.evaluation.bank import ViewBank, encode_bank
from eqssl.evaluation.collapse import collapse_figures
from eqssl.evaluation.equivariance import explain_equivariance
from eqssl.evaluation.extrapolation import extrapolate
from eqssl.evaluation.features import frozen, parts
from eqssl.evaluation.knn import knn_predict
from eqssl.evaluation.linear import classify, one_hot
from eqssl.evaluation.mlp import mlp_predict
from eqssl.evaluation.pairs import Pairs, encode_binary_pairs, encode_pairs, subset
from eqssl.evaluation.predictions import ALL, Prediction, class_prediction, figures_of, predictions_of, prefix
from eqssl.evaluation.r2 import MIN_EXAMPLES
from eqssl.evaluation.ridge import Moments, Ridge, fit, moments

BINARY_SHARE = 4  # one pair in four is seen again with binary factors


@dataclass(frozen=True)
class Views:
    """All features that the metrics are made of, for one part.

    Args:
        train, held: the pairs that probes are fitted and scored on.
        binary: train and held-out pairs with binary factors; None for pairs of one object, where they are no change.
        bank: many views of held-out images; None at level quick.
    """

    train: Pairs
    held: Pairs
    binary: tuple[Pairs, Pairs] | None
    bank: ViewBank | None

    def part(self, channels: slice) -> "Views":
        """Return the same with some of the features."""
        binary = self.binary and tuple(pairs.part(channels) for pairs in self.binary)
        bank = self.bank and self.bank.part(channels)
        return Views(self.train.part(channels), self.held.part(channels), binary, bank)


@dataclass(frozen=True)
class _Shared:
    """Moments of the training pairs, of which every part of the features takes its own.

    Args:
        data: inputs are z1, or [z1, z2] where the targets are those of a transform; outputs the targets and one-hot
            labels.
        dim: D, of all features.
        factors: number of outputs that are targets.
        views: 1 or 2, of the inputs.
    """

    data: Moments
    dim: int
    factors: int
    views: int

    def of_targets(self, channels: slice) -> Moments:
        """Return the moments of one part of the inputs and the targets."""
        columns = torch.arange(self.views * self.dim).view(self.views, self.dim)[:, channels].flatten()
        return self.data.select(columns, slice(self.factors))

    def of_labels(self, channels: slice) -> Moments:
        """Return the moments of one part of z1 and the labels."""
        return self.data.select(torch.arange(self.dim)[channels], slice(self.factors, None))


def evaluate(
    encoder: nn.Module,
    dataset: Dataset,
    *,
    config: EvaluateConfig | None = None,
    device: torch.device | None = None,
    predictions: list[Prediction] | None = None,
) -> dict[str, float]:
    """Return the metrics of a frozen encoder: fitted on training images, scored on the held-out split.

    Args:
        encoder: images float32 (B, C, H, W) in [0, 1] -> features (B, D); with `dim_inv` below D, its first `dim_inv`
            features are the invariant part. Its modes are left as they were.
        dataset: whose train split and `config.split` are used.
        config: level, split, numbers of images; default: `EvaluateConfig()`.
        device: where the encoder is moved to; default: where it lies.
        predictions: a list that the probes' predictions are added to; default: they are not kept.

    Returns:
        Metric -> value. Quick: `knn`, `linear`, `r2/<factor>`, `r2_mean`, `pose_deg` (pairs of one object) or
        `geodesic_deg` (of the angle in the plane), `auroc/<factor>`, `std`, `std_min`, `spread`, `rank`. Full adds the
        R2 of an MLP, `mlp_r2/<factor>` and `mlp_r2_mean`; of `extrapolate`, `extrapolation_r2/<factor>`;
        `invariance`, `equivariance`, `equivariance/<factor>`, `equivariance_raw`, `hit1`. What a dataset cannot give
        (accuracy without labels, colour of grey images) is absent, and so is an R2, a share of variance or a measure of
        collapse of fewer than 3 held-out images.

    Raises:
        ValueError: for training images of one class.
    """
    config = config or EvaluateConfig()
    if device is not None:
        encoder.to(device)
    with frozen(encoder):
        views = _encode(encoder, dataset, config)
    dim = views.held.first.shape[1]
    shared = _share(views.train)
    figures, kept = {}, [] if predictions is None else predictions
    for name, channels in parts(encoder, dim).items():
        part = views.part(channels)
        found = _classes(part, shared, channels) + _factors(part, shared, channels)
        if config.level == "full":
            found += _mlp(part) + extrapolate(part.train, part.held) + _geometry(part)
        found = [dataclasses.replace(prediction, part=name) for prediction in found]
        collapse = collapse_figures(part.held.first) if len(part.held.first) >= MIN_EXAMPLES else {}
        figures |= figures_of(found) | {prefix(part=name) + figure: value for figure, value in collapse.items()}
        kept += found
    return figures


def _encode(encoder: nn.Module, dataset: Dataset, config: EvaluateConfig) -> Views:
    pairs, binary = [], []
    for split, count in ((dataset.train, config.train_images), (getattr(dataset, config.split), config.images)):
        indices = subset(split, count)
        # A factor that varies among training pairs alone is theirs to fit, so held-out pairs have its column too.
        pairs.append(encode_pairs(encoder, dataset, split, indices, pairs[0].targets if pairs else None))
        if not dataset.paired and (few := len(indices) // BINARY_SHARE):
            clean = pairs[-1].first[:few]
            binary.append(encode_binary_pairs(encoder, dataset, split, indices[:few], clean))
    bank = None
    if config.level == "full" and pairs[0].targets:
        bank = encode_bank(encoder, dataset, split, list(pairs[0].between))
    return Views(*pairs, tuple(binary) if len(binary) == 2 else None, bank)


def _share(train: Pairs) -> _Shared:
    outputs = [*train.targets.values(), *([] if train.labels is None else [one_hot(train.labels)])]
    outputs = torch.cat([torch.empty(len(train.first), 0), *outputs], dim=1)
    factors = sum(target.shape[1] for target in train.targets.values())
    inputs, dim = train.inputs if train.targets else train.first, train.first.shape[1]
    return _Shared(moments(inputs, outputs), dim, factors, inputs.shape[1] // dim)


def _classes(views: Views, shared: _Shared, channels: slice) -> list[Prediction]:
    train, held = views.train, views.held
    if train.labels is None:
        return []
    nearest = knn_predict(train.first, train.labels, held.first)
    linear = classify(shared.of_labels(channels), train.labels, held.first)
    return [
        *class_prediction("knn", held.ids, held.labels, nearest),
        *class_prediction("linear", held.ids, held.labels, linear),
    ]


def _factors(views: Views, shared: _Shared, channels: slice) -> list[Prediction]:
    held, found = views.held, []
    if held.targets:
        ridge = fit(shared.of_targets(channels))
        found += predictions_of("r2", held.ids, held.targets, ridge.predict(held.inputs))
        if "pose" in held.targets and held.per_view:
            found.append(_relative_pose(held, ridge))
    if views.binary:
        seen, binary = views.binary
        scores = fit(moments(seen.inputs, seen.target)).predict(binary.inputs)
        found += predictions_of("auroc", binary.ids, binary.targets, scores)
    return found


def _relative_pose(held: Pairs, ridge: Ridge) -> Prediction:
    """Return the rotation between two views, composed of the poses that are predicted of each."""
    sizes = [target.shape[1] for target in held.targets.values()]

    def pose(features: Tensor) -> Tensor:
        columns = dict(zip(held.targets, ridge.predict(features).split(sizes, dim=1), strict=True))
        return nearest_rotation(columns["pose"].unflatten(1, (3, 3)))

    between = (pose(held.first).mT @ pose(held.second)).flatten(1)
    return Prediction("pose_deg", ALL, held.ids, held.between["pose"].float(), between.float())


def _mlp(views: Views) -> list[Prediction]:
    train, held = views.train, views.held
    if not train.targets:
        return []
    inputs, held_inputs = train.inputs, held.inputs
    predicted = [mlp_predict(inputs, target, held_inputs, objects=train.objects) for target in train.targets.values()]
    return predictions_of("mlp_r2", held.ids, held.targets, torch.cat(predicted, dim=1))


def _geometry(views: Views) -> list[Prediction]:
    if not views.bank:
        return []
    predictions, predictor, whiten = explain_equivariance(views.train, views.held)
    return predictions + views.bank.predictions(predictor, whiten)
