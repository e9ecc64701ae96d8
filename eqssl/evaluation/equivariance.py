"""Whether features move predictably with the transform: z2 from z1 and the transform's parameters theta.

N pairs, D features, k components of theta, m outputs.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eqssl.evaluation.pairs import Pairs
from eqssl.evaluation.predictions import ALL, Prediction
from eqssl.evaluation.r2 import varying
from eqssl.evaluation.ridge import BLOCK, Ridge, fit, moments
from eqssl.evaluation.transforms import SEED
from eqssl.random import permutation

COMPONENTS = 64
SHARE = 0.99  # of the variance that the whitened components hold, where 64 are enough for it
RESOLUTION = 1e-13  # a share of the squared features below which a variance is float32's rounding
COLLINEAR = 1e-3  # standard deviation below which a standardised component of theta follows from those before it


@dataclass(frozen=True)
class Projection:
    """A linear map of features to their principal components.

    Args:
        mean, basis: (D,) and (D, up to 64), float64.
    """

    mean: Tensor
    basis: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return float64 (N, up to 64) of features (N, D)."""
        return torch.cat([(block.double() - self.mean) @ self.basis for block in features.split(BLOCK)])


def principal_components(features: Tensor) -> tuple[Projection, Tensor]:
    """Return the first 64 principal components of features (N, D), and the share of the variance of each."""
    data = moments(features, features[:, :0])
    spectrum, basis = torch.linalg.eigh(data.xx)
    # A direction without variance in training may have some in held-out pairs, and whitening would blow it up.
    squared = data.xx.trace() + data.n * data.mean_x.square().sum()
    kept = spectrum > RESOLUTION * squared
    spectrum, basis = spectrum[kept].flip(0)[:COMPONENTS], basis[:, kept].flip(1)[:, :COMPONENTS]
    return Projection(data.mean_x, basis), spectrum / data.xx.trace()


def fit_whitening(features: Tensor) -> Projection:
    """Return the whitening of features (N, D): their first principal components at variance 1.

    There are as many as hold 99 % of the variance, at most 64. All of these count alike, whatever the scale of the
    channels, which decides how much each counts in the features' own unit.
    """
    projection, share = principal_components(features)
    count = int((share.cumsum(0) < SHARE).sum()) + 1
    deviation = (share * moments(features, features[:, :0]).xx.trace() / len(features)).sqrt()
    return Projection(projection.mean, (projection.basis / deviation)[:, :count])


@dataclass(frozen=True)
class EquivariancePredictor:
    """A ridge from [z1, theta, z1 x theta] to z2, or to its whitened components.

    Args:
        reduce: z1 to its principal components.
        theta_mean, theta_std: (k,), of the training pairs; infinite is the deviation of what does not vary there.
        chosen: int64 (up to k,), components of theta that do not follow from others.
        ridge: the regression.
    """

    reduce: Projection
    theta_mean: Tensor
    theta_std: Tensor
    chosen: Tensor
    ridge: Ridge

    def predict(self, first: Tensor, theta: Tensor) -> Tensor:
        """Return float64 (N, m) from z1 (N, D) and theta (N, k)."""
        blocks = zip(first.split(BLOCK), theta.split(BLOCK), strict=True)
        return torch.cat([self.ridge.predict(self.inputs(*block)) for block in blocks])

    def inputs(self, first: Tensor, theta: Tensor) -> Tensor:
        """Return [z1, theta, z1 x theta], float64 (N, p)."""
        return _inputs(self.reduce(first), self._standardised(theta))

    def _standardised(self, theta: Tensor) -> Tensor:
        return ((theta.double() - self.theta_mean) / self.theta_std)[:, self.chosen]


def fit_equivariance(first: Tensor, theta: Tensor, target: Tensor) -> EquivariancePredictor:
    """Return the regression of training pairs.

    Args:
        first: (N, D).
        theta: (N, k); a component that does not vary, or follows from those before it, is left out.
        target: (N, m), z2 or its whitened components.
    """
    return _fit(principal_components(first)[0], first, theta, target)


def _fit(reduce: Projection, first: Tensor, theta: Tensor, target: Tensor) -> EquivariancePredictor:
    theta = theta.double()
    mean = theta.mean(0)
    std = torch.where(varying(theta), theta.std(0), torch.inf)
    # A turntable's matrix repeats cosine and sine; repeated inputs cost time and tell nothing.
    spread = torch.linalg.qr((theta - mean) / std)[1].diagonal().abs() / len(theta) ** 0.5
    chosen = (spread > COLLINEAR).nonzero()[:, 0]
    unfitted = EquivariancePredictor(reduce, mean, std, chosen, Ridge(*torch.empty(3, 0)))
    ridge = fit(moments(unfitted.inputs(first, theta), target))
    return EquivariancePredictor(reduce, mean, std, chosen, ridge)


def _inputs(z: Tensor, theta: Tensor) -> Tensor:
    return torch.cat([z, theta, (z[:, :, None] * theta[:, None, :]).flatten(1)], dim=1)


def explain_equivariance(train: Pairs, held: Pairs) -> tuple[list[Prediction], EquivariancePredictor, Projection]:
    """Return how much of the held-out z2 theta explains beyond z1, pair by pair.

    Args:
        train, held: pairs that the ridge is fitted and scored on.

    Returns:
        Of all factors together, what each pair adds to the total variance of the whitened z2, and what it adds to what
        is left of it by a ridge whose theta is shuffled among pairs, refitted, and by the ridge itself; the difference
        of these is the gain in R2, `equivariance`. Of a factor, `equivariance/<factor>`, the same with this factor
        alone shuffled: all others keep their true values, so what is counted is what this factor alone explains, on
        the very pairs of the overall metric. `equivariance_raw` is that of z2 in its own unit. Also the ridge to the
        whitened z2, and the whitening.
    """
    whiten, reduce = fit_whitening(train.second), principal_components(train.first)[0]
    width = whiten.basis.shape[1]
    target = _whitened_and_raw(train.second, whiten)

    def left(factors: list[str], outputs: slice) -> tuple[Tensor, EquivariancePredictor]:
        """Return the squared errors of a ridge with these factors shuffled, and the ridge."""
        predictor = _fit(reduce, train.first, _shuffled(train, factors), target[:, outputs])
        theta = _shuffled(held, factors)
        return _errors(held, whiten, lambda rows: predictor.predict(held.first[rows], theta[rows])), predictor

    def prediction(name: str, factor: str, unit: int, blind: Tensor) -> Prediction:
        columns = torch.stack([blind[unit], seeing[unit]], dim=1).float()
        return Prediction(name, factor, held.ids, total[unit, :, None].expand(-1, 2).float(), columns)

    mean = _whitened_and_raw(held.second.double().mean(0, keepdim=True), whiten)
    total = _errors(held, whiten, lambda rows: mean)
    everything, all_outputs, whitened = list(train.between), slice(None), slice(width)
    seeing, predictor = left([], all_outputs)
    blind, _ = left(everything, all_outputs)
    predictions = [
        prediction("equivariance", ALL, 0, blind),
        prediction("equivariance_raw", ALL, 1, blind),
        *(prediction("equivariance", factor, 0, left([factor], whitened)[0]) for factor in everything),
    ]
    ridge = predictor.ridge
    ridge = Ridge(ridge.weight[:, whitened], ridge.intercept[whitened], ridge.penalty[whitened])
    return predictions, dataclasses.replace(predictor, ridge=ridge), whiten


def _whitened_and_raw(second: Tensor, whiten: Projection) -> Tensor:
    return torch.cat([whiten(second), second.double()], dim=1)


def _errors(held: Pairs, whiten: Projection, predict: Callable[[Tensor], Tensor]) -> Tensor:
    """Return squared errors summed over whitened and over raw components, float64 (2, N).

    Args:
        predict: int64 (n,), rows -> whitened and raw components, or the whitened ones alone.
    """
    width = whiten.basis.shape[1]
    errors = []
    for rows in torch.arange(len(held.second)).split(BLOCK):
        predicted = predict(rows)
        true = _whitened_and_raw(held.second[rows], whiten)[:, : predicted.shape[1]]
        squared = (true - predicted).square()
        errors.append(torch.stack([squared[:, :width].sum(1), squared[:, width:].sum(1)]))
    return torch.cat(errors, dim=1)


def _shuffled(pairs: Pairs, factors: list[str]) -> Tensor:
    """Return theta with some factors taken from another pair, the same other one for all of them."""
    order = permutation(SEED, 1, len(pairs.first))
    between = {name: value[order] if name in factors else value for name, value in pairs.between.items()}
    return torch.cat(list(between.values()), dim=1)
