"""The style that all figures share; reconstructions, the heat map and the forest plot. Data in, figure out."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from eqssl.images import image_grid
from eqssl.metrics import factor_of, label_of
from eqssl.report import selection
from eqssl.report.selection import REFERENCES, Summary, bounds_of
from eqssl.report.tables import gain_metrics
from eqssl.study.sentence import plain_number

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D00", "#555555")  # Okabe and Ito
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "font.size": 8.5,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # keep text as text
    "savefig.dpi": 130,
    "svg.fonttype": "none",
    "svg.hashsalt": "eqssl",
}  # matplotlib settings, in force while figures are made and saved
PARTS = {"all features": "", "invariant part": "inv/", "equivariant part": "equi/"}
MAX_ROWS = 40  # of the heat map and the forest plot
FOREST = (
    "Paired differences from the best of a configuration's controls, metric by metric; bars: 95 %. Filled: "
    "significant, with the comparisons of its table accounted for. Grey band: the minimum detectable difference. "
    "Shaded: the choice. Shown: {}."
)
NO_DATE: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}  # metadata


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Args:
        name: name of its file.
        title, caption: text above and below it; the caption explains bands and bars.
        figure: matplotlib figure.
    """

    name: str
    title: str
    caption: str
    figure: Figure

    def save(self, suffix: str = "png") -> bytes:
        """Return the figure as PNG, SVG or PDF, the same bytes every time."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format=suffix, metadata=NO_DATE[suffix])
        self.figure.set_layout_engine("none")  # the first format's layout is kept for all
        return buffer.getvalue()


def label_axes(axes: Axes, x: str, y: str = "", title: str = "", *, log: bool = False) -> None:
    """Label axes; a logarithmic horizontal axis shows plain numbers at 1 and 3 of every decade."""
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=x, ylabel=y, title=title)


def panel_grid(count: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels, and its axes row by row.

    Args:
        count: number of panels.
        columns: maximum number of columns.
        size: width and height of a panel in inches.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def reconstruction_picture(images: Mapping[str, NDArray[np.uint8]]) -> Picture:
    """Return originals, targets and reconstructions, one block of three rows per configuration.

    Args:
        images: configuration -> uint8 (3, n, C, H, W).
    """
    text = (
        "Originals (the first views), targets and reconstructions by a configuration's first seed. A reconstruction "
        "that has its target's place, pose and colours shows that the features hold them; an average of many shows "
        "that they do not."
    )
    figure, _ = _image_rows(images, ("original", "target", "reconstruction"))
    return Picture("reconstructions", "Reconstructions", text, figure)


def retrieved_picture(images: Mapping[str, NDArray[np.uint8]]) -> Picture:
    """Return first views, second views and retrieved views, one block of three rows per configuration.

    Args:
        images: configuration -> uint8 (3, n, C, H, W).
    """
    text = (
        "A ridge regression predicts the features of a second view from those of the first and the transform between "
        "them. Retrieved: of the views of the same held-out image or object, the one whose features are nearest to "
        "the prediction; framed: not the second view. One view of each of a few images; the share of hits of all "
        "is the metric retrieval, hit at 1. First seeds."
    )
    figure, grid = _image_rows(images, ("first view", "second view", "retrieved"))
    for axes, (_, wanted, found) in zip(grid, images.values(), strict=True):
        height, width = found.shape[-2:]
        for column in (found != wanted).reshape(len(found), -1).any(1).nonzero()[0]:
            place = (column * width - 0.5, 2 * height - 0.5)
            axes.add_patch(Rectangle(place, width, height, fill=False, color=COLOURS[1], lw=2))
    return Picture("retrieved", "Retrieval by predicted features", text, figure)


def _image_rows(images: Mapping[str, NDArray[np.uint8]], labels: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Return a figure with one block of rows of images per configuration, and its axes.

    Args:
        images: configuration -> uint8 (len(labels), n, C, H, W).
        labels: of the rows.
    """
    columns = next(iter(images.values())).shape[1]
    figure, grid = panel_grid(len(images), 1, (0.9 * columns + 1.4, 3.0))
    figure.set_layout_engine("compressed")  # otherwise labels next to images with a fixed aspect ratio are cut
    for axes, (name, block) in zip(grid, images.items(), strict=True):
        height = block.shape[3]
        axes.imshow(image_grid(block), interpolation="nearest")
        axes.set_yticks([height * (row + 0.5) for row in range(len(labels))], labels)
        axes.set_xticks([])
        hide_frame(axes)
        axes.set_title(name)
    return figure, grid


def heatmap_picture(summary: Summary) -> Picture | None:
    """Return R² of every factor, configuration by configuration, with one map per evaluated part of the features.

    With more than `MAX_ROWS` configurations, only the most important are shown. None if no factor is known.
    """
    rows = [c for c in selection.in_order(summary["configurations"]) if selection.members_of("r2", c["metrics"])]
    if not rows:
        return None
    rows, shown = selection.most_important(summary, rows, MAX_ROWS)
    factors = selection.members_of("r2", {metric for c in rows for metric in c["metrics"]})
    maps = {}
    for title, prefix in PARTS.items():
        values = np.stack([bounds_of(rows, prefix + metric)[:, 0] for metric in factors], axis=1)
        if np.isfinite(values).any():
            maps[title] = values
    highest = max(0.01, *(float(np.nanmax(values)) for values in maps.values()))
    width = 2.2 + len(maps) * max(1.6, 0.55 * len(factors))
    figure = Figure(figsize=(width, 1.5 + 0.25 * len(rows)))
    grid = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    for axes, (title, values) in zip(grid, maps.items(), strict=True):
        drawn = axes.imshow(values, vmin=0, vmax=highest, cmap="viridis", aspect="auto")
        axes.set_title(title)
        names = [factor_of(metric) for metric in factors]
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(rows)), [c["name"] for c in rows])
        axes.set_facecolor("#eeeeee")  # shown where a configuration has no such part
        hide_frame(axes)
        for (row, column), value in np.ndenumerate(values):
            colour = "black" if value > 0.65 * highest else "white"
            text = "" if np.isnan(value) else plain_number(value, 2)
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(drawn, ax=list(grid), label="R²", shrink=0.8, pad=0.02)
    title = "R² per factor and part of the features"
    return Picture("heatmap", title, f"Means over seeds on one scale; {shown}.", figure)


def forest_picture(summary: Summary) -> Picture | None:
    """Return the gains in the main metrics, one panel per metric and one row per configuration, without reference rows.

    None if no configuration has a gain.
    """
    metrics = [metric for metric in gain_metrics(summary) if metric in summary["minimum_detectable_difference"]]
    rows = selection.in_order(summary["configurations"])
    rows = [c for c in rows if c["name"] not in REFERENCES and any(metric in c["gains"] for metric in metrics)]
    if not rows:
        return None
    rows, shown = selection.most_important(summary, rows, MAX_ROWS)
    figure = Figure(figsize=(2.4 + 2.5 * len(metrics), 0.9 + 0.2 * len(rows)))
    grid = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(grid, metrics, strict=True):
        if detectable := summary["minimum_detectable_difference"][metric]:
            axes.axvspan(-detectable, detectable, color="#888888", alpha=0.12, lw=0)
        axes.axvline(0, color="black", lw=0.8)
        for place, c in enumerate(rows):
            if c["name"] == selection.choice(summary):
                axes.axhspan(place - 0.5, place + 0.5, color=COLOURS[0], alpha=0.12, lw=0)
            if gain := c["gains"].get(metric):
                bounds = np.array([gain["low"], gain["high"]], dtype=float)
                errors = np.abs(bounds - gain["estimate"])[:, None]
                colour, fill = (COLOURS[0], COLOURS[0]) if gain.get("significant") else ("#555555", "white")
                axes.errorbar(gain["estimate"], place, xerr=errors, fmt="o", ms=4.5, color=colour, mfc=fill, lw=1.1)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        label_axes(axes, f"Δ {label_of(metric)}")
    grid[0].set(yticks=range(len(rows)), yticklabels=[c["name"] for c in rows], ylim=(len(rows) - 0.5, -0.5))
    return Picture("forest", "Forest plot of the gains over the best control", FOREST.format(shown), figure)


def hide_frame(axes: Axes) -> None:
    """Remove grid, ticks and frame."""
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
