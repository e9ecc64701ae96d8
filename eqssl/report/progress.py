"""What a search had found for what it had trained: hypervolume against epochs."""

import math
from bisect import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from eqssl.report.figures import COLOURS, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def hypervolume_curve(summary: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Return, after every trial of the search in the order of suggestions, the epochs and the hypervolume so far.

    The volume is what complete trials dominate beyond the row `constant`, or beyond the worst of each objective where
    that row is missing; epochs of trials that were stopped or failed count, of reference rows they do not.

    Args:
        summary: what summary.json holds.
    """
    signs = {metric: 1 if way == "maximize" else -1 for metric, way in summary["objectives"].items()}
    trials = _in_order([t for t in summary["trials"] if t["number"] is not None], summary.get("stages", [math.inf]))
    values = [
        [sign * t["metrics"][f] for f, sign in signs.items()]
        if t["status"] == "COMPLETE" and signs.keys() <= t["metrics"].keys()
        else [-np.inf] * len(signs)
        for t in trials
    ]
    points = np.reshape(values, (len(trials), len(signs)))
    floor = next((c["metrics"] for c in summary["configurations"] if c["name"] == "constant"), {})
    worst = np.where(np.isinf(points), np.inf, points).min(0, initial=np.inf)
    reference = [
        sign * floor[f]["estimate"] if f in floor else low for (f, sign), low in zip(signs.items(), worst, strict=True)
    ]
    return np.cumsum([t["epochs"] for t in trials]).tolist(), _volumes(points, np.asarray(reference))


def _in_order(trials: list[dict[str, Any]], stages: Sequence[float]) -> list[dict[str, Any]]:
    """Return trials as they were suggested: in a race the seeds of one stage, of all configurations, before the next's.

    Args:
        trials: of the search.
        stages: seeds of a configuration after each stage; one that was suggested again has further seeds.
    """
    return sorted(trials, key=lambda t: (bisect(stages, t["seed"] % stages[-1]), t["number"], t["seed"]))


def _volumes(points: np.ndarray, reference: np.ndarray) -> list[float]:
    """Return the hypervolume after every point (N, M): of those on the front alone, which with many metrics are few."""
    front, volumes = points[:0], [0.0]
    for point in points:
        if (front >= point).all(1).any():
            volumes.append(volumes[-1])
        else:
            front = np.vstack([front[~(point >= front).all(1)], point])
            volumes.append(hypervolume(front, reference))
    return volumes[1:]


def progress_figure(summary: dict[str, Any]) -> "Figure":
    """Return the curve of the hypervolume as steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.step(*hypervolume_curve(summary), where="post", color=COLOURS[0])
    style(axes, "trained epochs of the search", "hypervolume")
    return figure


def hypervolume(values: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume that points (N, M) dominate beyond a reference point (M,), each metric better when larger."""
    points = np.asarray(values, dtype=float) - np.asarray(reference, dtype=float)
    points = points[(points > 0).all(1)]
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    order = np.argsort(-points[:, -1])  # slices along the last metric, from its best value down
    heights = points[order, -1]
    floors = np.append(heights[1:], 0.0)
    zero = np.zeros(points.shape[1] - 1)
    slices = (hypervolume(points[order[: i + 1], :-1], zero) for i in range(len(order)))
    return float(sum(area * (high - low) for area, high, low in zip(slices, heights, floors, strict=True)))
