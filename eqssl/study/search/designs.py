"""Designs: points of a space that are planned before the first result."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from eqssl.study.definition import DESIGNS, Sampler
from eqssl.study.search.space import Range, Space, existing

MAX_GRID = 10_000  # combinations


def design_points(
    sampler: Sampler, space: Space, count: int, seed: int, base: Mapping[str, Any]
) -> list[dict[str, Any]] | None:
    """Return the points of a design, of which a study trains the first `count`; None for a sampler.

    There are no more than `count` unless that is too few for all values of the lists and two of each range.

    Args:
        sampler: grid: all combinations, ranges cut evenly; one-at-a-time: each parameter over its values, the others
            at their base values; qmc: a scrambled Sobol sequence.
        space: the varied parameters.
        count: configurations asked for.
        seed: of the order and of the sequence.
        base: option -> base value, of all options of the space.

    Raises:
        ValueError: for a grid of too many combinations.
    """
    if sampler not in DESIGNS:
        return None
    if not space:
        return [{}]
    if sampler == "grid":
        points = _grid(space, count)
        return [points[i] for i in np.random.default_rng(seed).permutation(len(points))]
    if sampler == "one-at-a-time":
        alone = {option: parameter for option, parameter in space.items() if parameter.exists_beside(base)}
        steps = max(2, count // max(len(alone), 1))
        return [{option: value} for option, parameter in alone.items() for value in parameter.grid(steps)]
    from scipy.stats import qmc

    quantiles = qmc.Sobol(len(space), rng=seed).random(1 << (count - 1).bit_length())[:count]
    at = [{option: space[option].at(q) for option, q in zip(space, row, strict=True)} for row in quantiles]
    return [existing(space, values) for values in at]


def _grid(space: Space, count: int) -> list[dict[str, Any]]:
    """Return all combinations, ranges cut as finely as `count` allows."""

    def combinations(steps: int) -> int:  # conditions apart
        return math.prod(len(parameter.grid(steps)) for parameter in space.values())

    if (total := combinations(2)) > MAX_GRID:
        raise ValueError(f"--sampler is grid, of which this space has {total:,} configurations; allowed: {MAX_GRID:,}")
    ranges = sum(isinstance(parameter, Range) for parameter in space.values())
    steps = max(2, int((count / combinations(1)) ** (1 / max(ranges, 1)) + 1e-9))
    points = _combinations(space, steps)
    # A step finer where some options do not exist beside others, so that there are fewer points than combinations.
    while combinations(steps + 1) <= MAX_GRID:
        finer = _combinations(space, steps := steps + 1)
        if not len(points) < len(finer) <= count:
            break
        points = finer
    return points


def _combinations(space: Space, steps: int) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = [{}]
    for option, parameter in space.items():
        grown = []
        for point in points:
            values = parameter.grid(steps) if parameter.exists_beside(point) else []
            grown += [point | {option: value} for value in values] or [point]
        points = grown
    return points
