"""What a table of trials says, with honest intervals for few seeds.

A table is `values` (C, S): one figure of C configurations under the same S seeds, NaN where a trial is missing.
Standard deviations are pooled over configurations, since three seeds say little about their own and a percentile
bootstrap of three values covers only about 70 %. The models are `value = configuration + noise` for means and
`value = configuration + seed + noise` for paired differences, with normal noise of one variance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
ACCURACY_MARGIN, INVARIANCE_MARGIN = 0.01, 0.02


@dataclass(frozen=True)
class Interval:
    """An estimate and its two-sided bounds, at 95 % unless said otherwise."""

    estimate: float
    low: float
    high: float

    def above(self, bound: float) -> bool:
        """Return whether the lower bound is above a number; `above(-margin)` is non-inferiority with that margin."""
        return self.low > bound


@dataclass(frozen=True)
class _Fit:
    """Least squares of `value = configuration (+ seed) + noise`.

    Args:
        effects: (C,), of the configurations.
        spread: (C, C), covariance of the effects over the variance of the noise.
        residuals: (C, S), NaN where missing.
        dof: degrees of freedom of the residuals.
    """

    effects: NDArray
    spread: NDArray
    residuals: NDArray
    dof: int


def _fit(values: ArrayLike, paired: bool) -> _Fit:
    values = np.asarray(values, dtype=float)
    configurations = len(values)
    present = np.isfinite(values)
    design, inverse, dof = _design(present.tobytes(), present.shape, paired)
    if dof < 1 or not present.any(1).all():
        raise ValueError(f"{present.sum()} trials of {configurations} configurations leave no spread to judge by")
    solution = inverse @ design.T @ values[present]
    residuals = np.full_like(values, np.nan)
    residuals[present] = values[present] - design @ solution
    return _Fit(solution[:configurations], inverse[:configurations, :configurations], residuals, dof)


@lru_cache(maxsize=16)  # a study asks for the same trials in every figure
def _design(present: bytes, shape: tuple[int, int], paired: bool) -> tuple[NDArray, NDArray, int]:
    """Return the design matrix of the trials that are there, the inverse of its square, and the degrees of freedom.

    Args:
        present: bool (C, S), as bytes.
        shape: C and S.
        paired: with an effect of the seed.
    """
    configurations, seeds = shape
    configuration, seed = np.nonzero(np.frombuffer(present, dtype=bool).reshape(shape))
    design = np.eye(configurations)[configuration]
    if paired:
        # Seed effects sum to zero, so that a configuration's effect is its mean over seeds.
        design = np.hstack([design, np.vstack([np.eye(seeds - 1), -np.ones(seeds - 1)])[seed]])
    square = design.T @ design
    dof = len(design) - np.linalg.matrix_rank(square, hermitian=True)
    return design, np.linalg.pinv(square, hermitian=True), int(dof)


def _noise_std(fit: _Fit) -> float:
    return float(np.sqrt(np.nansum(fit.residuals**2) / fit.dof))


def mean_intervals(values: ArrayLike, level: float = LEVEL) -> list[Interval]:
    """Return each configuration's mean over seeds with a t interval whose standard deviation all configurations share.

    Args:
        values: (C, S).
        level: coverage.

    Raises:
        ValueError: where no configuration has two seeds, or one has none.
    """
    fit = _fit(values, paired=False)
    return _intervals(fit, np.eye(len(fit.effects)), level)


def paired_difference(values: ArrayLike, candidate: int, control: int, level: float = LEVEL) -> Interval:
    """Return candidate - control over paired seeds: what a seed does to all configurations cancels.

    Args:
        values: (C, S); every row helps to estimate the noise.
        candidate, control: rows.
        level: coverage.

    Raises:
        ValueError: where there are too few trials for an interval.
    """
    return paired_differences(values, [(candidate, control)], level)[0]


def paired_differences(values: ArrayLike, pairs: Sequence[tuple[int, int]], level: float = LEVEL) -> list[Interval]:
    """Return `paired_difference` of every pair (candidate, control), from one fit."""
    fit = _fit(values, paired=True)
    rows = np.eye(len(fit.effects))
    candidates, controls = np.reshape(np.array(pairs, dtype=int), (-1, 2)).T
    return _intervals(fit, rows[candidates] - rows[controls], level)


def _intervals(fit: _Fit, contrasts: NDArray, level: float) -> list[Interval]:
    from scipy import stats

    estimates = contrasts @ fit.effects
    spread = np.sqrt(np.einsum("ij,ij->i", contrasts @ fit.spread, contrasts))
    half = stats.t.ppf((1 + level) / 2, fit.dof) * _noise_std(fit) * spread
    bounds = np.stack([estimates, estimates - half, estimates + half], axis=1).tolist()
    return [Interval(*values) for values in bounds]


def minimum_detectable_difference(values: ArrayLike, power: float = 0.8, level: float = LEVEL) -> float:
    """Return the true paired difference that this many seeds would find significant with the given power.

    Args:
        values: (C, S); the noise is estimated as for `paired_difference`. Where configurations have different numbers
            of seeds, the difference is between two that have the median number.
        power: probability of finding it.
        level: 1 - the probability of a false alarm, two-sided.

    Returns:
        The difference, in the unit of the values, from the noncentral t distribution.
    """
    from scipy import optimize, stats

    fit = _fit(values, paired=True)
    critical = stats.t.ppf((1 + level) / 2, fit.dof)
    effect = optimize.brentq(lambda shift: stats.nct.sf(critical, fit.dof, shift) - power, 0, 100 * critical)
    seeds = np.median(np.isfinite(fit.residuals).sum(1))
    return float(effect * _noise_std(fit) * np.sqrt(2 / seeds))


def front_probability(objectives: ArrayLike, draws: int = 4000, seed: int = 0) -> NDArray:
    """Return each configuration's probability of being on the Pareto front, by parametric draws of the means.

    Means are drawn around their estimates with the noise's covariance between objectives, pooled over configurations
    after seed effects, and with its uncertainty (multivariate t).

    Args:
        objectives: (C, S, M), M figures that are all better when larger.
        draws: number of draws; the result's standard error is at most .5 / sqrt(draws).
        seed: of the draws.

    Returns:
        (C,), in [0, 1].
    """
    objectives = np.array(objectives, dtype=float)
    complete = np.isfinite(objectives).all(2)
    objectives[~complete] = np.nan
    fits = [_fit(column, paired=True) for column in np.moveaxis(objectives, 2, 0)]
    residuals = np.nan_to_num(np.stack([fit.residuals.ravel() for fit in fits], axis=1))
    dof = fits[0].dof
    rng = np.random.default_rng(seed)
    covariance = residuals.T @ residuals / dof
    shape = (draws, len(objectives))
    noise = rng.multivariate_normal(np.zeros(len(fits)), covariance, shape) / np.sqrt(complete.sum(1))[:, None]
    noise /= np.sqrt(rng.chisquare(dof, draws) / dof)[:, None, None]
    means = np.stack([fit.effects for fit in fits], axis=1) + noise
    return np.mean([on_front(drawn) for drawn in means], axis=0)


def on_front(means: ArrayLike) -> NDArray:
    """Return which points (C, M) no other point dominates, as bool (C,); larger is better in every column."""
    as_good = np.logical_and.reduce([column[:, None] >= column for column in np.asarray(means).T])
    return ~(as_good & ~as_good.T).any(0)


@dataclass(frozen=True)
class Verdict:
    """Whether there is equivariance without losing invariance, and what it rests on.

    Args:
        differences: figure -> candidate - the better control.
        holds: whether every lower bound is above its margin.
    """

    differences: dict[str, Interval]
    holds: bool


def verdict(tables: Mapping[str, ArrayLike], candidate: int, controls: Sequence[int]) -> Verdict:
    """Judge a configuration against the better of its controls, figure by figure.

    It holds where the lower bounds give r2_mean > 0, equivariance > 0, accuracy > -.01 and invariance of the invariant
    part > -.02.

    Args:
        tables: `r2_mean`, `equivariance`, `accuracy`, `inv/invariance` -> (C, S). A control without a split has its
            `invariance` in the last table, as all its features are the method's.
        candidate: row that is judged.
        controls: rows it is judged against; for each figure the one with the highest mean.
    """
    margins = {
        "r2_mean": 0.0,
        "equivariance": 0.0,
        "accuracy": -ACCURACY_MARGIN,
        "inv/invariance": -INVARIANCE_MARGIN,
    }
    differences = {}
    for figure in margins:
        values = np.asarray(tables[figure], dtype=float)
        better = max(controls, key=lambda row: np.nanmean(values[row]))
        differences[figure] = paired_difference(values, candidate, better)
    return Verdict(differences, all(differences[figure].above(bound) for figure, bound in margins.items()))
