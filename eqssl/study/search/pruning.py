"""Asynchronous successive halving for one figure or several (ASHA, Li et al., arXiv 1810.05934, by non-dominated rank).

At a rung, an epoch at which every trial is evaluated, a trial goes on if it is among the best third of all that came
there under the same seed. Nothing here knows Ray; the clock is the epoch.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from eqssl.config import TrainConfig
from eqssl.study.search.race import REDUCTION
from eqssl.study.search.ranking import best_first
from eqssl.study.store.records import TrialRecord

WORST = -1e12  # stands for a figure that is missing; finite, so that distances are


def rungs_of(train: TrainConfig) -> list[int]:
    """Return the epochs at which trials are compared: after a ninth and a third of all, but not in the warm-up.

    Each is a multiple of the first.
    """
    first = max(1, round(train.epochs / REDUCTION**2))
    return [rung for rung in (first, REDUCTION * first) if train.warmup_epochs < rung < train.epochs]


def evaluated_every(train: TrainConfig) -> int:
    """Return the epochs between evaluations of a trial that is compared: as given, else those before the first rung."""
    return train.eval_every or next(iter(rungs_of(train)), 0)


def check_rungs(train: TrainConfig) -> None:
    """Refuse a training on whose way no trial would be compared, or would not have been evaluated.

    Raises:
        ValueError: naming the option, its value and what is allowed.
    """
    rungs, every = rungs_of(train), train.eval_every
    if not rungs:
        raise ValueError(
            f"--stopping is halving; allowed with --train.epochs {train.epochs} and --train.warmup-epochs "
            f"{train.warmup_epochs:g}: none, since no ninth or third of the epochs lies between warm-up and end"
        )
    if every and rungs[0] % every:
        raise ValueError(
            f"--train.eval-every is {every}; allowed with --stopping halving, which compares after epoch {rungs[0]}: "
            "0 or what divides it"
        )


class Halving:
    """What has been seen at every rung.

    Args:
        train: of a whole trial.
        objectives: figure -> maximize or minimize.
        seeds: of the first stage of a race, or all; later ones belong to survivors, which are never ended.
    """

    def __init__(self, train: TrainConfig, objectives: Mapping[str, str], seeds: int):
        self._seeds = seeds
        self._rungs = set(rungs_of(train))
        self._signs = {figure: 1 if way == "maximize" else -1 for figure, way in objectives.items()}
        self._seen: dict[tuple[int, int], dict[str, list[float]]] = defaultdict(dict)

    def add(self, trial_id: str, seed: int, epoch: int, figures: Mapping[str, float]) -> None:
        """Take a trial's figures after an epoch; other epochs than the rungs, and other figures, are ignored."""
        if epoch in self._rungs:
            values = (sign * figures.get(figure, math.nan) for figure, sign in self._signs.items())
            self._seen[epoch, seed][trial_id] = [value if math.isfinite(value) else WORST for value in values]

    def restore(self, records: Iterable[TrialRecord]) -> None:
        """Take what finished trials had shown on their way."""
        for record in records:
            for epoch, figures in record.history.items():
                self.add(record.trial_id, record.seed, int(epoch), figures)

    def goes_on(self, trial_id: str, seed: int, epoch: int) -> bool:
        """Return whether a trial is good enough to go on, among those that came to this epoch so far."""
        seen = self._seen.get((epoch, seed), {})
        if trial_id not in seen or seed >= self._seeds:
            return True
        names = list(seen)
        best = best_first([seen[name] for name in names])[: -(-len(names) // REDUCTION)]
        return names.index(trial_id) in best
