"""Equivariance, the gain in predicting z2 from z1 by the parameters theta of the transform; invariance and retrieval.

N pairs, T views, D features, k components of theta, m outputs.
"""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from eqssl.evaluation.features import EncodedViews, Pairs
from eqssl.evaluation.predictions import ALL, Prediction, varying
from eqssl.evaluation.probes import BLOCK, fit_ridge, moments
from eqssl.evaluation.transforms import SEED
from eqssl.random import permutation

COMPONENTS = 64
SHARE = 0.99  # share of the variance that the whitened components keep, if 64 suffice for it
RESOLUTION = 1e-13  # share of the squared features below which a variance is only float32 rounding
COLLINEAR = 1e-3  # standard deviation below which a standardised component of theta follows from the previous ones
INVARIANCE_VIEWS = 16
Projection = Callable[[Tensor], Tensor]
Predictor = Callable[[Tensor, Tensor], Tensor]


def principal_components(features: Tensor, whiten: bool = False) -> Projection:
    """Return the projection to the first 64 principal components of features (N, D): (n, D) -> float64 (n, up to 64).

    Args:
        whiten: keep only as many components as cover 99 % of the variance and scale them to variance 1, so that metrics
            do not depend on the scale of the channels.
    """
    mean, _, products, _, _ = moments(features, features[:, :0])
    spectrum, basis = torch.linalg.eigh(products)
    # A direction without variance in training may have some in eval pairs, and whitening would amplify it.
    kept = spectrum > RESOLUTION * (products.trace() + len(features) * mean.square().sum())
    spectrum, basis = spectrum[kept].flip(0)[:COMPONENTS], basis[:, kept].flip(1)[:, :COMPONENTS]
    if whiten:
        count = int((spectrum.cumsum(0) < SHARE * products.trace()).sum()) + 1
        basis = (basis / (spectrum / len(features)).sqrt())[:, :count]
    return lambda shown: torch.cat([(block.double() - mean) @ basis for block in shown.split(BLOCK)])


def fit_equivariance(first: Tensor, theta: Tensor, target: Tensor, reduce: Projection | None = None) -> Predictor:
    """Return the ridge regression from [z1, theta, z1 x theta] to z2, or to its whitened components.

    Args:
        first: (N, D), z1 of training pairs.
        theta: (N, k); a component that does not vary, or follows from those before it, is left out.
        target: (N, m), z2 or its whitened components.
        reduce: projection of z1 to its principal components; default: to those of `first`.

    Returns:
        The prediction float64 (n, m) for z1 (n, D) and theta (n, k).
    """
    reduce = reduce or principal_components(first)
    wide = theta.double()
    mean, std = wide.mean(0), torch.where(varying(wide), wide.std(0), torch.inf)
    # A turntable's matrix repeats cosine and sine; repeated inputs cost time and add nothing.
    spread = torch.linalg.qr((wide - mean) / std)[1].diagonal().abs() / len(theta) ** 0.5
    chosen = (spread > COLLINEAR).nonzero()[:, 0]

    def inputs(first: Tensor, theta: Tensor) -> Tensor:
        z, theta = reduce(first), ((theta.double() - mean) / std)[:, chosen]
        return torch.cat([z, theta, (z[:, :, None] * theta[:, None, :]).flatten(1)], dim=1)

    ridge = fit_ridge(inputs(first, theta), target)
    return lambda first, theta: ridge.predict(inputs(first, theta))


def geometry_predictions(views: EncodedViews) -> list[Prediction]:
    """Return the predictions behind equivariance, invariance and retrieval; none without a bank of views.

    Returns:
        `equivariance` and, for z2 in its own unit, `equivariance_raw`: see `_gains`. `hit1`: for each view of the bank
        the index of the view nearest (Euclidean) to the predicted whitened z2; chance level 1 / T.
        `invariance`: `variances` of the first 16 views.
    """
    bank, factors = views.bank, list(views.train.transform)
    if bank is None:
        return []
    reduce, whiten = principal_components(views.train.first), principal_components(views.train.second, whiten=True)
    shuffled = {ALL: factors, **{factor: [factor] for factor in factors}}
    predictions, predictor = _gains("equivariance", views, reduce, whiten, shuffled)
    predictions += _gains("equivariance_raw", views, reduce, Tensor.double, {ALL: factors})[0]
    ids = bank.ids.unique_consecutive()
    shape = len(ids), len(bank.ids) // len(ids), -1  # images, views, features
    predicted, true = predictor(bank.first, bank.theta), whiten(bank.second)
    nearest = torch.cdist(predicted.view(shape), true.view(shape)).argmin(2).float()
    index = torch.arange(nearest.shape[1]).expand_as(nearest).float()
    total, within = variances(bank.second.view(shape)[:, :INVARIANCE_VIEWS])
    return [
        *predictions,
        Prediction("hit1", ALL, ids, index, nearest),
        Prediction("invariance", ALL, ids, total.float(), within.float()),
    ]


def _gains(
    metric: str, views: EncodedViews, reduce: Projection, project: Projection, shuffled: Mapping[str, Collection[str]]
) -> tuple[list[Prediction], Predictor]:
    """Return the share of the variance of eval z2 that theta explains beyond z1, pair by pair.

    Args:
        metric: name of the predictions.
        views: the pairs that the ridges are fitted and scored on.
        reduce: principal components of the training z1.
        project: z2 (n, D) -> a ridge's target, float64 (n, m).
        shuffled: name of a factor, or `ALL` -> factors whose theta is shuffled among pairs. The others keep their true
            values, so that the gain is due to these factors only.

    Returns:
        For each name, each pair's contribution to the total variance of the target, and its errors by two ridges, one
        fitted with the shuffled and one with the true theta; the difference is the gain. Also the latter ridge.
    """
    train, eval_pairs, target = views.train, views.eval, project(views.train.second)
    blocks = torch.arange(len(eval_pairs.second)).split(BLOCK)

    def errors(factors: Collection[str]) -> tuple[Tensor, Predictor]:
        """Return the squared errors (N,) of a ridge that is fitted with these factors shuffled, and the ridge."""
        predictor = fit_equivariance(train.first, _shuffled(train, factors), target, reduce)
        theta, squared = _shuffled(eval_pairs, factors), []
        for rows in blocks:
            predicted = predictor(eval_pairs.first[rows], theta[rows])
            squared.append((project(eval_pairs.second[rows]) - predicted).square().sum(1))
        return torch.cat(squared), predictor

    mean = project(eval_pairs.second.double().mean(0, keepdim=True))
    total = torch.cat([(project(eval_pairs.second[rows]) - mean).square().sum(1) for rows in blocks])
    with_theta, predictor = errors(())
    predictions = []
    for name, factors in shuffled.items():
        columns = torch.stack([errors(factors)[0], with_theta], dim=1).float()
        predictions.append(Prediction(metric, name, eval_pairs.ids, total[:, None].expand(-1, 2).float(), columns))
    return predictions, predictor


def _shuffled(pairs: Pairs, factors: Collection[str]) -> Tensor:
    """Return theta with some factors taken from another pair, the same pair for all of them."""
    order = permutation(SEED, 1, len(pairs.first))
    return torch.cat([value[order] if name in factors else value for name, value in pairs.transform.items()], dim=1)


def variances(views: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's contribution to the total variance and to that within images, summed over dimensions.

    Invariance is 1 - variance within / total variance: 1 where no transform changes the feature (also for a
    constant feature, so read it together with collapse), about 0 where views of one image are as far apart as any two.

    Args:
        views: (N, T, D), features of N images under T transforms.

    Returns:
        float64 (N, 1) each; their sums are the unbiased variances.
    """
    views = views.double()
    images, transforms, _ = views.shape
    total = (views - views.mean((0, 1))).square().sum((1, 2)) / (images * transforms - 1)
    within = (views - views.mean(1, keepdim=True)).square().sum((1, 2)) / (images * (transforms - 1))
    return total[:, None], within[:, None]
