"""How much each varied option matters for an objective, by two estimators, and which options act together.

PED-ANOVA (Watanabe et al., 2023, arXiv 2304.10255; conditional options as in arXiv 2601.20800) asks what sets the best
tenth of the configurations apart from all; a random forest asks what explains the objective everywhere. They answer
different questions, so neither stands without its name.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eqssl.report.figures import COLOURS, style
from eqssl.study.definition import METRIC_NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial
    from sklearn.ensemble import RandomForestRegressor

RESAMPLES, TREES, PERMUTATIONS = 100, 200, 10
ENOUGH = 10  # configurations to learn from
INTERACTING = 5  # the options that matter most are paired
POINTS = 60  # at which partial dependence is taken, and over which it is averaged


@dataclass(frozen=True)
class Interaction:
    """Two options that act together.

    Args:
        options: the two.
        h: Friedman's H, the share in [0, 1] of the pair's joint effect that is not the sum of single effects, square
            root (Friedman and Popescu, 2008, eq. 44).
        share: variance of that part over the variance of the forest's predictions.
    """

    options: tuple[str, str]
    h: float
    share: float


@dataclass(frozen=True)
class Importances:
    """What matters for one objective.

    Args:
        objective: the metric.
        configurations: how many there were to learn from.
        ped_anova: option -> share of all importances, and its percentiles 2.5 and 97.5 over the resamples.
        resamples: bootstrap samples of the configurations.
        forest: option -> loss of out-of-bag R2 when its values are permuted.
        oob_r2: R2 of the forest's out-of-bag predictions.
        interactions: strongest first.
    """

    objective: str
    configurations: int
    ped_anova: dict[str, tuple[float, float, float]]
    resamples: int
    forest: dict[str, float]
    oob_r2: float
    interactions: list[Interaction]


def study_importances(summary: dict[str, Any]) -> list[Importances]:
    """Return the importances for every objective of a study.

    Empty where fewer than two options were varied, or an objective is known of fewer than 10 configurations.

    Args:
        summary: what summary.json holds.
    """
    if len(summary["space"]) < 2:
        return []
    found = []
    for objective, direction in summary["objectives"].items():
        known = [c for c in summary["configurations"] if c["number"] is not None and objective in c["metrics"]]
        values = np.array([c["metrics"][objective]["estimate"] for c in known])
        if len(known) >= ENOUGH:
            params = [
                {option: c["params"][option] for option in summary["space"] if option in c["params"]} for c in known
            ]
            found.append(importances(objective, params, values, summary["space"], maximize=direction == "maximize"))
    return found


def importances(
    objective: str, params: Sequence[Mapping[str, Any]], values: NDArray, space: Mapping[str, Any], *, maximize: bool
) -> Importances:
    """Return the importances of the options for one objective.

    Args:
        objective: its name.
        params: option -> value of every configuration; an option may be missing.
        values: (N,), the objective.
        space: option -> what it may be, as in summary.json.
        maximize: whether larger is better.
    """
    options, inputs = list(space), encoded(params, space)
    forest, oob = fitted_forest(inputs, values)
    lost = permutation_importance(forest, inputs, values, oob)
    strongest = np.argsort(lost)[::-1][:INTERACTING]
    return Importances(
        objective=objective,
        configurations=len(values),
        ped_anova=bootstrapped_ped_anova(params, values, space, maximize=maximize),
        resamples=RESAMPLES,
        forest=dict(zip(options, lost.tolist(), strict=True)),
        oob_r2=_r2(values, oob_predictions(forest, inputs, oob)),
        interactions=[
            Interaction((options[a], options[b]), h, share)
            for (a, b), h, share in h_statistics(forest, inputs, strongest)
        ],
    )


def encoded(params: Sequence[Mapping[str, Any]], space: Mapping[str, Any]) -> NDArray:
    """Return configurations as float (N, options) for trees.

    Numbers are taken on the scale of their range, values of a list by their place; an option that a configuration
    lacks is at -1e3, below everything, so that a tree can set such configurations apart.
    """

    def number(values: Mapping[str, Any], value: Any) -> float:
        if "low" not in values:
            return list(values["values"]).index(value)
        return math.log10(value) if values["log"] else value

    rows = [[number(v, point[option]) if option in point else -1e3 for option, v in space.items()] for point in params]
    return np.array(rows, dtype=float)


def bootstrapped_ped_anova(
    params: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    space: Mapping[str, Any],
    *,
    maximize: bool,
    resamples: int = RESAMPLES,
) -> dict[str, tuple[float, float, float]]:
    """Return option -> (its share of PED-ANOVA's importances, percentiles 2.5 and 97.5 over the resamples).

    Args:
        params, values, space, maximize: as in `importances`; of an option that some configurations lack only the
            others tell.
        resamples: how often as many configurations are drawn with replacement.
    """
    trials = _optuna_trials(params, values, space)
    picked = np.random.default_rng(0).integers(0, len(trials), (resamples, len(trials)))
    estimate = _ped_anova(trials, list(space), maximize)
    drawn = [_ped_anova([trials[i] for i in sample], list(space), maximize) for sample in picked]
    bounds = np.percentile(drawn, [2.5, 97.5], axis=0)
    return dict(zip(space, zip(estimate, *bounds.tolist(), strict=True), strict=True))


def _ped_anova(trials: list["FrozenTrial"], options: list[str], maximize: bool) -> list[float]:
    """Return every option's share, 0 for all where none matters."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if maximize else "minimize")
    study.add_trials(trials)
    with warnings.catch_warnings():  # of values that few configurations have: the bootstrap's interval tells that
        warnings.simplefilter("ignore", UserWarning)
        found = optuna.importance.PedAnovaImportanceEvaluator().evaluate(study)
    total = sum(found.values()) or 1.0
    return [found.get(option, 0.0) / total for option in options]


def _optuna_trials(
    params: Sequence[Mapping[str, Any]], values: Sequence[float], space: Mapping[str, Any]
) -> list["FrozenTrial"]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.trial import create_trial

    distributions = {
        option: FloatDistribution(v["low"], v["high"], log=v["log"])
        if "low" in v
        else CategoricalDistribution(v["values"])
        for option, v in space.items()
    }
    return [
        create_trial(params=dict(point), distributions={o: distributions[o] for o in point}, value=float(value))
        for point, value in zip(params, values, strict=True)
    ]


def fitted_forest(inputs: NDArray, values: NDArray) -> tuple["RandomForestRegressor", NDArray]:
    """Return a random forest and which configurations each of its trees has not seen, bool (trees, N)."""
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(TREES, min_samples_leaf=2, random_state=0).fit(inputs, values)
    oob = np.ones((TREES, len(values)), dtype=bool)
    for unseen, samples in zip(oob, forest.estimators_samples_, strict=True):
        unseen[samples] = False
    return forest, oob


def oob_predictions(forest: "RandomForestRegressor", inputs: NDArray, oob: NDArray) -> NDArray:
    """Return (N,), for every configuration the mean of the trees that have not seen it."""
    predictions = np.stack([tree.predict(inputs) for tree in forest.estimators_])
    return (predictions * oob).sum(0) / oob.sum(0)


def permutation_importance(forest: "RandomForestRegressor", inputs: NDArray, values: NDArray, oob: NDArray) -> NDArray:
    """Return (options,), the loss of out-of-bag R2 when one option's values are permuted (Breiman, 2001)."""
    rng = np.random.default_rng(0)
    whole = _r2(values, oob_predictions(forest, inputs, oob))
    lost = np.zeros(inputs.shape[1])
    for option in range(inputs.shape[1]):
        for _ in range(PERMUTATIONS):
            permuted = inputs.copy()
            permuted[:, option] = rng.permutation(permuted[:, option])
            lost[option] += whole - _r2(values, oob_predictions(forest, permuted, oob))
    return lost / PERMUTATIONS


def h_statistics(
    forest: "RandomForestRegressor", inputs: NDArray, options: Sequence[int]
) -> list[tuple[tuple[int, int], float, float]]:
    """Return ((option, option), H, share of the variance) of every pair, the largest share first.

    Args:
        forest: fitted.
        inputs: (N, all options), what it was fitted to.
        options: those that are paired.
    """
    rng = np.random.default_rng(0)
    points = inputs[rng.permutation(len(inputs))[:POINTS]]
    variance = float(np.var(forest.predict(points))) or 1.0
    single = {option: _partial_dependence(forest, points, [option]) for option in options}
    found = []
    for a, b in combinations(options, 2):
        joint = _partial_dependence(forest, points, [a, b])
        together = float(np.mean((joint - single[a] - single[b]) ** 2))
        h = math.sqrt(min(1.0, together / (float(np.mean(joint**2)) or 1.0)))
        found.append(((int(a), int(b)), h, together / variance))
    return sorted(found, key=lambda pair: -pair[2])


def _partial_dependence(forest: "RandomForestRegressor", points: NDArray, options: list[int]) -> NDArray:
    """Return the mean prediction over all points with some options set to each point's, centred."""
    grid = np.repeat(points[None], len(points), axis=0)
    grid[:, :, options] = points[:, None, options]
    means = forest.predict(grid.reshape(-1, points.shape[1])).reshape(len(points), -1).mean(1)
    return means - means.mean()


def _r2(values: NDArray, predictions: NDArray) -> float:
    return 1 - float(np.mean((values - predictions) ** 2)) / (float(np.var(values)) or 1.0)


def importance_figure(found: Sequence[Importances]) -> "Figure":
    """Return a row of two panels for every objective: PED-ANOVA and the forest.

    Args:
        found: from `study_importances`.
    """
    from matplotlib.figure import Figure

    options = list(found[0].forest)
    figure = Figure(figsize=(9.6, len(found) * (1.0 + 0.3 * len(options))), layout="constrained")
    for (left, right), i in zip(figure.subplots(len(found), 2, sharey="row", squeeze=False), found, strict=True):
        places = range(len(options))
        shares = np.array([i.ped_anova[option] for option in options])
        errors = np.clip([shares[:, 0] - shares[:, 1], shares[:, 2] - shares[:, 0]], 0, None)
        left.barh(places, shares[:, 0], xerr=errors, color=COLOURS[0], height=0.6, capsize=3, ecolor="#333333")
        right.barh(places, list(i.forest.values()), color=COLOURS[2], height=0.6)
        left.set_yticks(places, options)
        left.invert_yaxis()
        left.set_xlim(0, 1)
        name = METRIC_NAMES.get(i.objective, i.objective)
        style(left, "share of all importances", title=f"{name}: PED-ANOVA, {i.resamples} resamples")
        style(right, "loss of out-of-bag R²", title=f"{name}: random forest, out-of-bag R² {i.oob_r2:.2f}")
    return figure
