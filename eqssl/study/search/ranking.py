"""The order of configurations by several metrics at once."""

import numpy as np
from numpy.typing import ArrayLike

from eqssl.stats import on_front


def best_first(values: ArrayLike) -> list[int]:
    """Return the rows from the best to the worst: by non-dominated rank, within a rank by crowding distance (NSGA-II).

    With one metric this is plain sorting; among equals the earlier row comes first.

    Args:
        values: float (N, M), M metrics, each better when larger.

    Returns:
        N row numbers.
    """
    values = np.asarray(values, dtype=float)
    left, order = np.arange(len(values)), []
    while len(left):
        front = left[on_front(values[left])]
        order += front[np.argsort(-crowding_distance(values[front]), kind="stable")].tolist()
        left = np.setdiff1d(left, front)
    return order


def crowding_distance(front: ArrayLike) -> np.ndarray:
    """Return the crowding distance (N,) of the points of a front (N, M), infinite at its ends (Deb et al., 2002)."""
    front = np.asarray(front, dtype=float)
    distance = np.zeros(len(front))
    for column in front.T:
        order = np.argsort(column, kind="stable")
        extent = (column[order[-1]] - column[order[0]]) or 1.0
        distance[order[[0, -1]]] = np.inf
        distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / extent
    return distance


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
