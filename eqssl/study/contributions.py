"""Variance of metrics due to the sample of held-out images, from each image's contribution to a trial's metrics.

S seeds; U units: images, or objects with all their views.
"""

import logging
import math
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from eqssl.files import on_disk
from eqssl.stats import sampling_variance
from eqssl.study.definition import ONE_SEED
from eqssl.study.store.records import CONTRIBUTIONS

logger = logging.getLogger(__name__)

# Metric -> ids of units, int64 (U,), and their contributions, float (U,), whose mean is the metric.
Contributions = Mapping[str, tuple[NDArray, NDArray]]
Loader = Callable[[str], Contributions]


class SamplingVariances:
    """Variances of means and paired differences due to the sample of held-out images.

    Args:
        load: trial id -> its contributions; empty if none were saved.
        trials: configuration -> seed -> trial id; a configuration without an encoder has a single trial for all seeds.
        kept: number of configurations whose contributions are kept in memory.

    Attributes:
        known: metrics with contributions in the files that have been read.
    """

    def __init__(self, load: Loader, trials: Mapping[str, Mapping[int, str]], kept: int = 4):
        self._load, self._trials = load, trials
        self._seeds = sorted({seed for of_seeds in trials.values() for seed in of_seeds})
        self._ids: dict[str, NDArray] = {}  # metric -> units of the first trial; other trials' units are left out
        self.known: Collection[str] = self._ids.keys()
        self._contributions = lru_cache(kept)(self._read)
        self._variances: dict[tuple[str, str, str | None], float] = {}

    def metrics(self, configuration: str) -> list[str]:
        """Return the metrics whose contributions are known."""
        return list(self._contributions(configuration))

    def of(self, metric: str, candidate: str, control: str | None = None) -> float:
        """Return the variance of a configuration's mean, or of its paired difference from a control; NaN if unknown."""
        key = metric, candidate, control
        if key not in self._variances:
            ours = self._contributions(candidate).get(metric)
            theirs = self._contributions(control).get(metric) if control is not None else np.zeros(1)
            self._variances[key] = math.nan if ours is None or theirs is None else sampling_variance(ours - theirs)
        return self._variances[key]

    def _read(self, configuration: str) -> dict[str, NDArray]:
        """Return metric -> contributions (S, U), NaN where missing; (1, U) for a configuration without an encoder."""
        trials = self._trials.get(configuration, {})
        seeds = list(trials) if configuration in ONE_SEED else self._seeds
        found: dict[str, NDArray] = {}
        for seed, trial_id in trials.items():
            for metric, (ids, values) in self._load(trial_id).items():
                common = self._ids.setdefault(metric, ids)
                if metric not in found:
                    found[metric] = np.full((len(seeds), len(common)), np.nan)
                same = np.array_equal(ids, common)
                found[metric][seeds.index(seed)] = values if same else pd.Series(values, ids).reindex(common)
        return found


def read_contributions(folder: Path, trial_id: str) -> Contributions:
    """Return the contributions of a trial in a study's folder, OUTPUT/STUDY; empty if they cannot be read."""
    import pyarrow.parquet as pq

    try:
        with on_disk(folder / "trials" / trial_id / CONTRIBUTIONS) as path:
            table = pq.read_table(path, read_dictionary=["metric"]).combine_chunks()
    except FileNotFoundError:  # a trial of an earlier version
        return {}
    except (OSError, ValueError) as error:  # a truncated file affects the intervals' width, but must not fail the study
        logger.warning("%s of trial %s cannot be read: %s", CONTRIBUTIONS, trial_id, error)
        return {}
    ids, values, weights = (table[name].to_numpy() for name in ("unit", "value", "weight"))
    metrics = table["metric"].combine_chunks()
    codes, names = metrics.indices.to_numpy(), metrics.dictionary.to_pylist()
    starts = [0, *(np.flatnonzero(np.diff(codes)) + 1), len(codes)]  # the rows of a metric are contiguous
    pieces = (slice(*bounds) for bounds in pairwise(starts) if len(codes))
    return {names[codes[of.start]]: (ids[of], equally_weighted(values[of], weights[of])) for of in pieces}


def equally_weighted(values: NDArray, weights: NDArray) -> NDArray:
    """Return contributions (U,) whose plain mean is the weighted mean of values (U,).

    A weighted mean is a ratio of two sums that both depend on the sample: these are its influence values, whose
    variance over units is that of the ratio (delta method).
    """
    if (weights == weights[0]).all():
        return values
    mean = np.average(values, weights=weights)
    return mean + weights / weights.mean() * (values - mean)
