"""Intervals, power, Pareto front and verdict for a table of trials with few seeds.

A table is `values` (C, S): one metric of C configurations under the same S seeds, NaN where a trial is missing. The
model is `value = configuration + seed + noise`, normal, with a variance of the noise for every configuration. Two seeds
say little about a variance, so variances are moderated (Smyth 2004, doi.org/10.2202/1544-6115.1027): shrunk to a prior
with d0 degrees of freedom, which come from the spread of the configurations' variances. Two rules are added, since the
recipe alone covers 92 to 95 % with two seeds, and 53 to 66 % for a method of ten times the others' standard deviation:
a variance is never shrunk below its own estimate, and the prior counts as known with the table's residual degrees of
freedom only.

Simulated coverage of 95 % intervals, for 2, 3 and 5 seeds:
- Differences, on average over a table of 6 or more configurations, any seed effect: 94 to 97 % with equal variances, or
  scaled inverse chi-square ones with d0 = 4 or 10 (93 to 96 % with d0 = 2), or one configuration of ten times the
  others' standard deviation (93 % with 6 configurations and 2 seeds). With `sampling` (300 units): 93 to 97 %.
- Differences from that one configuration: 74 to 82 % (2 seeds), 86 to 91 % (3), 93 to 94 % (5). Where it is the control
  of all others, this holds for the whole table.
- Means: 94 to 97 % where the seed effect's standard deviation is at most the noise's; 90 to 97 % where it is three
  times as large, since then S seeds are S - 1 degrees of freedom for all configurations together.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special
from scipy.stats import false_discovery_control, nct

LEVEL = 0.95  # of intervals; tests are at 1 - LEVEL
MAX_DRAWN = 2_000_000  # draws of a mean that are in memory at once
POWER = 0.8  # of the minimum detectable difference
ACCURACY_MARGIN, INVARIANCE_MARGIN = 0.01, 0.02
MARGINS = {"r2_mean": 0.0, "equivariance": 0.0, "accuracy": -ACCURACY_MARGIN, "invariance": -INVARIANCE_MARGIN}
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """A mean or difference with its standard error and the error's degrees of freedom; all NaN where unknown."""

    value: float
    error: float
    dof: float

    def bounds(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the lower and the upper bound of the two-sided t interval."""
        half = _t_quantile(self.dof, level) * self.error
        return self.value - half, self.value + half

    def p_value(self) -> float:
        """Return the two-sided p-value of the t test against 0."""
        if self.error == 0:
            return float(self.value == 0)
        return float(2 * special.stdtr(self.dof, -abs(self.value) / self.error))


def _t_quantile(dof: float, level: float) -> float:
    return float(special.stdtrit(dof, (1 + level) / 2))


@dataclass(frozen=True)
class _Prior:
    """Scaled inverse chi-square prior of variances."""

    variance: float
    dof: float
    limit: float  # residual degrees of freedom of the table; 0 where no two configurations have two common seeds

    def moderate(self, own: NDArray, dof: NDArray) -> tuple[NDArray, NDArray]:
        """Return moderated variances and their degrees of freedom, from own variances with theirs (0 where none)."""
        share = dof / (dof + self.dof)
        moderated = share * own + (1 - share) * self.variance
        # The prior is itself known with `limit` degrees of freedom only.
        uncertainty = 1 / (dof + self.dof) + (1 - share) / max(self.limit, 1e-6)
        return np.maximum(moderated, own), 1 / uncertainty


def _fit_prior(variances: NDArray, dof: NDArray, limit: float) -> _Prior:
    """Fit the prior by the moments of log variances (Smyth 2004, section 6.2).

    Args:
        variances: of configurations, with residual degrees of freedom `dof`, each at least 1.
        limit: the residual degrees of freedom of all of them together, less those of the seed effects.
    """
    pooled = float(dof @ variances / max(dof.sum(), 1))
    # Two configurations have one difference, hence one variance: nothing to compare it with.
    if len(variances) < 3 or pooled == 0:
        return _Prior(pooled, np.inf, limit)
    # Equal values, as of a saturated metric, have no log variance; the floor is limma's.
    logs = np.log(np.maximum(variances, 1e-5 * (np.median(variances) or pooled)))
    logs -= special.digamma(dof / 2) - np.log(dof / 2)
    spread = logs.var(ddof=1) - special.polygamma(1, dof / 2).mean()
    if spread < 1e-9:  # no more than the sampling of variances explains
        return _Prior(pooled, np.inf, limit)
    # Solve trigamma(d0 / 2) = spread; trigamma(x) is between 1 / x and 1 / x + 1 / x^2.
    half = optimize.brentq(lambda x: special.polygamma(1, x) - spread, 1 / spread, 1 / spread + 1)
    return _Prior(float(np.exp(logs.mean() + special.digamma(half) - np.log(half))), 2 * half, limit)


@dataclass(frozen=True)
class _Noise:
    """Noise of a table after configuration and seed effects."""

    variances: NDArray  # (C,), moderated, of one trial
    dof: NDArray  # (C,), degrees of freedom of `variances`
    kept: NDArray  # (C,), share of its variance that a configuration's residuals keep without the seed effects
    prior: _Prior  # of `variances`
    residuals: NDArray  # (C, S), 0 where missing
    seed_effects: NDArray  # (S,), with mean 0
    seed_dof: int  # degrees of freedom of `seed_effects`


def _fit_noise(values: NDArray) -> _Noise:
    """Fit the model to values (C, S), NaN where missing.

    Configurations are weighted by their precision; otherwise a noisy one's noise would leak into the residuals of all.
    """
    equal = _fit_weighted(values, np.ones(len(values)))
    return _fit_weighted(values, 1 / equal.variances) if (equal.variances > 0).all() else equal


def _fit_weighted(values: NDArray, weights: NDArray) -> _Noise:
    """Fit configuration and seed effects by weighted least squares, in time linear in C, and moderate the variances."""
    present = np.isfinite(values)
    seeds = np.maximum(present.sum(1), 1)
    weights = weights / weights.max(initial=0)
    # Normal equations of the seed effects; the effects of configurations are eliminated.
    square = np.diag(weights @ present) - (present * (weights / seeds)[:, None]).T @ present
    inverse = np.linalg.pinv(square, rcond=1e-10, hermitian=True)
    seed_effects = inverse @ (weights @ _centre(values))
    residuals = _centre(values - seed_effects)
    leverage = weights * (present @ np.diag(inverse) - (present @ inverse * present).sum(1) / seeds)
    kept = np.where(seeds > 1, 1 - leverage / np.maximum(seeds - 1, 1), 1).clip(0, 1)
    dof = np.where(kept > 1e-6, seeds - 1, 0)
    own = (residuals**2).sum(1) / np.where(dof > 0, dof * kept, np.inf)
    prior = _fit_prior(own[dof > 0], dof[dof > 0], limit=dof @ kept)
    seed_dof = round(np.trace(square @ inverse))
    return _Noise(*prior.moderate(own, dof), kept, prior, residuals, seed_effects, seed_dof)


def _mean_over_seeds(values: NDArray) -> NDArray:
    """Return the mean (C,) of each row of values (C, S) that are not NaN; NaN where there are none."""
    present = np.isfinite(values)
    return np.where(present, values, 0).sum(1) / np.where(present.any(1), present.sum(1), np.nan)


def _centre(values: NDArray) -> NDArray:
    """Return values (C, S) less their configuration's mean, 0 where missing."""
    return np.nan_to_num(values - _mean_over_seeds(values)[:, None])


def _add_sampling(variances: NDArray, dof: NDArray, sampling: ArrayLike | None) -> tuple[NDArray, NDArray]:
    """Return variances with the variance of the held-out sample added, and the degrees of freedom of the sum.

    The squares of the two half-widths at 95 % are added (MOVER; Zou and Donner 2008, doi.org/10.1002/sim.3095), and the
    degrees of freedom are those of the resulting quantile. Satterthwaite's would give a variance with one degree of
    freedom little weight exactly where it came out too small, and cover 89 to 93 % with two seeds.
    """
    if sampling is None:
        return variances, dof
    total = variances + np.nan_to_num(np.asarray(sampling, dtype=float))
    normal = special.ndtri((1 + LEVEL) / 2)
    share = np.divide(variances, total, out=np.ones_like(total), where=total > 0)
    quantile = np.sqrt(share * special.stdtrit(dof, (1 + LEVEL) / 2) ** 2 + (1 - share) * normal**2)
    combined = special.stdtridf((1 + LEVEL) / 2, np.maximum(quantile, normal + 1e-6))
    return total, np.where(share < 1, combined, dof)


def _estimates(values: NDArray, variances: NDArray, dof: NDArray) -> list[Estimate]:
    dof = np.where(np.isfinite(variances), dof, np.nan)
    return [Estimate(*row) for row in np.stack([values, np.sqrt(variances), dof], axis=1).tolist()]


def mean_estimates(values: ArrayLike, sampling: ArrayLike | None = None) -> list[Estimate]:
    """Return each configuration's mean over its seeds, with the effects of the seeds in its error.

    Args:
        values: (C, S), NaN where a trial is missing.
        sampling: (C,), variance of the mean from the sample of held-out images; NaN, where unknown, adds nothing.

    Returns:
        C estimates, NaN for a configuration without trials; with unknown errors where no configuration has two seeds.
    """
    values = np.asarray(values, dtype=float)
    noise = _fit_noise(values)
    present = np.isfinite(values).sum(1)
    # Precision-weighted seed effects are independent of the residuals, so the two parts add up (Satterthwaite).
    seed_dof = noise.seed_dof or np.nan
    shared = (noise.seed_effects**2).sum() / seed_dof
    own = noise.variances * noise.kept
    total = shared + own
    uncertainty = shared**2 / seed_dof + own**2 / np.maximum(noise.dof, 1e-6)
    dof = np.divide(total**2, uncertainty, out=np.full(len(values), float(seed_dof)), where=uncertainty > 0)
    total = np.maximum(total, (_centre(values) ** 2).sum(1) / np.maximum(present - 1, 1))  # never below its own
    variances = total / np.where(present > 0, present, np.nan)
    return _estimates(_mean_over_seeds(values), *_add_sampling(variances, dof, sampling))


def difference_estimates(
    values: ArrayLike, pairs: Sequence[tuple[int, int]], sampling: ArrayLike | None = None
) -> list[Estimate]:
    """Return candidate - control, the mean over their common seeds: effects of the seed cancel.

    The variance over seeds is each comparison's own, moderated by a prior from all configurations of the table.

    Args:
        values: (C, S), NaN where a trial is missing.
        pairs: P rows (candidate, control).
        sampling: (P,), variance of the difference from the sample of held-out images; NaN, where unknown, adds nothing.

    Returns:
        P estimates, NaN for a pair without common seeds; with unknown errors where no two configurations of the table
        have two common seeds.
    """
    values = np.asarray(values, dtype=float)
    prior = _fit_noise(values).prior
    candidates, controls = np.reshape(np.array(pairs, dtype=int), (-1, 2)).T
    differences = values[candidates] - values[controls]
    seeds = np.isfinite(differences).sum(1)
    dof = np.maximum(seeds - 1, 0)
    own = (_centre(differences) ** 2).sum(1) / np.maximum(dof, 1)
    of_two = replace(prior, variance=2 * prior.variance)
    variances, dof = of_two.moderate(own, dof)
    variances = variances / np.where((seeds > 0) & (prior.limit > 1e-6), seeds, np.nan)
    return _estimates(_mean_over_seeds(differences), *_add_sampling(variances, dof, sampling))


def sampling_variance(contributions: ArrayLike) -> float:
    """Return the variance of a metric, or of a difference of two, due to the sample of held-out units alone.

    Seeds and units are crossed random effects. The noise of the seeds is in the spread over seeds already, so its share
    is subtracted from the variance over units of the mean over seeds. With one seed it cannot be, and is included.

    Args:
        contributions: (S, U), of units (images, or objects with all their views), whose mean is the metric; for a
            difference, those to the candidate less those to the control. Seeds that are all NaN are left out, and then
            units with a NaN.

    Returns:
        The variance, at least 0; NaN with fewer than two units.
    """
    values = np.atleast_2d(np.asarray(contributions, dtype=float))
    if not math.isfinite(values.sum()):
        values = values[np.isfinite(values).any(1)]
        values = values[:, np.isfinite(values).all(0)]
    seeds, units = values.shape
    if seeds < 1 or units < 2:
        return float("nan")
    # The mean product of two different seeds' deviations is the variance that they share. It is computed from products
    # of sums, for speed: each of a large study's many comparisons is little but this function.
    means, total = values.mean(1), values.sum(0)
    shared = total @ total - units * means.sum() ** 2
    if seeds > 1:
        flat = values.ravel()
        shared = (shared - flat @ flat + units * means @ means) / (seeds - 1)
    return max(0.0, float(shared / seeds / (units - 1) / units))


def power(estimate: Estimate, true: float, bound: float) -> float:
    """Return the probability that the lower 95 % bound of a new estimate with this error is above `bound`.

    Args:
        estimate: whose error and degrees of freedom are used.
        true: true value.
        bound: the number that the lower bound is to exceed.
    """
    if estimate.error == 0:
        return float(true > bound)
    shift = np.clip((true - bound) / estimate.error, -10, 1e4)  # beyond these SciPy's noncentral t is NaN
    return float(nct.sf(_t_quantile(estimate.dof, LEVEL), estimate.dof, shift))


def minimum_detectable_difference(estimate: Estimate) -> float:
    """Return the true difference whose lower 95 % bound is above 0 with a probability of `POWER`.

    Args:
        estimate: a difference; its error and degrees of freedom, in the noncentral t, are used.
    """
    dof = np.clip(estimate.dof, 0.5, 1e6)  # beyond these SciPy's inverse of the noncentral t does not end
    return float(estimate.error * special.nctdtrinc(dof, 1 - POWER, _t_quantile(dof, LEVEL)))


def significant(differences: Mapping[K, Estimate], candidates: int = 1) -> set[K]:
    """Return the keys of the differences from 0 that survive Benjamini-Hochberg at 5 % among all of them.

    Args:
        differences: of one table, none of them NaN.
        candidates: number of configurations of which these differences are the best one's (Bonferroni).
    """
    if not differences:
        return set()
    p_values = [min(1.0, candidates * difference.p_value()) for difference in differences.values()]
    adjusted = false_discovery_control(p_values)
    return {key for key, p_value in zip(differences, adjusted, strict=True) if p_value <= 1 - LEVEL}


def front_probability(objectives: ArrayLike, sampling: ArrayLike | None = None, draws: int = 4000) -> NDArray:
    """Return each configuration's probability of being on the Pareto front, by parametric draws of the means.

    Means are drawn around their estimates with each configuration's own moderated variances after seed effects, their
    uncertainty (t), and the correlation of objectives that all configurations share.

    Args:
        objectives: (C, S, M), M metrics, better when larger; a trial counts where all M are there.
        sampling: (C, M), variance of the means from the sample of held-out images; NaN, where unknown, adds nothing.
        draws: number of draws, from a fixed seed; the result's standard error is at most .5 / sqrt(draws).

    Returns:
        (C,), in [0, 1]; NaN where a configuration has no trial, or no two have two common seeds.
    """
    objectives = np.array(objectives, dtype=float)
    complete = np.isfinite(objectives).all(2)
    objectives[~complete] = np.nan
    columns = np.moveaxis(objectives, 2, 0)
    noises = [_fit_noise(column) for column in columns]
    if noises[0].prior.limit < 1e-6 or not complete.any(1).all():
        return np.full(len(objectives), np.nan)
    means = np.stack([_mean_over_seeds(c - n.seed_effects) for c, n in zip(columns, noises, strict=True)], axis=1)
    of_seeds = np.stack([noise.variances for noise in noises], axis=1) / complete.sum(1)[:, None]
    variances, dof = _add_sampling(of_seeds, np.stack([noise.dof for noise in noises], axis=1), sampling)
    rng = np.random.default_rng(0)
    dof = dof.min(1)  # one for all objectives of a configuration: the least certain
    correlation, on_it = _correlation(noises), np.zeros(len(means))
    most = max(1, MAX_DRAWN // len(means))
    for count in [most] * (draws // most) + [draws % most]:
        normal = rng.multivariate_normal(np.zeros(len(noises)), correlation, (count, len(means)))
        normal *= np.sqrt(variances) / np.sqrt(rng.chisquare(dof, (count, len(dof))) / dof)[..., None]
        on_it += np.sum([on_front(means + of_draw) for of_draw in normal], axis=0)
    return on_it / draws


def _correlation(noises: Sequence[_Noise]) -> NDArray:
    """Return the correlation of objectives (M, M) over the residuals of all configurations, each by its own scale."""
    scales = [np.sqrt(np.where(noise.variances > 0, noise.variances, np.inf)) for noise in noises]
    scaled = np.stack([(n.residuals / s[:, None]).ravel() for n, s in zip(noises, scales, strict=True)])
    with np.errstate(divide="ignore", invalid="ignore"):  # of an objective without any noise
        correlation = np.nan_to_num(np.atleast_2d(np.corrcoef(scaled)))
    np.fill_diagonal(correlation, 1)
    return correlation


def on_front(means: ArrayLike) -> NDArray:
    """Return which points (C, M) no other point dominates, as bool (C,); larger is better in every column.

    A point with a NaN neither dominates nor is dominated.
    """
    columns = np.ascontiguousarray(np.asarray(means, dtype=float).T)
    front = np.isnan(columns).any(0)
    rest = np.flatnonzero(~front)
    while len(rest):
        points = columns[:, rest]
        # No point dominates the one with the largest sum; of sums equal by rounding, the lexicographically largest one.
        sums = points.sum(0)
        ties = rest[sums == sums.max()]
        best = columns[:, ties[np.lexsort(columns[::-1, ties])[-1]], None]
        front[rest[(points == best).all(0)]] = True
        rest = rest[(points > best).any(0)]
    return front


def verdict(differences: Mapping[str, Estimate]) -> tuple[Literal["yes", "no", "inconclusive"], float]:
    """Return whether a configuration is equivariant without loss, and the power of that answer.

    Args:
        differences: each metric of `MARGINS` -> candidate - control; invariance is of the invariant part.

    Returns:
        yes, where every lower bound is above its margin; no, where an upper bound is below; else inconclusive. The
        power is the probability of a yes if accuracy and invariance truly lost nothing and the gains are as estimated,
        treating metrics as independent; NaN where an error is not known.
    """
    bounds = {metric: differences[metric].bounds() for metric in MARGINS}
    gained = {metric: differences[metric].value for metric in ("r2_mean", "equivariance")}
    chances = [power(differences[metric], gained.get(metric, 0.0), margin) for metric, margin in MARGINS.items()]
    if all(bounds[metric][0] > margin for metric, margin in MARGINS.items()):
        return "yes", math.prod(chances)
    if any(bounds[metric][1] < margin for metric, margin in MARGINS.items()):
        return "no", math.prod(chances)
    return "inconclusive", math.prod(chances)
