"""Figures against what is varied: a curve with bands for one option, small panels for several."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eqssl.report.figures import COLOURS, style
from eqssl.study.definition import METRIC_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure

LINES = (COLOURS[1], *COLOURS[3:], "#000000", "#B0B0B0")  # of the reference rows: the others are the curves'
IN_A_BIN = 8  # configurations, at least


def dose_response(
    panels: Mapping[str, tuple[Sequence[float], NDArray]],
    references: Mapping[str, Mapping[str, tuple[float, float, float]]],
    *,
    twins: Mapping[str, tuple[Sequence[float], NDArray]] | None = None,
    bands: Sequence[str],
    option: str,
    log: bool,
) -> "Figure":
    """Return one panel a metric: its value against the varied option, beside the reference rows.

    Args:
        panels: metric -> (doses (N,), mean, low, high (N, 3)); bounds may be NaN.
        references: metric -> row -> (mean, low, high), lines over the whole width.
        twins: metric -> the same as in `panels`, of the auto-encoding controls.
        bands: rows whose interval is shown as well.
        option: what is varied, the label of the horizontal axis.
        log: whether that axis is logarithmic.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.4 * rows + 0.5), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    shown = dict.fromkeys(row for of_panel in references.values() for row in of_panel)
    colours = dict(zip(shown, LINES, strict=False))
    handles, curves = {}, {}
    for axes, (name, (doses, bounds)) in zip(grid, panels.items(), strict=False):
        for row, (mean, low, high) in references.get(name, {}).items():
            handles[row] = axes.axhline(mean, color=colours[row], lw=1.4, ls="--" if row in bands else ":")
            if row in bands:
                axes.axhspan(low, high, color=colours[row], alpha=0.1, lw=0)
        curves["cross-attention" if twins else "with reconstruction"] = _draw_means(axes, doses, bounds)
        if twins and name in twins:
            curves["autoencode"] = _draw_means(axes, *twins[name], colour=COLOURS[2], marker="^")
        style(axes, option, title=name, log=log)
    for axes in grid[len(panels) :]:
        axes.remove()
    handles = curves | {row: handles[row] for row in shown}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    return figure


def factor_response(
    doses: Sequence[float],
    factors: Mapping[str, tuple[NDArray, float | None]],
    *,
    twins: Mapping[str, tuple[Sequence[float], NDArray]] | None = None,
    option: str,
    log: bool,
) -> "Figure":
    """Return R2 of every factor against the varied option, a small panel each.

    Args:
        doses: (N,), the option's values.
        factors: factor -> (mean, low, high (N, 3); the best control's mean or None).
        twins: factor -> (doses (M,), mean, low, high (M, 3)) of the auto-encoding controls.
        option, log: as in `dose_response`.
    """
    from matplotlib.figure import Figure

    columns = min(4, len(factors))
    rows = -(-len(factors) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.5 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    for axes, (name, (bounds, control)) in zip(grid, factors.items(), strict=False):
        axes.fill_between(doses, bounds[:, 1], bounds[:, 2], color=COLOURS[0], alpha=0.2, lw=0)
        axes.plot(doses, bounds[:, 0], "o-", ms=4, color=COLOURS[0])
        if twins and name in twins:
            axes.plot(twins[name][0], twins[name][1][:, 0], "^-", ms=4, color=COLOURS[2])
        if control is not None:
            axes.axhline(control, color=COLOURS[1], lw=1.2, ls="--")
        style(axes, option, title=name, log=log)
    for axes in grid[len(factors) :]:
        axes.remove()
    green = "; green triangles: autoencode" if twins else ""
    figure.suptitle(f"R² per factor; dashed: the best control{green}", fontsize=10)
    return figure


def binned_means(doses: ArrayLike, values: ArrayLike) -> NDArray:
    """Return (bins, 4): mean dose, mean value, its 95 % bounds (t, over configurations), in bins of equal counts.

    Args:
        doses: (N,).
        values: (N,).
    """
    doses, values = np.asarray(doses), np.asarray(values)
    count = min(8, max(1, len(doses) // IN_A_BIN))
    bins = np.array_split(np.argsort(doses), count)
    return np.array([(doses[b].mean(), *mean_bounds(values[b])) for b in bins])


def mean_bounds(values: NDArray) -> tuple[float, float, float]:
    """Return mean and 95 % bounds of (N,) values; NaN bounds for one."""
    from scipy import stats

    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, np.nan, np.nan
    half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return mean, mean - half, mean + half


def option_responses(searched: list[dict[str, Any]], space: Mapping[str, Any], objectives: Sequence[str]) -> "Figure":
    """Return a panel for every option and objective: a point a configuration, and means over configurations.

    A configuration that has nothing but the option is a dose of its own: it is drawn with the interval of its mean.

    Args:
        searched: configurations of the summary.
        space: option -> what it may be, as in summary.json.
        objectives: metrics.
    """
    from matplotlib.figure import Figure

    columns = min(4, len(space))
    rows = -(-len(space) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.5 * rows * len(objectives)), layout="constrained")
    grid = figure.subplots(rows * len(objectives), columns, squeeze=False)
    for block, objective in enumerate(objectives):
        panels = list(grid[block * rows : (block + 1) * rows].flat)
        known = [c for c in searched if objective in c["metrics"]]
        frame = _frame(means_and_bounds(known, objective)[:, 0]) if known else (0, 1)
        for place, (axes, (option, values)) in enumerate(zip(panels, space.items(), strict=False)):
            points = [c for c in known if option in c["params"]]
            name = "" if place % columns else METRIC_NAMES.get(objective, objective)
            style(axes, option, name, log=values.get("log", False))
            if points:
                _draw_panel(axes, points, option, values, objective)
            axes.set_ylim(frame)
        for axes in panels[len(space) :]:
            axes.remove()
    return figure


def _frame(estimates: NDArray) -> tuple[float, float]:
    """Return limits that all points fill: the interval of two alone could be many times as high."""
    margin = 0.1 * (np.ptp(estimates) or 1.0)
    return estimates.min() - margin, estimates.max() + margin


def _draw_panel(
    axes: "Axes", points: list[dict[str, Any]], option: str, values: Mapping[str, Any], objective: str
) -> None:
    doses, bounds = [c["params"][option] for c in points], means_and_bounds(points, objective)
    if "low" not in values:
        _choice_panel(axes, doses, bounds[:, 0], values)
    elif all(len(c["params"]) == 1 for c in points):
        order = np.argsort(doses)
        _draw_means(axes, np.array(doses)[order], bounds[order])
    else:
        _range_panel(axes, doses, bounds[:, 0], values)


def means_and_bounds(configurations: Sequence[dict[str, Any]], metric: str) -> NDArray:
    """Return (N, 3): mean, low and high of a metric of every configuration, NaN for a bound that is not known.

    Args:
        configurations: of the summary; all have the metric.
        metric: its name.
    """
    intervals = [c["metrics"][metric] for c in configurations]
    return np.array([[interval[key] for key in ("estimate", "low", "high")] for interval in intervals], dtype=float)


def _draw_means(
    axes: "Axes", doses: Sequence[float], bounds: NDArray, *, colour: str = COLOURS[0], marker: str = "o"
) -> "ErrorbarContainer":
    """Return the points and bars drawn for means and bounds (N, 3)."""
    errors = np.abs(bounds[:, 1:] - bounds[:, :1]).T
    return axes.errorbar(doses, bounds[:, 0], errors, fmt=f"{marker}-", ms=5, capsize=3, color=colour)


def _range_panel(axes: "Axes", doses: list[float], values: NDArray, space: Mapping[str, Any]) -> None:
    axes.plot(doses, values, "o", ms=3, mew=0, alpha=0.45, color=COLOURS[7])
    if len(doses) > 1:
        scaled = np.log(doses) if space["log"] else doses
        centres, mean, low, high = binned_means(scaled, values).T
        centres = np.exp(centres) if space["log"] else centres
        axes.fill_between(centres, low, high, color=COLOURS[0], alpha=0.2, lw=0)
        axes.plot(centres, mean, color=COLOURS[0], lw=1.6)


def _choice_panel(axes: "Axes", doses: list[Any], values: NDArray, space: Mapping[str, Any]) -> None:
    names = [str(value) for value in space["values"]]
    places = np.array([names.index(str(dose)) for dose in doses])
    spread = np.random.default_rng(0).uniform(-0.15, 0.15, len(places))
    axes.plot(places + spread, values, "o", ms=3, mew=0, alpha=0.45, color=COLOURS[7])
    for place in set(places):
        mean, low, high = mean_bounds(values[places == place])
        axes.errorbar(place + 0.28, mean, [[mean - low], [high - mean]], fmt="o", ms=5, capsize=3, color=COLOURS[0])
    axes.set_xlim(-0.5, len(names) - 0.5)
    crowded = {"rotation": 20, "ha": "right"} if sum(map(len, names)) > 24 else {}
    axes.set_xticks(range(len(names)), names, **crowded)
