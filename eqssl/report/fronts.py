"""The front: configurations in the plane of two objectives, with their uncertainty."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eqssl.report.figures import COLOURS, style
from eqssl.stats import on_front
from eqssl.study.definition import METRIC_NAMES, REFERENCE_ROWS, WITHOUT_ENCODER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OFFSETS = ((7, 4), (-7, 4), (7, -11), (-7, -11), (0, 8), (0, -15))  # of a label, in points
MAY_BE = 0.1  # probability of being on the front from which a configuration is named
CROWD = 60  # points, beyond which a label may lie on those that have none
UNLIKELY_TO_SURE = ("#cfcfcf", "#56B4E9", "#0072B2", "#002b4d")


def competing(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the configurations with an encoder and all objectives that did not collapse, reference rows first."""
    out = {*WITHOUT_ENCODER, *(t["configuration"] for t in summary["trials"] if t["collapsed"])}
    rows = summary["configurations"]
    return [c for c in rows if c["name"] not in out and all(f in c["metrics"] for f in summary["objectives"])]


def front_members(summary: dict[str, Any]) -> set[str]:
    """Return the names of those whose means no other's dominate."""
    rows = competing(summary)
    signs = [1 if direction == "maximize" else -1 for direction in summary["objectives"].values()]
    means = [[c["metrics"][f]["estimate"] for f in summary["objectives"]] for c in rows]
    return (
        {c["name"] for c, best in zip(rows, on_front(np.array(means) * signs), strict=True) if best} if rows else set()
    )


def front_figure(summary: dict[str, Any]) -> "Figure":
    """Return the first objective against each other one: means, 95 % intervals, colour by probability of the front.

    Args:
        summary: what summary.json holds; of two objectives or more.
    """
    from matplotlib.figure import Figure

    first, *others = summary["objectives"]
    rows, members = competing(summary), front_members(summary)
    figure = Figure(figsize=(7.6 if len(others) == 1 else 6.0 * len(others), 5.4), layout="constrained")
    grid = figure.subplots(1, len(others), squeeze=False)[0]
    for axes, other in zip(grid, others, strict=True):
        drawn = _draw(axes, rows, members, first, other)
        style(axes, *(_axis(summary, metric) for metric in (first, other)))
    if twins_of(rows):
        grid[0].legend(loc="best", fontsize=8, frameon=False)
    if any(c["front_probability"] is not None for c in rows):
        figure.colorbar(drawn, ax=grid[-1], label="probability of being on the front", shrink=0.7)
    for axes, other in zip(grid, others, strict=True):
        figure.draw_without_rendering()  # labels are placed in pixels
        _name(axes, rows, members, _points(rows, first, other)[0])
    return figure


def twins_of(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Return auto-encoding control -> its configuration, of those that have one of their own."""
    return {c["autoencode"]: c["name"] for c in rows if c.get("autoencode") and c["autoencode"] not in REFERENCE_ROWS}


def _axis(summary: dict[str, Any], metric: str) -> str:
    name = METRIC_NAMES.get(metric, metric)
    return name if summary["objectives"][metric] == "maximize" else f"{name} (smaller is better)"


def _points(rows: list[dict[str, Any]], *metrics: str) -> tuple[NDArray, NDArray]:
    """Return means (N, 2) and half widths of the intervals (N, 2), 0 where there are none."""
    bounds = [[c["metrics"][metric] for metric in metrics] for c in rows]
    means = np.array([[b["estimate"] for b in pair] for pair in bounds])
    return means, np.array([[0 if b["low"] is None else b["estimate"] - b["low"] for b in pair] for pair in bounds])


def _draw(axes: "Axes", rows: list[dict[str, Any]], members: set[str], first: str, other: str) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    means, half = _points(rows, first, other)
    axes.errorbar(*means.T, half[:, 1], half[:, 0], fmt="none", ecolor="#888888", elinewidth=0.6, alpha=0.45, zorder=1)
    probability = np.array([c["front_probability"] or 0.0 for c in rows])
    reference = np.array([c["name"] in REFERENCE_ROWS for c in rows])
    twins = twins_of(rows)
    twin = np.array([c["name"] in twins for c in rows])
    member = np.array([c["name"] in members for c in rows])
    shades = LinearSegmentedColormap.from_list("probability", UNLIKELY_TO_SURE)
    style_of = {"cmap": shades, "vmin": 0, "vmax": 1}
    for is_member, size, edge in ((False, 26, "none"), (True, 62, "black")):
        picked = ~reference & ~twin & (member == is_member)
        drawn = axes.scatter(
            *means[picked].T, size, probability[picked], edgecolors=edge, zorder=2 + is_member, **style_of
        )
    widths = np.where(member[reference], 2.6, 1.2)
    axes.scatter(*means[reference].T, 46, marker="s", fc="none", ec=COLOURS[1], linewidths=widths, zorder=4)
    if twins:
        _draw_twins(axes, rows, means, twins)
    return drawn


def _draw_twins(axes: "Axes", rows: list[dict[str, Any]], means: NDArray, twins: dict[str, str]) -> None:
    """Draw auto-encoding controls, each joined to its configuration."""
    places = {c["name"]: place for c, place in zip(rows, means, strict=True)}
    for name, of in twins.items():
        if name in places and of in places:
            axes.plot(*np.stack([places[name], places[of]]).T, color=COLOURS[2], lw=0.8, alpha=0.6, zorder=1)
    points = np.reshape([places[name] for name in twins if name in places], (-1, 2))
    axes.scatter(*points.T, 34, marker="^", fc="none", ec=COLOURS[2], zorder=4, label="autoencode")


def _name(axes: "Axes", rows: list[dict[str, Any]], members: set[str], means: NDArray) -> None:
    """Label the reference rows, and what is or may well be on the front, as far as there is room."""
    from matplotlib.patheffects import withStroke

    scale, halo = axes.figure.dpi / 72, [withStroke(linewidth=2.5, foreground="white")]
    pixels = axes.transData.transform(means) / scale
    twins = twins_of(rows)  # joined to what is named
    named = [
        c["name"] in REFERENCE_ROWS
        or (c["name"] not in twins and (c["name"] in members or (c["front_probability"] or 0) >= MAY_BE))
        for c in rows
    ]
    few = len(rows) <= CROWD
    taken = [(x - 4, y - 4, x + 4, y + 4) for (x, y), shown in zip(pixels, named, strict=True) if shown or few]
    frame = axes.get_window_extent()
    shown = [item for item, show in zip(zip(means, pixels, rows, strict=True), named, strict=True) if show]
    for point, at, c in sorted(shown, key=lambda item: _last_named(item[2], members)):
        for dx, dy in OFFSETS:
            width = 4.6 * len(c["name"])
            left = at[0] + dx - (width if dx < 0 else width / 2 if dx == 0 else 0)
            box = (left, at[1] + dy - 1, left + width, at[1] + dy + 9)
            inside = box[0] > frame.x0 / scale and box[2] < frame.x1 / scale
            if inside and not any(_overlap(box, other) for other in taken):
                side = {-1: "right", 0: "center", 1: "left"}[int(np.sign(dx))]
                text = axes.annotate(c["name"], point, (dx, dy), textcoords="offset points", ha=side, fontsize=8)
                text.set(color=COLOURS[1] if c["name"] in REFERENCE_ROWS else "black", path_effects=halo, zorder=5)
                taken.append(box)
                break


def _last_named(c: dict[str, Any], members: set[str]) -> tuple[bool, bool, float]:
    return c["name"] not in REFERENCE_ROWS, c["name"] not in members, -(c["front_probability"] or 0)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
