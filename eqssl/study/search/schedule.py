"""Which trial comes next: the reference rows, then the search's configurations with their seeds.

Without a race every configuration gets all its seeds at once. In a race all start with one; the best third, by
non-dominated rank, gets three, and the best third of these all.
"""

from collections import defaultdict, deque
from typing import Any

import numpy as np

from eqssl.config import RunConfig
from eqssl.study.definition import Sampler, Study
from eqssl.study.listener import Listener
from eqssl.study.search.race import REDUCTION, stages_of, trials_of
from eqssl.study.search.ranking import best_first
from eqssl.study.search.sampler import Search
from eqssl.study.search.space import Configuration, Trial
from eqssl.study.store.records import TrialRecord


class Suggestions(Listener):
    """The trials of a study, one after the other.

    Args:
        study: its space, rows and objectives.
        trials: how many trials the search may have, all seeds counted.
        seeds: how many a configuration gets, in a race if it survives all stages.
        sampler: a design or one of Optuna's samplers.
        seed: of the sampler.
        race: whether configurations start with one seed.
    """

    def __init__(self, study: Study, *, trials: int, seeds: int, sampler: Sampler, seed: int, race: bool = False):
        self._stages, self._objectives = stages_of(seeds, race), study.objectives
        # Of the first stage; a last configuration may have fewer seeds than the others, but not in a race.
        count = next(n for n in range(trials, -1, -1) if trials_of(n, self._stages) <= trials)
        self._left = count if len(self._stages) > 1 else trials
        count = -(-self._left // self._stages[0])
        self.search = Search(study.space, study.objectives, sampler=sampler, seed=seed, count=count)
        self.design, self.left_out = 0, 0  # configurations of the design, and for how many no trials are left
        if study.space and self.search.points is not None:
            self.design = len(self.search.points)
            self.left_out = max(0, self.design - count)
            self._left = min(self._left, self._stages[0] * self.design)
        rows = study.reference_configurations()
        self._queue = deque(Trial(row, s) for row in rows for s in range(seeds if row.overrides is not None else 1))
        further = trials_of(count, self._stages) - count * self._stages[0]
        self.total = len(self._queue) + self._left + further
        self.ended = 0
        self._stage = 0
        self._running: list[int] = []  # configurations of this stage
        self._configurations: list[tuple[Configuration, int]] = []  # with its first seed
        self._expected: dict[int, list[str]] = defaultdict(list)
        self._untold: dict[int, list[str]] = {}  # the trials of those whose end the search does not know
        self._ended: dict[int, dict[str, TrialRecord]] = defaultdict(dict)
        self._times_suggested: dict[str, int] = defaultdict(int)

    def restore(self, asked: list[Trial], records: dict[str, TrialRecord]) -> None:
        """Take up where an earlier process was killed: its suggestions again, its finished trials told, not repeated.

        Args:
            asked: trials that were suggested, in that order.
            records: trial id -> record of those that have ended.
        """
        suggested = {t.configuration.number: t.configuration.overrides for t in asked}
        suggested.pop(None, None)  # the reference rows
        for number, overrides in sorted(suggested.items()):
            self._suggest(overrides)
            for record in records.values():
                if record.number == number:
                    self.tell(record)
        self._queue = deque(trial for trial in self._queue if trial.id not in records)
        self.ended = len(records)

    def work(self, base: RunConfig) -> int:
        """Return the epochs and evaluations of all trials to come; what is not suggested yet counts as the base."""
        later = self.total - self.ended - len(self._queue)
        return sum(trial.work(base) for trial in self._queue) + later * (base.train.epochs + 1)

    def next(self) -> Trial | None:
        """Return the next trial, or None where there is none: for good if `finished`, else until a trial has ended."""
        if not self._queue:
            self._suggest() if self._left else self._promote()
        return self._queue.popleft() if self._queue else None

    @property
    def finished(self) -> bool:
        """Whether no further trial can come, however those that run may end."""
        return not (self._queue or self._left) and (self._stage == len(self._stages) - 1 or not self._running)

    def _suggest(self, overrides: dict[str, Any] | None = None) -> None:
        number = len(self._configurations)
        configuration = Configuration.suggested(self.search.suggest(overrides), number)
        first = self._times_suggested[configuration.name] * self._stages[-1]  # a repeated suggestion gets fresh seeds
        self._times_suggested[configuration.name] += 1
        self._configurations.append((configuration, first))
        self._running.append(number)
        seeds = min(self._stages[0], self._left)
        self._left -= seeds
        self._enqueue(number, range(seeds))
        self._untold[number] = self._expected[number].copy()

    def _enqueue(self, number: int, seeds: range) -> None:
        configuration, first = self._configurations[number]
        trials = [Trial(configuration, first + seed) for seed in seeds]
        self._expected[number] += [trial.id for trial in trials]
        self._queue.extend(trial for trial in trials if trial.id not in self._ended[number])

    def _promote(self) -> None:
        """Give the best of a stage their further seeds, once all of it has ended."""
        if self._stage == len(self._stages) - 1 or not all(map(self._settled, self._running)):
            return
        means = {n: mean for n in self._running if (mean := self._mean(n)) is not None}
        survivors = -(-len(self._running) // REDUCTION)
        order = best_first(list(means.values()))[:survivors]
        self._running = sorted(list(means)[i] for i in order)
        before, self._stage = self._stages[self._stage], self._stage + 1
        for number in self._running:
            self._enqueue(number, range(before, self._stages[self._stage]))
        if not self._queue:
            self._promote()

    def _settled(self, number: int) -> bool:
        return all(trial_id in self._ended[number] for trial_id in self._expected[number])

    def _mean(self, number: int) -> np.ndarray | None:
        """Return a configuration's objectives, all better when larger; None if a trial has none."""
        expected = [self._ended[number][trial_id] for trial_id in self._expected[number]]
        values = [self.search.values(record) for record in expected]
        signs = [1 if way == "maximize" else -1 for way in self._objectives.values()]
        return None if None in values else np.mean(values, axis=0) * signs

    def trial_ended(self, trial: Trial, record: TrialRecord) -> None:
        self.tell(record)

    def tell(self, record: TrialRecord) -> None:
        """Take the end of a trial; the last of a configuration's first seeds settles what the sampler is told."""
        number = record.number
        if number is None:
            return
        ended = self._ended[number]
        ended[record.trial_id] = record
        first = self._untold.get(number)
        if first and all(trial_id in ended for trial_id in first):
            self.search.tell(number, [ended[trial_id] for trial_id in self._untold.pop(number)])
