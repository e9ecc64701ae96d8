"""The progress of a search, hypervolume against trained epochs, and of its trials, learning curves."""

import json
import math
from bisect import bisect
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from eqssl.files import read
from eqssl.metrics import label_of
from eqssl.report import selection
from eqssl.report.figures import COLOURS, Picture, label_axes, panel_grid
from eqssl.report.selection import Summary
from eqssl.stats import on_front

TRAINED = {"ssl": "SSL loss, training", "recon": "reconstruction error, training"}
MIN_VOLUMES = 3  # different ones: a curve of fewer shows no search
CURVES = (
    "The study's main row, its controls and the best by each objective. Lines: means over seeds; bands: from the "
    "lowest to the highest seed. A loss that still falls at the last epoch calls for more of them."
)


def progress_picture(summary: Summary) -> Picture | None:
    """Return the step curve of the hypervolume against trained epochs; None if it rises only once or never."""
    epochs, volumes = hypervolume_curve(summary)
    if len(set(volumes)) < MIN_VOLUMES:
        return None
    caption = (
        "Volume in the space of the objectives that complete trials dominate, beyond a constant predictor; every trial "
        "of the search counts with its epochs, stopped ones too."
    )
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    axes.step(epochs, volumes, where="post", color=COLOURS[0])
    label_axes(axes, "trained epochs of the search", "hypervolume")
    return Picture("progress", "Hypervolume against training", caption, figure)


def learning_picture(summary: Summary, folder: Path | None) -> Picture | None:
    """Return training losses and evaluated objectives against epochs, of the study's main row and its controls.

    Epochs are read from the folders of these few trials; if these are missing, from the summary, which has
    only the objectives. None if nothing is known of two epochs.
    """
    curves, names = _epochs(summary, folder), selection.main_rows(summary)
    drawn = {}
    for metric in ["ssl", "recon", *summary["objectives"]] if len(curves) else ():
        known = curves[["configuration", "epoch", metric]].dropna() if metric in curves else curves[:0]
        # Without a reconstruction, its error is 0.
        kept = [of for _, of in known.groupby("configuration") if of["epoch"].nunique() > 1 and of[metric].any()]
        if kept:
            drawn[metric] = pd.concat(kept).groupby(["configuration", "epoch"])[metric].agg(["mean", "min", "max"])
    if not drawn:
        return None
    figure, grid = panel_grid(len(drawn), 4, (3.1, 2.7))
    handles = {}
    for axes, (metric, seeds) in zip(grid, drawn.items(), strict=True):
        for place, name in enumerate(names):
            if name in seeds.index:
                of, colour = seeds.loc[name], COLOURS[place % len(COLOURS)]
                (handles[name],) = axes.plot(of["mean"], "o-", ms=2.5, lw=1.2, color=colour)
                axes.fill_between(of.index, of["min"], of["max"], color=colour, alpha=0.15, lw=0)
        label_axes(axes, "epoch", title=TRAINED.get(metric) or label_of(metric))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3)
    return Picture("learning", "Learning curves", CURVES, figure)


def _epochs(summary: Summary, folder: Path | None) -> pd.DataFrame:
    """Return a row for every known epoch of the complete trials of the main row and its controls, with its metrics."""
    rows, names = [], selection.main_rows(summary)
    for trial in summary["trials"]:
        if trial["configuration"] in names and trial["status"] == "COMPLETE":
            text = folder and read(folder / "trials" / trial["trial_id"] / "epochs.json")
            known = json.loads(text or "[]")
            if not known:
                known = [{"epoch": int(epoch), **of} for epoch, of in trial["history"].items()]
                known.append(trial["metrics"] | {"epoch": trial["epochs"]})
            rows += [{"configuration": trial["configuration"], **of} for of in known]
    return pd.DataFrame(rows)


def hypervolume_curve(summary: Summary) -> tuple[list[int], list[float]]:
    """Return trained epochs and hypervolume after every trial of the search, in the order of suggestions.

    The volume is what complete trials dominate beyond the row `constant` or, if that row is missing, beyond the worst
    value of each objective. Epochs of stopped and failed trials count; those of reference rows do not. All
    configurations' seeds of one stage precede the next stage's; a configuration that was suggested again has further
    seeds.
    """
    signs = {metric: 1 if direction == "maximize" else -1 for metric, direction in summary["objectives"].items()}
    stages = summary.get("stages", [math.inf])  # seeds of a configuration after each stage
    trials = [t for t in summary["trials"] if t["number"] is not None]
    trials.sort(key=lambda t: (bisect(stages, t["seed"] % stages[-1]), t["number"], t["seed"]))
    points = np.full((len(trials), len(signs)), -np.inf)
    for point, trial in zip(points, trials, strict=True):
        if trial["status"] == "COMPLETE" and signs.keys() <= trial["metrics"].keys():
            point[:] = [sign * trial["metrics"][metric] for metric, sign in signs.items()]
    reference = np.where(np.isinf(points), np.inf, points).min(0, initial=np.inf)
    constant: dict[str, Any] = next((c["metrics"] for c in summary["configurations"] if c["name"] == "constant"), {})
    for place, (metric, sign) in enumerate(signs.items()):
        if metric in constant:
            reference[place] = sign * constant[metric]["estimate"]
    front, volume, volumes = np.empty((0, len(signs))), 0.0, []
    for point in points:
        if not (front >= point).all(1).any():  # otherwise it adds nothing
            front = np.vstack([front[~(front <= point).all(1)], point])
            volume = hypervolume(front, reference)
        volumes.append(volume)
    return np.cumsum([t["epochs"] for t in trials]).tolist(), volumes


def hypervolume(values: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume that points (N, M) dominate beyond a reference point (M,), larger being better everywhere."""
    points = np.asarray(values, dtype=float) - np.asarray(reference, dtype=float)
    points = points[(points > 0).all(1)]
    points = points[on_front(points)]
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    points = points[np.argsort(-points[:, -1])]  # slices along the last metric, from its best value down
    floors = np.append(points[1:, -1], 0.0)
    zero = np.zeros(points.shape[1] - 1)
    areas = [hypervolume(points[: count + 1, :-1], zero) for count in range(len(points))]
    return float(np.dot(areas, points[:, -1] - floors))
