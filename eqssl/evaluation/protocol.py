"""The protocol: an encoder and a dataset in, flat figures out.

Figures without a prefix are of all features; `inv/` and `equi/` of the two parts, where an encoder has them.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from eqssl.config import EvaluateConfig
from eqssl.data.dataset import Dataset
from eqssl.evaluation.bank import Bank, encode_bank
from eqssl.evaluation.collapse import collapse_figures
from eqssl.evaluation.equivariance import explain_motion
from eqssl.evaluation.extrapolation import extrapolate
from eqssl.evaluation.features import frozen, parts
from eqssl.evaluation.knn import knn_predict
from eqssl.evaluation.linear import linear_predict
from eqssl.evaluation.mlp import mlp_predict
from eqssl.evaluation.pairs import Pairs, encode_binary_pairs, encode_pairs, subset
from eqssl.evaluation.predictions import Prediction, class_prediction, figures_of, predictions_of, prefix
from eqssl.evaluation.ridge import Moments, fit, moments

BINARY_SHARE = 4  # one pair in four is seen again with binary factors


@dataclass(frozen=True)
class Views:
    """All features that the figures are made of, for one part.

    Args:
        train, held: the pairs that probes are fitted and scored on.
        binary: train and held-out pairs with binary factors; None for pairs of one object, where they are no change.
        bank: many views of held-out images; None at level quick.
    """

    train: Pairs
    held: Pairs
    binary: tuple[Pairs, Pairs] | None
    bank: Bank | None

    def part(self, channels: slice) -> "Views":
        """Return the same with some of the features."""
        binary = self.binary and tuple(pairs.part(channels) for pairs in self.binary)
        bank = self.bank and self.bank.part(channels)
        return Views(self.train.part(channels), self.held.part(channels), binary, bank)


def evaluate(
    encoder: nn.Module,
    dataset: Dataset,
    *,
    config: EvaluateConfig | None = None,
    device: torch.device | None = None,
    predictions: list[Prediction] | None = None,
) -> dict[str, float]:
    """Return the figures of a frozen encoder: fitted on training images, scored on the held-out split.

    Args:
        encoder: images float32 (B, C, H, W) in [0, 1] -> features (B, D); with `dim_inv` below D, its first `dim_inv`
            features are the invariant part. Its modes are left as they were.
        dataset: whose train split and `config.split` are used.
        config: level, split, numbers of images; default: `EvaluateConfig()`.
        device: where the encoder is moved to; default: where it lies.
        predictions: takes what the probes say of every held-out example; default: it is not kept.

    Returns:
        Figure -> value. Quick: `knn`, `r2/<factor>`, `r2_mean`, `r2_pooled`, `geodesic_deg`, `auroc/<factor>`, `std`,
        `std_min`, `spread`, `rank`. Full adds `linear`; the R2 of an MLP, `mlp_r2/<factor>`, and of `extrapolate`,
        `extrapolation_r2/<factor>`, each with `_mean` and `geodesic_deg`; `invariance`, `equivariance`,
        `equivariance/<factor>`, `hit1`. What a dataset cannot give (accuracy without labels, colour of grey images) is
        absent.
    """
    config = config or EvaluateConfig()
    if device is not None:
        encoder.to(device)
    with frozen(encoder):
        views = _encode(encoder, dataset, config)
    dim = views.held.first.shape[1]
    shared = moments(views.train.joint, views.train.theta) if views.train.targets else None
    figures, kept = {}, [] if predictions is None else predictions
    for name, channels in parts(encoder, dim).items():
        columns = torch.arange(2 * dim).view(2, dim)[:, channels].flatten()
        part = views.part(channels)
        said = _quick_probes(part, shared and shared.select(columns))
        found = collapse_figures(part.held.first)
        if config.level == "full":
            said += _full_probes(part) + _geometry(part)
        said = [dataclasses.replace(prediction, part=name) for prediction in said]
        figures |= figures_of(said) | {prefix(part=name) + figure: value for figure, value in found.items()}
        kept += said
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
        bank = encode_bank(encoder, dataset, split, list(pairs[0].targets))
    return Views(*pairs, tuple(binary) if len(binary) == 2 else None, bank)


def _quick_probes(views: Views, shared: Moments | None) -> list[Prediction]:
    train, held = views.train, views.held
    said = []
    if train.labels is not None:
        said += class_prediction("knn", held.ids, held.labels, knn_predict(train.first, train.labels, held.first))
    if shared:
        said += predictions_of("r2", held.ids, held.targets, fit(shared).predict(held.joint))
    if views.binary:
        seen, asked = views.binary
        scores = fit(moments(seen.joint, seen.theta)).predict(asked.joint)
        said += predictions_of("auroc", asked.ids, asked.targets, scores)
    return said


def _full_probes(views: Views) -> list[Prediction]:
    train, held = views.train, views.held
    said = []
    if train.labels is not None:
        classes = linear_predict(train.first, train.labels, held.first, train.objects)
        said += class_prediction("linear", held.ids, held.labels, classes)
    if train.targets:
        predicted = mlp_predict(train.joint, train.theta, held.joint, objects=train.objects)
        said += predictions_of("mlp_r2", held.ids, held.targets, predicted) + extrapolate(train, held)
    return said


def _geometry(views: Views) -> list[Prediction]:
    if not views.bank:
        return []
    said, motion = explain_motion(views.train, views.held)
    return said + views.bank.said(motion)
