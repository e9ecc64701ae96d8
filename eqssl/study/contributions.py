"""How much of a difference is owed to the held-out images at hand: variances from what each image adds to a metric."""

import logging
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eqssl.stats import sampling_variance
from eqssl.study.store.records import CONTRIBUTIONS

logger = logging.getLogger(__name__)

Units = tuple[NDArray[np.int64], NDArray[np.float32]]  # ids and values of U units
Loader = Callable[[str], Mapping[str, Units]]
KEPT = 32  # configurations in memory: the controls, the best by each metric and the candidate


class SamplingVariances:
    """Variances of means and paired differences that stem from the sample of held-out images.

    Args:
        load: trial id -> metric -> (unit ids (U,), values (U,)), whose mean is the metric; empty where none were saved.
        trials: configuration -> seed -> trial id; one without an encoder has a single trial for all seeds.
    """

    def __init__(self, load: Loader, trials: Mapping[str, Mapping[int, str]]):
        self._load, self._trials = load, trials
        self._of_configuration = lru_cache(KEPT)(self._read)
        self._known: dict[tuple[str, str | None], dict[str, float]] = {}

    def of(self, candidate: str, control: str | None = None) -> Mapping[str, float]:
        """Return metric -> variance of the candidate's mean, or of its paired difference from a control.

        Args:
            candidate, control: configurations; metrics that either lacks are left out.
        """
        pair = candidate, control
        if pair not in self._known:
            self._known[pair] = self._variances(candidate, control)
        return self._known[pair]

    def _variances(self, candidate: str, control: str | None) -> dict[str, float]:
        ours = self._of_configuration(candidate)
        theirs = self._of_configuration(control) if control is not None else None
        found = {}
        for metric in ours if theirs is None else ours.keys() & theirs.keys():
            if theirs is None:
                found[metric] = sampling_variance(_stack(list(ours[metric].values())))
            elif pairs := _paired(ours[metric], theirs[metric]):
                stacked = _stack([units for pair in pairs for units in pair])
                found[metric] = sampling_variance(stacked[::2], stacked[1::2])
        return {metric: variance for metric, variance in found.items() if math.isfinite(variance)}

    def _read(self, configuration: str) -> dict[str, dict[int, Units]]:
        """Return metric -> seed -> units."""
        found: dict[str, dict[int, Units]] = {}
        shared: NDArray[np.int64] = np.empty(0, np.int64)  # one copy of the ids serves all metrics and seeds
        for seed, trial_id in self._trials.get(configuration, {}).items():
            for metric, (ids, values) in self._load(trial_id).items():
                shared = shared if np.array_equal(shared, ids) else ids
                found.setdefault(metric, {})[seed] = shared, values
        return found


def _paired(ours: Mapping[int, Units], theirs: Mapping[int, Units]) -> list[tuple[Units, Units]]:
    if len(theirs) == 1 and len(ours) > 1:  # without an encoder: the same for every seed
        (only,) = theirs.values()
        return [(units, only) for units in ours.values()]
    return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]


def _stack(units: list[Units]) -> NDArray:
    """Return the values of the units that all have, float64 (N, U)."""
    first = units[0][0]
    if all(ids is first or np.array_equal(ids, first) for ids, _ in units):
        return np.stack([values for _, values in units]).astype(float)
    common = first
    for ids, _ in units[1:]:
        common = np.intersect1d(common, ids)
    return np.stack([values[np.searchsorted(ids, common)] for ids, values in units]).astype(float)


def contributions_of(folder: Path) -> Loader:
    """Return what loads the contributions of a study's trials, for `SamplingVariances`.

    Args:
        folder: OUTPUT/STUDY.
    """

    def load(trial_id: str) -> dict[str, Units]:
        from eqssl.evaluation.predictions import load_contributions

        try:
            found = load_contributions(folder / "trials" / trial_id / CONTRIBUTIONS)
        except FileNotFoundError:  # of an earlier version
            return {}
        except (OSError, ValueError) as error:  # a cut file costs some width of the intervals, and no study
            logger.warning("%s of trial %s cannot be read: %s", CONTRIBUTIONS, trial_id, error)
            return {}
        return {metric: _units(*map(np.asarray, columns)) for metric, columns in found.items()}

    return load


def _units(ids: NDArray, values: NDArray, weights: NDArray) -> Units:
    """Return units in the order of their ids, with values whose plain mean is the weighted mean.

    A weighted mean is a ratio of two sums that both depend on the sample: these are its influence values, whose
    variance over units is that of the ratio (delta method).
    """
    order = np.argsort(ids, kind="stable")
    ids, values, weights = ids[order], values[order].astype(float), weights[order].astype(float)
    total = weights.sum()
    if total <= 0:
        return ids, values.astype(np.float32)
    mean = (weights * values).sum() / total
    return ids, (mean + weights * len(weights) / total * (values - mean)).astype(np.float32)
