"""The forest plot: the gain of every configuration over its best control, with its interval."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eqssl.metrics import label_of
from eqssl.report import selection
from eqssl.report.figures import COLOURS, MAX_ROWS, Picture, label_axes
from eqssl.report.selection import REFERENCES, Summary
from eqssl.report.tables import gain_metrics

CAPTION = (
    "Paired differences from the best of a configuration's controls, metric by metric; bars: 95 %. Filled: "
    "significant, with the comparisons of its table accounted for. Grey band: the minimum detectable difference. "
    "Shaded: the choice. Shown: {}."
)


def forest_picture(summary: Summary) -> Picture | None:
    """Return the gains in the main metrics, a panel a metric and a row a configuration, reference rows aside.

    None where no configuration has a gain.
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
    return Picture("forest", "Forest plot of the gains over the best control", CAPTION.format(shown), figure)
