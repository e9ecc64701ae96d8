"""Designs: points of a space that are planned before the first result."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from eqssl.study.definition import DESIGNS, Sampler
from eqssl.study.search.space import Params, Space

MAX_GRID = 10_000  # combinations


def design_points(
    sampler: Sampler, space: Space, count: int, seed: int, base: Mapping[str, Any]
) -> list[Params] | None:
    """Return the points of a design, the first `count` of which a study trains; None for a sampler.

    There are no more than `count` unless that is too few for all values of every choice and two of every range.

    Args:
        sampler: grid: all combinations, ranges divided evenly; one-at-a-time: each parameter over its values, with the
            others at their base values; qmc: a scrambled Sobol sequence.
        space: the varied parameters.
        count: number of configurations asked for.
        seed: seed of the grid's order and of the Sobol sequence.
        base: option -> base value, of all options of the space.

    Raises:
        ValueError: for a grid with too many combinations.
    """
    if sampler not in DESIGNS:
        return None
    if not space:
        return [{}]
    if sampler == "grid":
        points = _grid(space, count)
        return [points[place] for place in np.random.default_rng(seed).permutation(len(points))]
    if sampler == "one-at-a-time":
        alone = {option: parameter for option, parameter in space.items() if parameter.exists_beside(base)}
        steps = max(2, count // max(len(alone), 1))
        return [{option: value} for option, parameter in alone.items() for value in parameter.grid(steps)]
    from scipy.stats import qmc

    points = []
    for quantiles in qmc.Sobol(len(space), rng=seed).random(1 << (count - 1).bit_length())[:count]:
        point: Params = {}
        for (option, parameter), quantile in zip(space.items(), quantiles, strict=True):
            if parameter.exists_beside(point):
                point[option] = parameter.at(quantile)
        points.append(point)
    return points


def _grid(space: Space, count: int) -> list[Params]:
    """Return all combinations, with ranges divided as finely as `count` allows."""
    points = _combinations(space, 2)
    if len(points) > MAX_GRID:
        total = math.prod(len(parameter.grid(2)) for parameter in space.values())
        raise ValueError(f"--sampler is grid, of which this space has {total:,} configurations; allowed: {MAX_GRID:,}")
    steps = 3
    while len(points) < len(finer := _combinations(space, steps)) <= min(count, MAX_GRID):
        points, steps = finer, steps + 1
    return points


def _combinations(space: Space, steps: int) -> list[Params]:
    """Return all combinations of existing options, or more than `MAX_GRID` incomplete ones."""
    points: list[Params] = [{}]
    for option, parameter in space.items():
        grown = []
        for point in points:
            values = parameter.grid(steps) if parameter.exists_beside(point) else []
            grown += [point | {option: value} for value in values] or [point]
        points = grown
        if len(points) > MAX_GRID:
            break
    return points
