"""Metrics against the varied options: curves with intervals for one range, small panels for several options."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eqssl.metrics import factor_of, is_accuracy, label_of
from eqssl.report import selection
from eqssl.report.figures import COLOURS, Picture, label_axes, panel_grid
from eqssl.report.selection import REFERENCES, Configuration, Summary, bounds_of
from eqssl.report.tables import main_metrics

# Colours of the reference rows; blue and green are those of the curves.
LINES = dict(zip(REFERENCES, (COLOURS[1], *COLOURS[3:], "#000000", "#B0B0B0", "#8C564B"), strict=True))
BANDS = ("base", "no-recon")  # reference rows that are shown with their interval
MIN_IN_BIN, MAX_BINS = 8, 8  # configurations in a bin, bins of a panel
CURVES = (
    "Points: means over seeds, bars and shaded bands: 95 %; lines: reference rows. Autoencode: the same configuration, "
    "its target reconstructed from its own tokens alone. Panels of accuracies share a scale, those of R² another."
)
OPTIONS = (
    "Grey: a point a configuration (mean over seeds), other options varied as well; ringed: the choice. Blue: means "
    "of neighbours, or of all with the same value; bars: 95 % of that mean over configurations. Where one "
    "option is varied at a time: every configuration with the interval of its mean."
)


def response_pictures(summary: Summary) -> list[Picture]:
    """Return the figures of metrics against options: two (main metrics, factors) for a single range, else one."""
    searched, space = selection.searched(summary), summary["space"]
    if not space or len(searched) < 2:
        return []
    option = next(iter(space))
    if len(space) > 1 or "low" not in space[option]:
        figure = response_figure(summary, list(summary["objectives"]), min(4, len(space)), (2.9, 2.5))
        return [Picture("responses", "Response to every option", OPTIONS, figure)]
    known = set.intersection(*(set(c["metrics"]) for c in searched))
    name = option.replace(".", "_")
    pictures = []
    if shown := [metric for metric in main_metrics(summary) if metric in known]:
        figure = response_figure(summary, shown, 3, (4.4, 3.5))
        pictures.append(Picture(f"response_{name}", f"Response to {option}", CURVES, figure))
    if factors := selection.members_of("r2", known):
        figure = response_figure(summary, factors, 4, (3.3, 2.8), factor_of)
        pictures.append(Picture(f"factors_{name}", f"R² per factor against {option}", CURVES, figure))
    return pictures


def response_figure(
    summary: Summary,
    metrics: Sequence[str],
    columns: int,
    size: tuple[float, float],
    title_of: Callable[[str], str | None] = label_of,
) -> Figure:
    """Return a panel for every metric and option: curves where one option is varied at a time, else means.

    Args:
        columns, size: as in `panel_grid`.
        title_of: metric -> its title.
    """
    space, searched = summary["space"], selection.searched(summary)
    figure, grid = panel_grid(len(metrics) * len(space), columns, size)
    handles: dict[str, Artist] = {}
    scales = defaultdict(list)  # panels to be compared by eye
    for axes, (metric, (option, values)) in zip(grid, product(metrics, space.items()), strict=True):
        label_axes(axes, option, title=title_of(metric) or metric, log=values.get("log", False))
        known = [c for c in searched if metric in c["metrics"]]
        points = [c for c in known if option in c["params"]]
        single = "low" in values and all(len(space.keys() & c["params"].keys()) == 1 for c in points)
        if single:
            handles |= _draw_curves(axes, summary, points, option, metric)
        elif points:
            _draw_means(axes, summary, points, option, metric)
        if known:
            scales[_scale_of(metric), single].append((axes, bounds_of(known, metric)[:, 0]))
    for (_, single), shared in scales.items():
        # Reference lines and bars of single configurations are shown whole; the bar of a mean of two may be endless.
        _share_scale(shared, most=math.inf if single else 1)
    if handles:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=7)
    return figure


def _scale_of(metric: str) -> str:
    """Return the same word for metrics that share a scale: accuracies, means of R², factors of a family."""
    if is_accuracy(metric) or metric.endswith("r2_mean"):
        return "accuracy" if is_accuracy(metric) else "R²"
    return metric.rpartition("/")[0] if factor_of(metric) else metric


def _share_scale(panels: Sequence[tuple[Axes, NDArray[np.float64]]], most: float) -> None:
    """Give panels one vertical range: their means, a margin, and everything drawn within `most` times their range."""
    values = np.concatenate([means for _, means in panels])
    drawn = np.array([axes.dataLim.intervaly for axes, _ in panels])
    span = np.ptp(values) or 1.0
    ends = []
    for sign in (-1, 1):
        end = (sign * values).max()
        beyond = min((sign * drawn).max() - end, most * span)
        ends.append(sign * (end + (0.1 * span if beyond < 0.101 * span else beyond + 0.05 * span)))
    for axes, _ in panels:
        axes.set_ylim(*ends)


def _draw_curves(
    axes: Axes, summary: Summary, searched: Sequence[Configuration], option: str, metric: str
) -> dict[str, Artist]:
    """Draw a metric of configurations and of their auto-encoding controls against the option, and reference rows."""
    rows = {c["name"]: c for c in summary["configurations"] if metric in c["metrics"]}
    controls = [rows[name] for name in selection.owners_of_controls(searched) if name in rows]
    handles: dict[str, Artist] = {}
    for title, configurations, style, colour in (
        ("cross-attention" if controls else "with reconstruction", searched, "o-", COLOURS[0]),
        ("autoencode", [c for c in controls if option in c["params"]], "^-", COLOURS[2]),
    ):
        if configurations:
            ordered = sorted(configurations, key=lambda c: c["params"][option])
            bounds = bounds_of(ordered, metric)
            errors = np.abs(bounds[:, 1:] - bounds[:, :1]).T
            values = [c["params"][option] for c in ordered]
            drawn = axes.errorbar(values, bounds[:, 0], errors, fmt=style, ms=5, capsize=3, color=colour)
            handles[title] = drawn.lines[0]
    for name in (name for name in LINES if name in rows):
        mean, low, high = bounds_of([rows[name]], metric)[0]
        style = "--" if name in BANDS else ":"
        handles[name] = axes.axhline(mean, color=LINES[name], lw=1.4, ls=style, zorder=1)
        if name in BANDS:
            axes.axhspan(low, high, color=LINES[name], alpha=0.1, lw=0)
    return handles


def _draw_means(axes: Axes, summary: Summary, points: Sequence[Configuration], option: str, metric: str) -> None:
    """Draw configurations, and means of those with the same choice or, in a range, of neighbours."""
    frame = pd.DataFrame({"dose": [c["params"][option] for c in points], "value": bounds_of(points, metric)[:, 0]})
    places, choices = frame["dose"], summary["space"][option].get("values")
    if choices is None:
        bins = min(MAX_BINS, max(len(frame) // MIN_IN_BIN, min(3, len(frame) // 4), 1))
        means = group_means(frame, pd.qcut(frame["dose"].rank(method="first"), bins, labels=False))
    else:
        names = [str(choice) for choice in choices]
        frame["dose"] = frame["dose"].map(str).map(names.index)
        means = group_means(frame, frame["dose"])
        places = frame["dose"] + np.random.default_rng(0).uniform(-0.15, 0.15, len(frame))
        means["dose"] += 0.28  # beside the points
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_xticks(range(len(names)), names)
        if sum(map(len, names)) > 24:
            axes.tick_params("x", labelrotation=20)
    axes.plot(places, frame["value"], "o", ms=3, mew=0, alpha=0.45, color=COLOURS[7])
    ringed = [c["name"] == selection.choice(summary) for c in points]
    axes.plot(places[ringed], frame["value"][ringed], "o", ms=8, mfc="none", mec="black")
    style = "o" if choices else "o-"
    axes.errorbar(means["dose"], means["value"], means["half"], fmt=style, ms=5, capsize=3, color=COLOURS[0])


def group_means(frame: pd.DataFrame, groups: pd.Series) -> pd.DataFrame:
    """Return median dose, mean value and half width of its 95 % interval (t, over configurations) per group.

    Args:
        frame: columns `dose` and `value`, one row per configuration.
        groups: the group of each row.

    Returns:
        Columns `dose`, `value` and `half`, which is NaN for a single configuration.
    """
    from scipy import stats

    values = frame.groupby(groups)["value"]
    half = stats.t.ppf(0.975, values.size() - 1) * values.sem()
    return pd.DataFrame({"dose": frame.groupby(groups)["dose"].median(), "value": values.mean(), "half": half})
