"""The trade-off: configurations in the plane of two objectives, and the way from each control to its reconstruction."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import StrMethodFormatter
from matplotlib.transforms import Bbox

from eqssl.metrics import label_of
from eqssl.report import selection
from eqssl.report.figures import COLOURS, Picture, label_axes
from eqssl.report.selection import REFERENCES, Configuration, Summary, bounds_of

# Offset of a name from its point, in points, and its alignment.
OFFSETS = ((7, 4, "left"), (-7, 4, "right"), (7, -11, "left"), (-7, -11, "right"), (0, 8, "center"), (0, -15, "center"))
NAMED_FROM = 0.1  # probability of being on the front
MAX_ARROWS = 12  # configurations; with more, only those on the front and the choice get arrows
DOSES = ListedColormap(colormaps["plasma"](np.linspace(0.05, 0.85, 256)))  # without colours as pale as the page
SHAPES = "oDvPX"  # the next one for each further eight values
CAPTION = (
    "Each point is a configuration's mean over seeds; larger: more probably on the front; edged: on the front of the "
    "means. Squares: reference rows with an encoder, which take part; thick on the front. Names: the choice, reference "
    "rows and likely members of the front, where there is room."
)
ARROWS = " Arrows{}: from the control without reconstruction; dashed: from the auto-encoding one."
UNCERTAINTY = " Crosses: 95 % intervals."


def front_picture(summary: Summary) -> Picture | None:
    """Return the first objective against each other one: means, 95 % intervals, arrows from the controls.

    The colour shows the method if it varies, else the first varied option. None for a single objective, or if no
    configuration has all objectives.
    """
    rows = selection.front_candidates(summary)
    first, *others = summary["objectives"]
    if not others or not rows:
        return None
    owners = selection.owners_of_controls(rows)
    searched = [c for c in rows if c["name"] not in REFERENCES and c["name"] not in owners]
    smaller = {metric: " (smaller is better)" for metric, way in summary["objectives"].items() if way == "minimize"}
    figure = Figure(figsize=(7.6 if len(others) == 1 else 6.0 * len(others), 5.4))
    grid = figure.subplots(1, len(others), squeeze=False)[0]
    looks, handles, scale = _looks(summary, searched)
    for axes, other in zip(grid, others, strict=True):
        handles |= _draw(axes, summary, (first, other), looks)
        label_axes(axes, *(label_of(metric) + smaller.get(metric, "") for metric in (first, other)))
    if scale:
        figure.colorbar(scale[1], ax=grid[-1], label=scale[0], shrink=0.7, format=StrMethodFormatter("{x:g}"))
    if handles:
        grid[0].legend(handles.values(), handles, loc="best", fontsize=7.5)
    figure.draw_without_rendering()  # names are placed in pixels of the final layout
    for axes, other in zip(grid, others, strict=True):
        _name(axes, summary, first, other)
    caption = CAPTION
    if any(c["controls"] for c in searched):
        caption += ARROWS.format(" (of the choice and the front alone)" * (len(searched) > MAX_ARROWS))
    known = any(c["front_probability"] is not None for c in rows)
    return Picture("front", "Trade-off", caption + UNCERTAINTY * known, figure)


def _looks(
    summary: Summary, searched: Sequence[Configuration]
) -> tuple[dict[str, Any], dict[str, Line2D], tuple[str, ScalarMappable] | None]:
    """Return configuration -> colour and shape, the legend of a choice, and the name and scale of a range.

    They show the method if it varies, else the first varied option.
    """
    space, own = summary["space"], summary["options"]
    options = dict.fromkeys(["method.name", *space, *(option for c in searched for option in c["params"])])
    values = {option: [c["params"].get(option, own.get(option)) for c in searched] for option in options}
    option = next((option for option, of in values.items() if len(set(map(str, of))) > 1), "method.name")
    names, of = [c["name"] for c in searched], space.get(option, {})
    if "low" in of and None not in values[option]:
        shades = ScalarMappable((LogNorm if of["log"] else Normalize)(of["low"], of["high"]), DOSES)
        return dict(zip(names, ((shades.to_rgba(v), "o") for v in values[option]), strict=True)), {}, (option, shades)
    kinds = list(dict.fromkeys(map(str, values[option])))
    looks = {v: (COLOURS[p % len(COLOURS)], SHAPES[p // len(COLOURS) % len(SHAPES)]) for p, v in enumerate(kinds)}
    shown = looks if len(looks) > 1 else {}
    handles = {f"{option.rpartition('.')[2]} {v}": Line2D([], [], ls="", color=c, marker=m)
               for v, (c, m) in shown.items()}  # fmt: skip
    return {name: looks[str(v)] for name, v in zip(names, values[option], strict=True)}, handles, None


def _draw(axes: Axes, summary: Summary, metrics: tuple[str, str], looks: dict[str, Any]) -> dict[str, Line2D]:
    """Draw all configurations and the paths from their controls; return the legend."""
    rows, members = selection.front_candidates(summary), selection.front_members(summary)
    owners, choice = selection.owners_of_controls(rows), selection.choice(summary)
    handles: dict[str, Line2D] = {}
    (xs, x_lows, _), (ys, y_lows, _) = (bounds_of(rows, metric).T for metric in metrics)
    y_half, x_half = np.nan_to_num(ys - y_lows), np.nan_to_num(xs - x_lows)
    axes.errorbar(xs, ys, y_half, x_half, fmt="none", ecolor="#888888", elinewidth=0.6, alpha=0.35, zorder=1)
    points = {c["name"]: (x, y) for c, x, y in zip(rows, xs, ys, strict=True)}
    for c in rows:
        name, member, point = c["name"], c["name"] in members, points[c["name"]]
        colour, shape = looks.get(owners.get(name) or name, (COLOURS[7], "o"))
        if name in REFERENCES:
            axes.plot(*point, "s", ms=6, mfc="white", mec="black", mew=2.4 if member else 1.1, zorder=4)
        elif name in owners:
            (handles["autoencode"],) = axes.plot(*point, "^", ms=6, mfc="white", mec=colour, zorder=3)
        else:
            size, edge = 6 + 4 * (c["front_probability"] or 0.0), "black" if member else "white"
            axes.plot(*point, shape, ms=size, mfc=colour, mec=edge, mew=1.1 if member else 0.5, zorder=4 + member)
            if len(looks) <= MAX_ARROWS or member or name == choice:
                if plain := [points[of] for of in c["controls"] if of in points and of != c["autoencode"]]:
                    gap = 9 if name == choice else 6  # around the point
                    way = {"color": colour, "lw": 0.9, "mutation_scale": 10, "shrinkA": 4, "shrinkB": gap}
                    axes.add_patch(FancyArrowPatch(plain[0], point, arrowstyle="-|>", alpha=0.6, zorder=2, **way))
                if c["autoencode"] in points:
                    joined = np.transpose([points[c["autoencode"]], point])
                    axes.plot(*joined, "--", color=colour, lw=0.9, alpha=0.7, zorder=2)
    if choice in points:
        ring: dict[str, Any] = {"marker": "o", "mfc": "none", "mec": "black", "mew": 1.4}
        axes.plot(*points[choice], ms=15, zorder=6, **ring)
        handles["chosen" if summary["chosen"] else "subject"] = Line2D([], [], ls="", ms=9, **ring)
    return handles


def _name(axes: Axes, summary: Summary, x: str, y: str) -> None:
    """Write names of the choice, reference rows and likely members of the front, in this order, where there is room."""
    rows, members = selection.front_candidates(summary), selection.front_members(summary)
    points = np.stack([bounds_of(rows, x)[:, 0], bounds_of(rows, y)[:, 0]], axis=1)
    owners, choice, named = selection.owners_of_controls(rows), selection.choice(summary), []
    for c, point in zip(rows, points, strict=True):
        probability, reference, member = c["front_probability"] or 0.0, c["name"] in REFERENCES, c["name"] in members
        if reference or (c["name"] not in owners and (member or probability >= NAMED_FROM)) or c["name"] == choice:
            named.append((c["name"] != choice, not reference, not member, -probability, c["name"], point))
    taken = [Bbox.from_extents(*(at - 6), *(at + 6)) for at in axes.transData.transform(points)]  # in pixels
    if legend := axes.get_legend():
        taken.append(legend.get_window_extent())
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for other, not_reference, *_, name, point in sorted(named, key=lambda item: item[:4]):
        look: dict[str, Any] = {"fontsize": 8, "color": "black" if not_reference else "#555555"}
        look["fontweight"], far = ("normal", 1.0) if other else ("bold", 1.5)  # beyond the ring
        for dx, dy, side in OFFSETS:
            text = axes.annotate(name, point, (far * dx, far * dy), textcoords="offset points", ha=side, **look)
            text.set(path_effects=halo, zorder=7)
            box = text.get_window_extent()
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
