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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
ACCURACY_MARGIN, INVARIANCE_MARGIN = 0.01, 0.02
MARGINS = {"r2_mean": 0.0, "equivariance": 0.0, "accuracy": -ACCURACY_MARGIN, "invariance": -INVARIANCE_MARGIN}
_NONCENTRAL_DOF = 0.5, 1e6  # beyond these SciPy's noncentral t does not end


@dataclass(frozen=True)
class Interval:
    """An estimate and its two-sided bounds, at 95 % by default."""

    estimate: float
    low: float
    high: float

    def above(self, bound: float) -> bool:
        """Return whether the lower bound is above a number; `above(-margin)` is non-inferiority with that margin."""
        return self.low > bound

    def below(self, bound: float) -> bool:
        """Return whether the upper bound is below a number."""
        return self.high < bound


@dataclass(frozen=True)
class Estimate:
    """A mean or difference with its standard error and the error's degrees of freedom; all NaN where unknown."""

    value: float
    error: float
    dof: float

    def interval(self, level: float = LEVEL) -> Interval:
        """Return the two-sided t interval of a level."""
        half = _critical(self.dof, level) * self.error
        return Interval(self.value, self.value - half, self.value + half)

    def p_value(self, null: float = 0.0) -> float:
        """Return the two-sided p-value of the t test against a number."""
        from scipy import special

        if self.error == 0:
            return float(self.value == null)
        return float(2 * special.stdtr(self.dof, -abs(self.value - null) / self.error))


def _critical(dof: float, level: float) -> float:
    from scipy import special

    return float(special.stdtrit(dof, (1 + level) / 2))


@dataclass(frozen=True)
class _Prior:
    """Scaled inverse chi-square prior of variances; `limit` is the table's residual degrees of freedom."""

    variance: float
    dof: float
    limit: float

    def moderate(self, own: NDArray, dof: NDArray) -> tuple[NDArray, NDArray]:
        """Return moderated variances and their degrees of freedom, from own variances with theirs (0 where none)."""
        share = dof / (dof + self.dof)
        moderated = share * own + (1 - share) * self.variance
        # The prior is itself known with `limit` degrees of freedom only.
        uncertainty = 1 / (dof + self.dof) + (1 - share) / max(self.limit, 1e-6)
        return np.maximum(moderated, own), 1 / uncertainty


def _prior(variances: NDArray, dof: NDArray, limit: float) -> _Prior:
    """Fit the prior by the moments of log variances (Smyth 2004, section 6.2).

    Args:
        variances: of configurations, with residual degrees of freedom `dof`, each at least 1.
        limit: the residual degrees of freedom of all of them together, less those of the seed effects.
    """
    from scipy import special

    pooled = float(dof @ variances / max(dof.sum(), 1))
    # Two configurations have one difference, hence one variance: nothing to compare it with.
    if len(variances) < 3 or pooled == 0:
        return _Prior(pooled, np.inf, limit)
    # Equal values, as of a saturated metric, have no log variance; the floor is limma's.
    logs = np.log(np.maximum(variances, 1e-5 * (np.median(variances) or pooled)))
    logs -= special.digamma(dof / 2) - np.log(dof / 2)
    spread = logs.var(ddof=1) - special.polygamma(1, dof / 2).mean()
    if spread <= 0:  # no more than the sampling of variances explains
        return _Prior(pooled, np.inf, limit)
    half = _inverse_trigamma(spread)
    return _Prior(float(np.exp(logs.mean() + special.digamma(half) - np.log(half))), 2 * half, limit)


def _inverse_trigamma(value: float) -> float:
    """Return x with trigamma(x) = value, by Newton's method on 1 / trigamma, which is nearly linear."""
    from scipy import special

    x = 0.5 + 1 / value
    for _ in range(20):
        trigamma = special.polygamma(1, x)
        x += trigamma * (1 - trigamma / value) / special.polygamma(2, x)
    return float(x)


@dataclass(frozen=True)
class _Noise:
    """Noise of a table after configuration and seed effects.

    Args:
        variances: (C,), moderated, of one trial.
        dof: (C,), degrees of freedom of `variances`.
        kept: (C,), share of its variance that a configuration's residuals keep when seed effects are taken out.
        prior: of `variances`.
        residuals: (C, S), 0 where missing.
        seed_effects: (S,), with mean 0.
        seed_dof: degrees of freedom of `seed_effects`.
    """

    variances: NDArray
    dof: NDArray
    kept: NDArray
    prior: _Prior
    residuals: NDArray
    seed_effects: NDArray
    seed_dof: int


def _noise(values: NDArray) -> _Noise:
    equal = _weighted_noise(values, np.ones(len(values)))
    # Weighted by precision; otherwise the residuals of all would have a noisy configuration's noise in them.
    return _weighted_noise(values, 1 / equal.variances) if (equal.variances > 0).all() else equal


def _weighted_noise(values: NDArray, weights: NDArray) -> _Noise:
    """Fit configuration and seed effects by weighted least squares, in time linear in C, and moderate the variances."""
    present = np.isfinite(values)
    seeds = np.maximum(present.sum(1), 1)
    weights = weights / weights.max()
    # Normal equations of the seed effects; the effects of configurations are eliminated.
    square = np.diag(weights @ present) - (present * (weights / seeds)[:, None]).T @ present
    inverse = np.linalg.pinv(square, rcond=1e-10, hermitian=True)
    seed_effects = inverse @ (weights @ _centre(values))
    residuals = _centre(values - seed_effects)
    leverage = weights * (present @ np.diag(inverse) - (present @ inverse * present).sum(1) / seeds)
    kept = np.where(seeds > 1, 1 - leverage / np.maximum(seeds - 1, 1), 1).clip(0, 1)
    dof = np.where(kept > 1e-6, seeds - 1, 0)
    own = (residuals**2).sum(1) / np.where(dof > 0, dof * kept, np.inf)
    prior = _prior(own[dof > 0], dof[dof > 0], limit=dof @ kept)
    seed_dof = round(np.trace(square @ inverse))
    return _Noise(*prior.moderate(own, dof), kept, prior, residuals, seed_effects, seed_dof)


def _centre(values: NDArray) -> NDArray:
    """Return values (C, S) less their configuration's mean, 0 where missing."""
    present = np.isfinite(values)
    filled = np.where(present, values, 0)
    return np.where(present, filled - (filled.sum(1) / np.maximum(present.sum(1), 1))[:, None], 0)


def _mean(values: NDArray) -> NDArray:
    """Return each row's mean over seeds; NaN where there are none."""
    present = np.isfinite(values)
    return np.where(present, values, 0).sum(1) / np.where(present.any(1), present.sum(1), np.nan)


def _add_sampling(variances: NDArray, dof: NDArray, sampling: ArrayLike | None) -> tuple[NDArray, NDArray]:
    """Return variances with the variance of the held-out sample added, and the degrees of freedom of the sum.

    The squares of the two half-widths at 95 % are added (MOVER; Zou and Donner 2008, doi.org/10.1002/sim.3095), and the
    degrees of freedom are those of the resulting quantile. Satterthwaite's would count a variance of one degree of
    freedom for little just where it came out too small, and cover 89 to 93 % with two seeds.
    """
    from scipy import special

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
        C estimates, NaN for a configuration without trials.

    Raises:
        ValueError: where no configuration has two seeds.
    """
    values = np.asarray(values, dtype=float)
    noise = _noise(values)
    if noise.seed_dof < 1:
        raise _no_spread(values)
    present = np.isfinite(values).sum(1)
    seeds = np.where(present > 0, present, np.nan)
    # Precision-weighted seed effects are independent of the residuals, so the two parts add up (Satterthwaite).
    shared = (noise.seed_effects**2).sum() / noise.seed_dof
    own = noise.variances * noise.kept
    total = shared + own
    uncertainty = shared**2 / noise.seed_dof + own**2 / np.maximum(noise.dof, 1e-6)
    dof = np.divide(total**2, uncertainty, out=np.full(len(values), float(noise.seed_dof)), where=uncertainty > 0)
    total = np.maximum(total, (_centre(values) ** 2).sum(1) / np.maximum(present - 1, 1))  # never below its own
    return _estimates(_mean(values), *_add_sampling(total / seeds, dof, sampling))


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
        P estimates, NaN for a pair without common seeds.

    Raises:
        ValueError: where no two configurations of the table have two common seeds.
    """
    values = np.asarray(values, dtype=float)
    prior = _noise(values).prior
    if prior.limit < 1e-6:
        raise _no_spread(values)
    candidates, controls = np.reshape(np.array(pairs, dtype=int), (-1, 2)).T
    differences = values[candidates] - values[controls]
    seeds = np.isfinite(differences).sum(1)
    dof = np.maximum(seeds - 1, 0)
    own = (_centre(differences) ** 2).sum(1) / np.maximum(dof, 1)
    of_two = replace(prior, variance=2 * prior.variance)
    variances, dof = of_two.moderate(own, dof)
    variances = variances / np.where(seeds > 0, seeds, np.nan)
    return _estimates(_mean(differences), *_add_sampling(variances, dof, sampling))


def _no_spread(values: NDArray) -> ValueError:
    return ValueError(f"{np.isfinite(values).sum()} trials of {len(values)} configurations leave no spread to judge by")


def sampling_variance(
    candidate: ArrayLike, control: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float:
    """Return the variance of a metric, or of a difference, due to the sample of held-out units alone.

    Seeds and units are crossed random effects. The noise of the seeds is in the spread over seeds already, so its share
    is subtracted from the variance over units of the mean over seeds. With one seed it cannot be, and is included.

    Args:
        candidate: (S, U), contributions of units (images, or objects with all their views), the weighted mean of which
            is the metric.
        control: (S, U), of the same seeds and units; default: none, for the variance of a mean.
        weights: (U,), of the units; default: equal.

    Returns:
        The variance, at least 0; NaN with fewer than two units.
    """
    values = np.atleast_2d(np.asarray(candidate, dtype=float))
    if control is not None:
        values = values - np.atleast_2d(np.asarray(control, dtype=float))
    seeds, units = values.shape
    weights = np.ones(units) if weights is None else np.asarray(weights, dtype=float)
    if units < 2:
        return float("nan")
    shares = weights / weights.sum()
    deviations = values - (values @ shares)[:, None]
    mean = deviations.mean(0)
    variances = mean**2
    if seeds > 1:
        variances = variances - ((deviations - mean) ** 2).sum(0) / (seeds - 1) / seeds
    return max(0.0, float(shares**2 @ variances * units / (units - 1)))


def power(estimate: Estimate, true: float, bound: float, level: float = LEVEL) -> float:
    """Return the probability that the lower bound of a new estimate with this error is above `bound`.

    Args:
        estimate: whose error and degrees of freedom are used.
        true: true value.
        bound: the number that the lower bound is to exceed.
        level: of the interval.
    """
    from scipy import special

    if estimate.error == 0:
        return float(true > bound)
    shift = np.clip((true - bound) / estimate.error, -10, 1e4)  # within the range of the noncentral t
    dof = np.clip(estimate.dof, *_NONCENTRAL_DOF)
    found = 1 - special.nctdtr(dof, shift, _critical(dof, level))
    return float(found) if np.isfinite(estimate.error) else float("nan")


def minimum_detectable_difference(estimate: Estimate, power: float = 0.8, level: float = LEVEL) -> float:
    """Return the true difference that would be found significant with the given power, by the noncentral t.

    Args:
        estimate: a difference; its error and degrees of freedom are used.
        power: probability that the lower bound is above 0.
        level: of the two-sided interval.
    """
    from scipy import special

    dof = np.clip(estimate.dof, *_NONCENTRAL_DOF)
    return float(estimate.error * special.nctdtrinc(dof, 1 - power, _critical(dof, level)))


def benjamini_hochberg(p_values: ArrayLike, rate: float = 0.05) -> list[bool]:
    """Return which tests are significant at a false discovery rate; NaN is no test and never significant."""
    p_values = np.asarray(p_values, dtype=float)
    ordered = np.sort(p_values[np.isfinite(p_values)])
    passing = ordered[ordered <= rate * np.arange(1, len(ordered) + 1) / max(len(ordered), 1)]
    return (p_values <= passing.max(initial=-1)).tolist()


def front_probability(
    objectives: ArrayLike, sampling: ArrayLike | None = None, draws: int = 4000, seed: int = 0
) -> NDArray:
    """Return each configuration's probability of being on the Pareto front, by parametric draws of the means.

    Means are drawn around their estimates with each configuration's own moderated variances after seed effects, their
    uncertainty (t), and the correlation of objectives that all configurations share.

    Args:
        objectives: (C, S, M), M metrics, better when larger; a trial counts where all M are there.
        sampling: (C, M), variance of the means from the sample of held-out images; NaN, where unknown, adds nothing.
        draws: number of draws; the result's standard error is at most .5 / sqrt(draws).
        seed: of the draws.

    Returns:
        (C,), in [0, 1].

    Raises:
        ValueError: where a configuration has no trial, or no two have two common seeds.
    """
    objectives = np.array(objectives, dtype=float)
    complete = np.isfinite(objectives).all(2)
    objectives[~complete] = np.nan
    columns = np.moveaxis(objectives, 2, 0)
    noises = [_noise(column) for column in columns]
    if noises[0].prior.limit < 1e-6 or not complete.any(1).all():
        raise _no_spread(columns[0])
    means = np.stack([_mean(c - n.seed_effects) for c, n in zip(columns, noises, strict=True)], axis=1)
    of_seeds = np.stack([noise.variances for noise in noises], axis=1) / complete.sum(1)[:, None]
    variances, dof = _add_sampling(of_seeds, np.stack([noise.dof for noise in noises], axis=1), sampling)
    rng = np.random.default_rng(seed)
    drawn = rng.multivariate_normal(np.zeros(len(noises)), _correlation(noises), (draws, len(means)))
    dof = dof.min(1)  # one for all objectives of a configuration: the least certain
    drawn = means + drawn * np.sqrt(variances) / np.sqrt(rng.chisquare(dof, (draws, len(dof))) / dof)[..., None]
    return np.mean([on_front(points) for points in drawn], axis=0)


def _correlation(noises: Sequence[_Noise]) -> NDArray:
    """Return the correlation of objectives (M, M) over the residuals of all configurations, each by its own scale."""
    scales = [np.sqrt(np.where(noise.variances > 0, noise.variances, np.inf)) for noise in noises]
    scaled = np.stack([(n.residuals / s[:, None]).ravel() for n, s in zip(noises, scales, strict=True)])
    square = scaled @ scaled.T
    norms = np.sqrt(np.diag(square))
    correlation = square / np.where(np.outer(norms, norms) > 0, np.outer(norms, norms), 1)
    np.fill_diagonal(correlation, 1)
    return correlation


def on_front(means: ArrayLike) -> NDArray:
    """Return which points (C, M) no other point dominates, as bool (C,); larger is better in every column."""
    means = np.asarray(means)
    front = np.zeros(len(means), dtype=bool)
    # No point is dominated by one that comes after it in lexicographic order.
    rest = np.lexsort(means.T[::-1])[::-1]
    while len(rest):
        first, points = means[rest[0]], means[rest]
        equal = (points == first).all(1)
        equal[0] = True  # NaN is not equal to itself
        front[rest[equal]] = True
        rest = rest[~equal & ~(points <= first).all(1)]
    return front


@dataclass(frozen=True)
class Verdict:
    """Whether there is equivariance without loss, and what the answer rests on.

    Args:
        differences: metric -> candidate - control.
        answer: yes, where every lower bound is above its margin in `MARGINS`; no, where an upper bound is below; else
            inconclusive.
        power: probability of a yes if accuracy and invariance truly lost nothing and the gains are as estimated;
            metrics count as independent.
    """

    differences: dict[str, Interval]
    answer: Literal["yes", "no", "inconclusive"]
    power: float


def verdict(differences: Mapping[str, Estimate]) -> Verdict:
    """Judge a configuration by its paired differences from its controls.

    Args:
        differences: each metric of `MARGINS` -> candidate - control; invariance is of the invariant part.
    """
    intervals = {metric: differences[metric].interval() for metric in MARGINS}
    answer = "inconclusive"
    if all(intervals[metric].above(margin) for metric, margin in MARGINS.items()):
        answer = "yes"
    elif any(intervals[metric].below(margin) for metric, margin in MARGINS.items()):
        answer = "no"
    gains = ("r2_mean", "equivariance")
    true = {metric: differences[metric].value if metric in gains else 0.0 for metric in MARGINS}
    chances = [power(differences[metric], true[metric], margin) for metric, margin in MARGINS.items()]
    return Verdict(intervals, answer, float(np.prod(chances)))
