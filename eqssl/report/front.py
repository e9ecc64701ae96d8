"""The front: configurations in the plane of two objectives, with their uncertainty."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from eqssl.metrics import label_of
from eqssl.report import selection
from eqssl.report.figures import COLOURS, Picture, label_axes
from eqssl.report.selection import REFERENCES, Summary, bounds_of

# Of a name from its point, in points, and its alignment.
OFFSETS = ((7, 4, "left"), (-7, 4, "right"), (7, -11, "left"), (-7, -11, "right"), (0, 8, "center"), (0, -15, "center"))
NAMED_FROM = 0.1  # probability of being on the front
SHADES = LinearSegmentedColormap.from_list("probability", ("#cfcfcf", "#56B4E9", "#0072B2", "#002b4d"))
CAPTION = (
    "Each point is a configuration's mean over seeds. Edged: on the front of the means. Squares: reference rows with "
    "an encoder, which take part; thick on the front. Names: reference rows and likely members of the front, where "
    "there is room."
)
CONTROLS = " Triangles: auto-encoding controls, each joined to its configuration."
UNCERTAINTY = " Crosses: 95 % intervals. Colour: probability of being on the front, by parametric draws of the means."


def front_picture(summary: Summary) -> Picture | None:
    """Return the first objective against each other one: means, 95 % intervals, colour by probability of the front.

    None for a single objective, or where no configuration has all objectives.
    """
    rows = selection.front_candidates(summary)
    first, *others = summary["objectives"]
    if not others or not rows:
        return None
    smaller = {metric: " (smaller is better)" for metric, way in summary["objectives"].items() if way == "minimize"}
    figure = Figure(figsize=(7.6 if len(others) == 1 else 6.0 * len(others), 5.4))
    grid = figure.subplots(1, len(others), squeeze=False)[0]
    for axes, other in zip(grid, others, strict=True):
        _draw(axes, summary, first, other)
        label_axes(axes, *(label_of(metric) + smaller.get(metric, "") for metric in (first, other)))
    caption = CAPTION
    if grid[0].get_legend():
        caption += CONTROLS
    if any(c["front_probability"] is not None for c in rows):
        caption += UNCERTAINTY
        shades = ScalarMappable(Normalize(0, 1), SHADES)
        figure.colorbar(shades, ax=grid[-1], label="probability of being on the front", shrink=0.7)
    figure.draw_without_rendering()  # names are placed in pixels of the final layout
    for axes, other in zip(grid, others, strict=True):
        _name(axes, summary, first, other)
    return Picture("front", "Front", caption, figure)


def _draw(axes: Axes, summary: Summary, x: str, y: str) -> None:
    """Draw all configurations, and auto-encoding controls joined to theirs."""
    rows, members = selection.front_candidates(summary), selection.front_members(summary)
    owners = selection.owners_of_controls(rows)
    (xs, x_lows, _), (ys, y_lows, _) = bounds_of(rows, x).T, bounds_of(rows, y).T
    y_half, x_half = np.nan_to_num(ys - y_lows), np.nan_to_num(xs - x_lows)
    axes.errorbar(xs, ys, y_half, x_half, fmt="none", ecolor="#888888", elinewidth=0.6, alpha=0.45, zorder=1)
    points = {c["name"]: point for c, *point in zip(rows, xs, ys, strict=True)}
    for c in rows:
        member, point = c["name"] in members, points[c["name"]]
        if c["name"] in REFERENCES:
            axes.plot(*point, "s", ms=7, mfc="none", mec=COLOURS[1], mew=2.6 if member else 1.2, zorder=4)
        elif c["name"] in owners:
            (triangle,) = axes.plot(*point, "^", ms=6, mfc="none", mec=COLOURS[2], zorder=4)
            axes.legend([triangle], ["autoencode"])
            if owners[c["name"]] in points:
                joined = np.transpose([point, points[owners[c["name"]]]])
                axes.plot(*joined, color=COLOURS[2], lw=0.8, alpha=0.6, zorder=1)
        else:
            colour, size = SHADES(c["front_probability"] or 0.0), 8 if member else 5
            axes.plot(*point, "o", ms=size, mfc=colour, mec="black" if member else "none", zorder=2 + member)


def _name(axes: Axes, summary: Summary, x: str, y: str) -> None:
    """Write names of reference rows and likely members of the front, the most important first, where there is room."""
    rows, members = selection.front_candidates(summary), selection.front_members(summary)
    points = np.stack([bounds_of(rows, x)[:, 0], bounds_of(rows, y)[:, 0]], axis=1)
    owners, named = selection.owners_of_controls(rows), []
    for c, point in zip(rows, points, strict=True):
        probability, reference, member = c["front_probability"] or 0.0, c["name"] in REFERENCES, c["name"] in members
        if reference or (c["name"] not in owners and (member or probability >= NAMED_FROM)):
            named.append((not reference, not member, -probability, c["name"], point))
    taken = [Bbox.from_extents(*(at - 6), *(at + 6)) for at in axes.transData.transform(points)]  # in pixels
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for not_reference, _, _, name, point in sorted(named, key=lambda item: item[:3]):
        colour = "black" if not_reference else COLOURS[1]
        for dx, dy, side in OFFSETS:
            text = axes.annotate(name, point, (dx, dy), textcoords="offset points", ha=side, fontsize=8, color=colour)
            text.set(path_effects=halo, zorder=5)
            box = text.get_window_extent()
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
