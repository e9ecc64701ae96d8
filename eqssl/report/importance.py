"""How much each varied option matters for an objective, by two estimators.

PED-ANOVA (Watanabe et al., 2023, arXiv 2304.10255; conditional options as in arXiv 2601.20800) compares the best tenth
of the configurations with all; a random forest explains the objective everywhere. They answer different questions, so
each is always shown with its name.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from eqssl.metrics import label_of
from eqssl.report.figures import COLOURS, Picture, label_axes
from eqssl.report.selection import Summary

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from sklearn.ensemble import RandomForestRegressor

RESAMPLES, TREES, PERMUTATIONS = 100, 200, 10
MIN_CONFIGURATIONS = 10
CAPTION = (
    "PED-ANOVA: share of each option in the difference between the best tenth of the configurations and all; bars: "
    "percentiles 2.5 and 97.5 over bootstrap resamples of the configurations. Random forest: loss of out-of-bag R² "
    "when the values of an option are permuted; it says little where that R² is low."
)


def study_importances(summary: Summary) -> pd.DataFrame:
    """Return `importances` for every objective, with a column `objective`.

    Empty if fewer than two options were varied, or an objective is known for fewer than 10 configurations.
    """
    space = summary["space"]
    found = []
    for objective, direction in summary["objectives"].items():
        known = [c for c in summary["configurations"] if c["number"] is not None and objective in c["metrics"]]
        if len(space) > 1 and len(known) >= MIN_CONFIGURATIONS:
            params = [{option: value for option, value in c["params"].items() if option in space} for c in known]
            values = np.array([c["metrics"][objective]["estimate"] for c in known])
            found.append(importances(params, values, space, maximize=direction == "maximize"))
            found[-1]["objective"] = objective
    return pd.concat(found) if found else pd.DataFrame()


def importances(
    params: Sequence[Mapping[str, Any]], values: ArrayLike, space: Mapping[str, Any], *, maximize: bool
) -> pd.DataFrame:
    """Return the importances of all options for one objective.

    Args:
        params: option -> value, for N configurations; an option may be missing.
        values: (N,), the objective.
        space: option -> its allowed values, as in summary.json.
        maximize: whether larger is better.

    Returns:
        A row for every option: `share`, `low` and `high` of `ped_anova`; `permutation`, the drop in the forest's
        out-of-bag R² when the option's values are permuted (Breiman, 2001); `oob_r2`, that R².
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    inputs = np.full((len(params), len(space)), np.nan)  # NaN where a configuration lacks an option
    for row, point in enumerate(params):
        for column, (option, of) in enumerate(space.items()):
            if option in point:
                inputs[row, column] = of["values"].index(point[option]) if "values" in of else point[option]
    forest = RandomForestRegressor(TREES, min_samples_leaf=2, random_state=0).fit(inputs, values)
    settings = {"scoring": out_of_bag_r2, "n_repeats": PERMUTATIONS, "random_state": 0}
    lost = permutation_importance(forest, inputs, values, **settings)
    shares = ped_anova(params, values, space, maximize=maximize)
    return shares.assign(permutation=lost.importances_mean, oob_r2=out_of_bag_r2(forest, inputs, values))


def out_of_bag_r2(forest: "RandomForestRegressor", inputs: NDArray[np.float64], values: ArrayLike) -> float:
    """Return the R² of predictions for (N, options) each by the trees that were fitted without that configuration."""
    from sklearn.metrics import r2_score

    rows = np.arange(len(inputs))
    unseen = np.array([~np.isin(rows, samples) for samples in forest.estimators_samples_])
    predictions = np.array([tree.predict(inputs) for tree in forest.estimators_])
    return float(r2_score(values, (predictions * unseen).sum(0) / unseen.sum(0)))


def ped_anova(
    params: Sequence[Mapping[str, Any]],
    values: ArrayLike,
    space: Mapping[str, Any],
    *,
    maximize: bool,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Return a row for every option: its share of PED-ANOVA's importances and bootstrap percentiles 2.5 and 97.5.

    Args:
        params, values, space, maximize: as in `importances`.
        resamples: number of times that N configurations are drawn with replacement.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.trial import FrozenTrial, TrialState

    distributions = {
        option: FloatDistribution(of["low"], of["high"], log=of["log"])
        if "low" in of
        else CategoricalDistribution(of["values"])
        for option, of in space.items()
    }
    trials = [
        FrozenTrial(
            number=i, trial_id=i, state=TrialState.COMPLETE, value=float(value), params=dict(point),
            distributions={option: distributions[option] for option in point}, datetime_start=None,
            datetime_complete=None, user_attrs={}, system_attrs={}, intermediate_values={},
        )
        for i, (point, value) in enumerate(zip(params, np.asarray(values), strict=True))
    ]  # fmt: skip
    picked = np.random.default_rng(0).integers(0, len(trials), (resamples, len(trials)))
    drawn = pd.DataFrame([_shares([trials[i] for i in sample], space, maximize) for sample in picked])
    low, high = drawn.quantile(0.025), drawn.quantile(0.975)
    return pd.DataFrame({"share": _shares(trials, space, maximize), "low": low, "high": high})


def _shares(trials: "list[FrozenTrial]", space: Mapping[str, Any], maximize: bool) -> dict[str, float]:
    """Return every option's share of the importances that these trials show, 0 for all if none matters."""
    import optuna
    from optuna.storages import InMemoryStorage

    class Drawn(InMemoryStorage):  # the base copies every trial of every resample: most of a report's time
        def get_all_trials(self, *arguments: Any, **named: Any) -> "list[FrozenTrial]":
            return trials

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=Drawn(), direction="maximize" if maximize else "minimize")
    with warnings.catch_warnings():  # about values that few configurations have, which the interval shows
        warnings.simplefilter("ignore", UserWarning)
        found = optuna.importance.PedAnovaImportanceEvaluator().evaluate(study)
    total = sum(found.values()) or 1.0
    return {option: found.get(option, 0.0) / total for option in space}


def importance_picture(found: pd.DataFrame) -> Picture:
    """Return the result of `study_importances`, a row of two panels for every objective: PED-ANOVA and the forest."""
    by_objective = list(found.groupby("objective", sort=False))
    figure = Figure(figsize=(9.6, len(by_objective) + 0.3 * len(found)))
    grid = figure.subplots(len(by_objective), 2, sharey="row", squeeze=False)
    for (left, right), (objective, of) in zip(grid, by_objective, strict=True):
        errors = np.clip([of["share"] - of["low"], of["high"] - of["share"]], 0, None)
        left.barh(of.index, of["share"], xerr=errors, color=COLOURS[0], height=0.6, capsize=3, ecolor="#333333")
        right.barh(of.index, of["permutation"], color=COLOURS[2], height=0.6)
        left.invert_yaxis()
        left.set_xlim(0, 1)
        name, r2 = label_of(str(objective)), of["oob_r2"].iloc[0]
        label_axes(left, "share of all importances", title=f"{name}: PED-ANOVA, {RESAMPLES} resamples")
        label_axes(right, "loss of out-of-bag R²", title=f"{name}: random forest, out-of-bag R² {r2:.2f}")
    return Picture("importances", "Importances of the options", CAPTION, figure)
