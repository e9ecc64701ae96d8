"""The pruner: asynchronous successive halving by one metric or several (ASHA, Li et al., arXiv 1810.05934).

At a rung, an epoch at which every trial is evaluated, a trial continues if it is among the best third, by non-dominated
rank, of all trials that reached the rung under the same seed. Nothing here imports Ray; time is measured in epochs.
"""

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from eqssl.config import TrainConfig
from eqssl.stats import on_front
from eqssl.study.definition import REDUCTION
from eqssl.study.store.records import TrialRecord

WORST = -1e12  # in place of a missing metric; finite, so that distances are too


def rungs_of(train: TrainConfig) -> list[int]:
    """Return the epochs at which trials are compared: after a ninth and a third of all, but not during warm-up.

    Each is a multiple of the first.
    """
    first = max(1, round(train.epochs / REDUCTION**2))
    return [rung for rung in (first, REDUCTION * first) if train.warmup_epochs < rung < train.epochs]


def evaluated_every(train: TrainConfig) -> int:
    """Return the epochs between evaluations of a trial under the pruner: as given, or those before the first rung."""
    return train.eval_every or next(iter(rungs_of(train)), 0)


def check_rungs(train: TrainConfig) -> None:
    """Refuse a training without a rung, or without an evaluation at its rungs.

    Raises:
        ValueError: naming the option, its value and the allowed values.
    """
    rungs, every = rungs_of(train), train.eval_every
    if not rungs:
        raise ValueError(
            f"--pruner is halving; allowed with --train.epochs {train.epochs} and --train.warmup-epochs "
            f"{train.warmup_epochs:g}: none, since no ninth or third of the epochs lies between warm-up and end"
        )
    if every and rungs[0] % every:
        raise ValueError(
            f"--train.eval-every is {every}; allowed with --pruner halving, which compares after epoch {rungs[0]}: "
            "0 or a divisor of that"
        )


class Halving:
    """The metrics of all trials at every rung.

    Args:
        train: training options of a whole trial.
        objectives: metric -> maximize or minimize.
        seeds: number of seeds in the first stage of the seed schedule; trials of later stages are never pruned.
    """

    def __init__(self, train: TrainConfig, objectives: Mapping[str, str], seeds: int):
        self._seeds = seeds
        self._rungs = set(rungs_of(train))
        self._signs = {metric: 1 if direction == "maximize" else -1 for metric, direction in objectives.items()}
        self._seen: dict[tuple[int, int], dict[str, list[float]]] = defaultdict(dict)  # (rung, seed) -> trial -> values

    def add(self, record: TrialRecord) -> None:
        """Add the history of a trial, running or ended; epochs between the rungs, and other metrics, are ignored."""
        for epoch in self._rungs & set(map(int, record.history)):
            metrics = record.history[str(epoch)]
            values = (sign * metrics.get(metric, math.nan) for metric, sign in self._signs.items())
            found = [value if math.isfinite(value) else WORST for value in values]
            self._seen[epoch, record.seed][record.trial_id] = found

    def goes_on(self, record: TrialRecord) -> bool:
        """Return whether a trial continues, by comparison with those that have reached its epoch so far."""
        seen = self._seen.get((record.epochs, record.seed), {})
        if record.trial_id not in seen or record.seed >= self._seeds:
            return True
        best = best_first(list(seen.values()))[: -(-len(seen) // REDUCTION)]
        return list(seen).index(record.trial_id) in best


def best_first(values: ArrayLike) -> list[int]:
    """Return the rows from best to worst: by non-dominated rank, within a rank by crowding distance (NSGA-II).

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
