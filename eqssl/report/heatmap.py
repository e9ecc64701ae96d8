"""R2 of every factor, configuration by configuration, in all features and in their two parts."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eqssl.report.fronts import front_members
from eqssl.report.tables import in_order
from eqssl.study.definition import REFERENCE_ROWS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = {"all features": "", "invariant part": "inv/", "equivariant part": "equi/"}
MOST = 40  # rows that can be read


def heatmap_rows(summary: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Return the configurations that are shown, and which these are, in words.

    All of them up to `MOST`; else those on the front, the best by each objective and the reference rows, then others.
    """
    rows = [c for c in in_order(summary["configurations"]) if any(f.startswith("r2/") for f in c["metrics"])]
    if len(rows) <= MOST:
        return rows, f"all {len(rows)} configurations"
    shown = front_members(summary) | {summary["best"][metric] for metric in summary["objectives"]}
    first = sorted(rows, key=lambda c: (c["name"] not in shown, c["name"] not in REFERENCE_ROWS))[:MOST]
    picked = {c["name"] for c in first}
    words = f"the front, the best by each objective and reference rows first: {MOST} of {len(rows)} configurations"
    return [c for c in rows if c["name"] in picked], words


def heatmap_figure(rows: list[dict[str, Any]]) -> "Figure":
    """Return a map for every part of the features that has been evaluated.

    Args:
        rows: configurations of the summary.
    """
    from matplotlib.figure import Figure

    factors = sorted({f.removeprefix("r2/") for c in rows for f in c["metrics"] if f.startswith("r2/")})
    maps = {title: _values(rows, [f"{prefix}r2/{factor}" for factor in factors]) for title, prefix in PARTS.items()}
    maps = {title: values for title, values in maps.items() if np.isfinite(values).any()}
    highest = max(0.01, *(float(np.nanmax(values)) for values in maps.values()))
    width = 2.2 + len(maps) * max(1.6, 0.55 * len(factors))
    figure = Figure(figsize=(width, 1.5 + 0.25 * len(rows)), layout="constrained")
    grid = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    for axes, (title, values) in zip(grid, maps.items(), strict=True):
        drawn = axes.imshow(values, vmin=0, vmax=highest, cmap="viridis", aspect="auto")
        axes.set_facecolor("#eeeeee")  # where a configuration has no such part
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xticks(range(len(factors)), factors, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(rows)), [c["name"] for c in rows], fontsize=8)
        axes.tick_params(length=0)
        for (row, column), value in np.ndenumerate(values):
            colour = "black" if value > 0.65 * highest else "white"
            text = "" if np.isnan(value) else f"{round(value, 2) + 0.0:.2f}".replace("0.", ".", 1)
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(drawn, ax=list(grid), label="R²", shrink=0.8, pad=0.02)
    return figure


def _values(rows: list[dict[str, Any]], metrics: list[str]) -> NDArray:
    found = [[c["metrics"].get(metric, {}).get("estimate") for metric in metrics] for c in rows]
    return np.array(found, dtype=float)
