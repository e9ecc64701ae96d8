"""The next trial: the reference rows first, then the suggested configurations with their seeds.

Under the fixed schedule every configuration gets all its seeds at once. Under halving all start with one seed; the
best third, by non-dominated rank, gets three, and the best third of these all.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eqssl.config import RunConfig, get
from eqssl.study.definition import REDUCTION, Study, count_trials, seed_stages
from eqssl.study.listener import Listener
from eqssl.study.options import StudyOptions
from eqssl.study.search.designs import design_points
from eqssl.study.search.ranking import best_first
from eqssl.study.search.sampler import Search
from eqssl.study.search.space import Configuration, Trial, exact
from eqssl.study.store.records import TrialRecord


@dataclass
class _Candidate:
    """A suggested configuration: its trials so far and the records of those that have ended."""

    configuration: Configuration
    first_seed: int
    trials: list[Trial] = field(default_factory=list)
    records: dict[str, TrialRecord] = field(default_factory=dict)
    told: bool = False  # whether the sampler knows the outcome of the first stage

    @property
    def settled(self) -> bool:
        """Whether all trials so far have ended."""
        return all(trial.id in self.records for trial in self.trials)

    def outcome(self) -> list[TrialRecord]:
        """Return the records of all trials so far."""
        return [self.records[trial.id] for trial in self.trials]


class Suggestions(Listener):
    """The trials of a study, one after the other.

    Args:
        study: its space, rows and objectives.
        options: configs, seeds, seed schedule and sampler; the sampler's seed is that of the training.

    Attributes:
        search: the sampler.
        total: number of trials, those of the reference rows included.
        ended: how many of these have ended before a resume.
        design: configurations of the whole design; 0 for a sampler.
        left_out: how many of these are not trained.
    """

    def __init__(self, study: Study, options: StudyOptions):
        seed, count = options.run.train.seed, study.count_configs(options.configs)
        base = {option: get(options.run, option) for option in study.space}
        self.search = Search(study.space, study.objectives, sampler=options.sampler, seed=seed)
        self._points = design_points(options.sampler, study.space, count, seed, base)
        self._left = count if self._points is None else min(count, len(self._points))
        self.design = 0 if self._points is None else len(self._points)
        self.left_out = max(0, self.design - count)
        self._stages, self._stage = seed_stages(options.seeds, options.seed_schedule), 0
        self._signs = [1 if direction == "maximize" else -1 for direction in study.objectives.values()]
        rows = [(row, 1 if row.overrides is None else options.seeds) for row in study.reference_configurations()]
        self._queue = deque(Trial(row, seed) for row, seeds in rows for seed in range(seeds))
        self.total = len(self._queue) + count_trials(self._left, self._stages)
        self.ended = 0
        self._candidates: list[_Candidate] = []  # by number
        self._in_stage: list[_Candidate] = []
        self._row_names = {row.name for row, _ in rows}
        self._names: dict[str, str] = {}  # exact overrides -> name
        self._times_suggested: Counter[str] = Counter()

    def restore(self, asked: list[Trial], records: dict[str, TrialRecord]) -> None:
        """Go on where an earlier process was killed: with its suggestions and results.

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
                    self._take(record)
        self._queue = deque(trial for trial in self._queue if trial.id not in records)
        self.ended = len(records)

    def work(self, base: RunConfig) -> int:
        """Return the epochs and evaluations of all trials to come; those not suggested yet count as the base."""
        later = self.total - self.ended - len(self._queue)
        return sum(trial.work(base) for trial in self._queue) + later * (base.train.epochs + 1)

    def next(self) -> Trial | None:
        """Return the next trial, or None where there is none: for good if `finished`, else until a trial has ended."""
        if not self._queue and self._left:
            self._suggest()
        elif not self._queue:
            self._promote()
        return self._queue.popleft() if self._queue else None

    @property
    def finished(self) -> bool:
        """Whether no further trial can come, however the running ones end."""
        last = self._stage == len(self._stages) - 1
        return not self._queue and not self._left and (last or not self._in_stage)

    def _suggest(self, overrides: dict[str, Any] | None = None) -> None:
        number = len(self._candidates)
        if overrides is None and self._points is not None:
            overrides = self._points[number]
        overrides = self.search.suggest(overrides)
        values = exact(overrides)
        if values not in self._names:
            taken = {*self._row_names, *self._names.values()}
            self._names[values] = Configuration.suggested(overrides, number, taken).name
        configuration = Configuration(self._names[values], overrides, number)
        # A repeated suggestion gets fresh seeds.
        first_seed = self._times_suggested[configuration.name] * self._stages[-1]
        self._times_suggested[configuration.name] += 1
        candidate = _Candidate(configuration, first_seed)
        self._candidates.append(candidate)
        self._in_stage.append(candidate)
        self._left -= 1
        self._enqueue(candidate, range(self._stages[0]))

    def _enqueue(self, candidate: _Candidate, seeds: range) -> None:
        trials = [Trial(candidate.configuration, candidate.first_seed + seed) for seed in seeds]
        candidate.trials += trials
        self._queue.extend(trial for trial in trials if trial.id not in candidate.records)

    def _promote(self) -> None:
        """Give the best of a stage their further seeds, once the whole stage has ended."""
        while not self._queue and self._stage < len(self._stages) - 1:
            if not all(candidate.settled for candidate in self._in_stage):
                return
            sound = [(c, mean) for c in self._in_stage if (mean := self._mean(c)) is not None]
            order = best_first([mean for _, mean in sound])[: -(-len(self._in_stage) // REDUCTION)]
            self._in_stage = [sound[place][0] for place in sorted(order)]
            seeds = range(self._stages[self._stage], self._stages[self._stage + 1])
            self._stage += 1
            for candidate in self._in_stage:
                self._enqueue(candidate, seeds)

    def _mean(self, candidate: _Candidate) -> np.ndarray | None:
        """Return the objectives (M,), each better when larger; None if a trial has none."""
        values = [self.search.values(record) for record in candidate.outcome()]
        sound = [of_seed for of_seed in values if of_seed is not None]
        return np.mean(sound, axis=0) * self._signs if len(sound) == len(values) else None

    def trial_ended(self, trial: Trial, record: TrialRecord) -> None:
        """Take the end of a trial."""
        self._take(record)

    def _take(self, record: TrialRecord) -> None:
        if record.number is None:
            return
        candidate = self._candidates[record.number]
        candidate.records[record.trial_id] = record
        if candidate.settled and not candidate.told:
            candidate.told = True
            self.search.tell(record.number, candidate.outcome())
