"""Points of a space that are planned before the first result, and Optuna's samplers, which learn from results."""

import itertools
import math
import warnings
from typing import Any

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler

from eqssl.study.definition import Sampler
from eqssl.study.search.space import Range, Space, chosen_by

STARTS = 10  # random points before a sampler goes by results
MOST = 10_000  # combinations of a grid
SAMPLERS = {
    "random": lambda seed: RandomSampler(seed),
    "tpe": lambda seed: TPESampler(multivariate=True, group=True, n_startup_trials=STARTS, seed=seed),
    "gp": lambda seed: GPSampler(n_startup_trials=STARTS, seed=seed),
    "nsga2": lambda seed: NSGAIISampler(population_size=STARTS, seed=seed),
    "nsga3": lambda seed: NSGAIIISampler(population_size=STARTS, seed=seed),
}


def planned(sampler: Sampler, space: Space, count: int, seed: int) -> list[dict[str, Any]] | None:
    """Return the points of a design, of which a study trains the first `count`; None for a sampler.

    There are no more than `count` unless that is too few for all values of the lists and two of each range.

    Args:
        sampler: grid: all combinations, ranges cut evenly; one-at-a-time: each parameter over its values, the others
            left as the study's base has them; qmc: a scrambled Sobol sequence.
        space: what is varied.
        count: configurations asked for.
        seed: of the order and of the sequence.

    Raises:
        ValueError: for a grid of too many combinations.
    """
    if sampler == "grid":
        points = _grid(space, count)
    elif sampler == "one-at-a-time":
        steps = max(2, count // max(len(space), 1))
        return [{option: value} for option, values in space.items() for value in values.grid(steps)]
    elif sampler == "qmc":
        return _sobol(space, count, seed)
    else:
        return None
    return [points[i] for i in np.random.default_rng(seed).permutation(len(points))]


def _grid(space: Space, count: int) -> list[dict[str, Any]]:
    ranges = sum(isinstance(values, Range) for values in space.values())
    lists = math.prod(len(values.grid(1)) for values in space.values())
    steps = max(2, int((count / lists) ** (1 / max(ranges, 1)) + 1e-9))
    if (total := lists * steps**ranges) > MOST:
        raise ValueError(f"--sampler is grid, of which this space has {total:,} configurations; allowed: {MOST:,}")
    points = _combinations(space, steps)
    while ranges and lists * (steps + 1) ** ranges <= MOST:  # where some do not exist beside others
        finer, steps = _combinations(space, steps + 1), steps + 1
        if not len(points) < len(finer) <= count:
            break
        points = finer
    return points


def _combinations(space: Space, steps: int) -> list[dict[str, Any]]:
    combinations = itertools.product(*(values.grid(steps) for values in space.values()))
    existing = (_existing(space, dict(zip(space, values, strict=True))) for values in combinations)
    return list({repr(point): point for point in existing}.values())


def _sobol(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    from scipy.stats import qmc

    places = qmc.Sobol(max(len(space), 1), rng=seed).random(1 << (count - 1).bit_length())[:count]
    return [_existing(space, {o: v.at(p) for (o, v), p in zip(space.items(), row, strict=False)}) for row in places]


def _existing(space: Space, point: dict[str, Any]) -> dict[str, Any]:
    return chosen_by(space, lambda option, values: point[option])


def make_sampler(name: Sampler, seed: int, number: int) -> BaseSampler:
    """Return one of Optuna's samplers, seeded for one suggestion, so that a resumed study goes on as it would have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[name](int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
