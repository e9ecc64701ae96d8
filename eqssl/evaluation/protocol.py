"""The protocol: an encoder and a dataset in, flat figures out.

Figures without a prefix are of all features; `inv/` and `equi/` of the two parts, where an encoder has them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqssl.config import EvaluateConfig
from eqssl.data.dataset import Dataset
from eqssl.evaluation.bank import Bank, encode_bank
from eqssl.evaluation.collapse import collapse_figures
from eqssl.evaluation.equivariance import equivariance_figures
from eqssl.evaluation.features import frozen
from eqssl.evaluation.knn import knn_accuracy
from eqssl.evaluation.linear import linear_accuracy
from eqssl.evaluation.mlp import mlp_predict
from eqssl.evaluation.pairs import Pairs, encode_binary_pairs, encode_pairs, subset
from eqssl.evaluation.r2 import auroc, factor_figures
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
    encoder: nn.Module, dataset: Dataset, *, config: EvaluateConfig | None = None, device: torch.device | None = None
) -> dict[str, float]:
    """Return the figures of a frozen encoder: fitted on training images, scored on the held-out split.

    Args:
        encoder: images float32 (B, C, H, W) in [0, 1] -> features (B, D); with `dim_inv` below D, its first `dim_inv`
            features are the invariant part. Its modes are left as they were.
        dataset: whose train split and `config.split` are used.
        config: level, split, numbers of images; default: `EvaluateConfig()`.
        device: where the encoder is moved to; default: where it lies.

    Returns:
        Figure -> value. Quick: `knn`, `r2/<factor>`, `r2_mean`, `r2_pooled`, `geodesic_deg`, `auroc/<factor>`, `std`,
        `std_min`, `rank`. Full adds `linear`, `mlp_r2/<factor>`, `mlp_r2_mean`, `invariance`, `equivariance`,
        `equivariance/<factor>`, `hit1`. What a dataset cannot give (accuracy without labels, colour of grey images) is
        absent.
    """
    config = config or EvaluateConfig()
    if device is not None:
        encoder.to(device)
    with frozen(encoder):
        views = _encode(encoder, dataset, config)
    dim = views.held.first.shape[1]
    dim_inv = getattr(encoder, "dim_inv", dim)
    parts = {"": slice(dim)}
    if dim_inv < dim:
        parts |= {"inv/": slice(dim_inv), "equi/": slice(dim_inv, dim)}
    shared = moments(views.train.joint, views.train.theta) if views.train.targets else None
    figures = {}
    for prefix, channels in parts.items():
        columns = torch.arange(2 * dim).view(2, dim)[:, channels].flatten()
        part = views.part(channels)
        found = _quick(part, shared and shared.select(columns))
        if config.level == "full":
            found |= _full(part)
        figures |= {prefix + name: value for name, value in found.items()}
    return figures


def _encode(encoder: nn.Module, dataset: Dataset, config: EvaluateConfig) -> Views:
    pairs, binary = [], []
    for split, count in ((dataset.train, config.train_images), (getattr(dataset, config.split), config.images)):
        indices = subset(split, count)
        pairs.append(encode_pairs(encoder, dataset, split, indices))
        if not dataset.paired:
            few = len(indices) // BINARY_SHARE
            clean = pairs[-1].first[:few]
            binary.append(encode_binary_pairs(encoder, dataset, split, indices[:few], clean))
    bank = None
    if config.level == "full" and pairs[0].targets:
        bank = encode_bank(encoder, dataset, split, list(pairs[0].targets))
    return Views(*pairs, tuple(binary) or None, bank)


def _quick(views: Views, shared: Moments | None) -> dict[str, float]:
    train, held = views.train, views.held
    figures = {}
    if train.labels is not None:
        figures["knn"] = knn_accuracy(train.first, train.labels, held.first, held.labels)
    if shared:
        figures |= factor_figures(held.targets, _by_factor(fit(shared).predict(held.joint), held.targets))
    if views.binary:
        seen, asked = views.binary
        scores = fit(moments(seen.joint, seen.theta)).predict(asked.joint)
        for name, score in _by_factor(scores, asked.targets).items():
            figures[f"auroc/{name}"] = auroc(asked.targets[name][:, 0], score[:, 0])
    return figures | collapse_figures(held.first)


def _full(views: Views) -> dict[str, float]:
    train, held, bank = views.train, views.held, views.bank
    figures = {}
    if train.labels is not None:
        figures["linear"] = linear_accuracy(train.first, train.labels, held.first, held.labels)
    if bank:
        predicted = _by_factor(mlp_predict(train.joint, train.theta, held.joint), held.targets)
        read = factor_figures(held.targets, predicted)
        figures |= {f"mlp_{name}": value for name, value in read.items() if name.startswith("r2")}
        moved, motion = equivariance_figures(train, held)
        figures |= moved | {"hit1": bank.hit1(motion), "invariance": bank.invariance()}
    return figures


def _by_factor(columns: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut (N, sum of k) into factor -> (N, k)."""
    return dict(zip(targets, columns.split([value.shape[1] for value in targets.values()], dim=1), strict=True))
