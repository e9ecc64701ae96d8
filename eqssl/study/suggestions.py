"""Which trial comes next: the reference rows, then Optuna's suggestions, every configuration with all its seeds.

Optuna is told the truth: the mean over the seeds once all have ended, or that the configuration failed.
"""

import math
from collections import defaultdict, deque
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from eqssl.config import RunConfig
from eqssl.study.definition import Sampler, Study
from eqssl.study.listener import Listener
from eqssl.study.record import TrialRecord
from eqssl.study.space import Configuration, Range, Space, Trial

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Suggestions(Listener):
    """The trials of a study, one after the other.

    Args:
        study: its space, rows and objectives.
        trials: how many trials the search may have, all seeds counted.
        seeds: how many a configuration gets.
        seed: of the sampler.
    """

    def __init__(self, study: Study, *, trials: int, seeds: int, sampler: Sampler, seed: int):
        self._study, self._seeds, self._left = study, seeds, trials
        self._distributions = {option: values.distribution() for option, values in study.space.items()}
        if sampler == "grid":
            grid = grid_of(study.space, -(-trials // seeds))
            self._left = min(trials, seeds * math.prod(len(values) for values in grid.values()))
            whole = _Grid(grid, seed=seed)
            self._sampler = lambda number: whole
        else:
            self._sampler = partial(make_sampler, sampler, seed)
        self.optuna = optuna.create_study(directions=list(study.objectives.values()))
        self._queue: deque[Trial] = deque()
        for row in study.reference_configurations():
            self._queue.extend(Trial(row, seed) for seed in range(seeds if row.overrides is not None else 1))
        self.ended = 0
        self._expected: dict[int, set[str]] = {}
        self._ended: dict[int, list[TrialRecord]] = defaultdict(list)
        self._times_suggested: dict[str, int] = defaultdict(int)
        self.total = len(self._queue) + self._left

    def restore(self, asked: list[Trial], records: dict[str, TrialRecord]) -> None:
        """Take up where an earlier process was killed: its suggestions again, its finished trials told, not repeated.

        Args:
            asked: trials that were suggested, in that order.
            records: trial id -> record of those that have ended.
        """
        suggested = {t.configuration.number: t.configuration.overrides for t in asked}
        suggested.pop(None, None)  # the reference rows
        for number, overrides in sorted(suggested.items()):
            self.optuna.enqueue_trial(overrides)
            self._ask()
            for record in records.values():
                if record.number == number:
                    self.tell(record)
        self._queue = deque(trial for trial in self._queue if trial.id not in records)
        self.ended = len(records)

    def work(self, base: RunConfig) -> int:
        """Return the epochs and evaluations of all trials to come; what is not suggested yet counts as the base."""
        return sum(trial.work(base) for trial in self._queue) + self._left * (base.train.epochs + 1)

    def next(self) -> Trial | None:
        """Return the next trial, or None where there is no more."""
        if not self._queue and self._left > 0:
            self._ask()
        return self._queue.popleft() if self._queue else None

    def _ask(self) -> None:
        self.optuna.sampler = self._sampler(len(self._expected))
        suggestion = self.optuna.ask(self._distributions)
        configuration = Configuration.suggested(dict(suggestion.params), suggestion.number)
        first = self._times_suggested[configuration.name] * self._seeds  # a repeated suggestion gets fresh seeds
        self._times_suggested[configuration.name] += 1
        count = min(self._seeds, self._left)
        self._left -= count
        trials = [Trial(configuration, first + i) for i in range(count)]
        self._expected[suggestion.number] = {trial.id for trial in trials}
        self._queue.extend(trials)

    def trial_ended(self, trial: Trial, record: TrialRecord) -> None:
        self.tell(record)

    def tell(self, record: TrialRecord) -> None:
        """Take the end of a trial; the last seed of a configuration settles Optuna's trial."""
        number = record.number
        if number is None:
            return
        self._ended[number].append(record)
        if {r.trial_id for r in self._ended[number]} != self._expected[number]:
            return
        values = [self._values(r) for r in self._ended[number]]
        if any(v is None for v in values):
            self.optuna.tell(number, state=TrialState.FAIL)
        else:
            self.optuna.tell(number, [sum(column) / len(column) for column in zip(*values, strict=True)])

    def _values(self, record: TrialRecord) -> list[float] | None:
        if record.status != "COMPLETE" or any(name not in record.metrics for name in self._study.objectives):
            return None
        return [record.metrics[name] for name in self._study.objectives]


class _Grid(GridSampler):
    def after_trial(self, *ended: Any) -> None:
        """Nothing: at the last point the original stops `study.optimize`, and fails without it."""


def grid_of(space: Space, configurations: int) -> dict[str, list]:
    """Return option -> values of a grid with up to `configurations` points if no option is a list of values."""
    ranges = sum(isinstance(values, Range) for values in space.values())
    per_range = max(1, int(configurations ** (1 / max(ranges, 1)) + 1e-9))
    return {option: values.grid(per_range) for option, values in space.items()}


def make_sampler(name: Sampler, seed: int, number: int) -> BaseSampler:
    """Return one of Optuna's samplers, seeded for one suggestion, so that a resumed study goes on as it would have."""
    numbered = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return RandomSampler(seed=numbered) if name == "random" else TPESampler(seed=numbered)
