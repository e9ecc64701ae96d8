"""The next trial: the reference rows first, then the suggested configurations with their seeds.

Under the fixed schedule every configuration gets all its seeds at once. Under halving all start with one seed; the
best third, by non-dominated rank, get three, and the best third of these get all.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

from eqssl.config import get
from eqssl.study.definition import ONE_SEED, REDUCTION, Study, count_trials, seed_stages
from eqssl.study.listener import Listener
from eqssl.study.options import StudyOptions
from eqssl.study.search.designs import design_points
from eqssl.study.search.pruning import best_first
from eqssl.study.search.sampler import Search
from eqssl.study.search.space import Configuration, Trial, exact
from eqssl.study.store.records import TrialRecord

logger = logging.getLogger(__name__)

_Candidate = tuple[Configuration, int]  # with its first seed


class Suggestions(Listener):
    """The trials of a study, one after another.

    Args:
        study: its space, rows and objectives.
        options: configs, seeds, seed schedule and sampler; the sampler's seed is that of the training.

    Attributes:
        base: the run of which every trial changes some options.
        objectives: names of the study's.
        search: the sampler.
        total: number of trials, including those of the reference rows.
        ended: how many of these had ended before a resume.
        design: number of configurations in the whole design; 0 for a sampler.
        left_out: how many of these are not trained.
        finished: whether no further trial can come, however the running ones end.
    """

    def __init__(self, study: Study, options: StudyOptions):
        self.base, self.objectives = options.run, list(study.objectives)
        seed, count = options.run.train.seed, study.count_configs(options.configs)
        base = {option: get(options.run, option) for option in study.space}
        self.search = Search(study.space, study.objectives, sampler=options.sampler, seed=seed)
        self._points = design_points(options.sampler, study.space, count, seed, base)
        self.design = 0 if self._points is None else len(self._points)
        self.left_out = max(0, self.design - count) if study.space else 0  # rows alone leave nothing out
        self._count = count if self._points is None else min(count, self.design)
        self._stages = seed_stages(options.seeds, options.seed_schedule)
        self._signs = [1 if direction == "maximize" else -1 for direction in study.objectives.values()]
        rows = [(row, 1 if row.name in ONE_SEED else options.seeds) for row in study.reference_configurations()]
        self._rows = [Trial(row, seed) for row, seeds in rows for seed in range(seeds)]
        self.total = len(self._rows) + count_trials(self._count, self._stages)
        self.ended, self.finished = 0, False
        self._earlier: dict[int, Configuration] = {}  # suggestions of an earlier process by number
        self._records: dict[str, TrialRecord] = {}
        self._pending: dict[int, list[Trial]] = {}  # trials of the first stage, until the sampler knows their outcome
        self._names: dict[str, str] = {}  # exact overrides -> name
        self._taken = {trial.configuration.name for trial in self._rows}  # names
        self._times_suggested: Counter[str] = Counter()
        self._schedule = self._all_trials()

    def restore(self, configurations: Iterable[Configuration], records: dict[str, TrialRecord]) -> None:
        """Continue where an earlier process was killed; to be called before `next`.

        Args:
            configurations: the suggested ones; each keeps its number and name.
            records: trial id -> record of the trials that have ended.
        """
        self._earlier = {c.number: c for c in configurations if c.number is not None}
        self._names |= {exact(c.overrides or {}): c.name for c in self._earlier.values()}
        self._taken |= set(self._names.values())
        self._records |= records
        self.ended = len(records)

    def work(self) -> int:
        """Return the epochs and evaluations of all trials to come; each searched trial counts as one of the base."""
        rows = [trial for trial in self._rows if trial.id not in self._records]
        searched = self.total - self.ended - len(rows)
        return sum(trial.work(self.base) for trial in rows) + searched * (self.base.train.epochs + 1)

    def next(self) -> Trial | None:
        """Return the next trial, or None if there is none: for good if `finished`, else until a trial has ended."""
        for trial in self._schedule:
            if trial is None or trial.id not in self._records:
                return trial
        self.finished = True
        return None

    def _all_trials(self) -> Iterator[Trial | None]:
        """Yield all trials, including those on record, and None while the next one depends on running trials."""
        yield from self._rows
        candidates = []
        for number in range(self._count):
            candidate = self._suggest(number)
            candidates.append(candidate)
            self._pending[number] = _trials(candidate, 0, self._stages[0])
            self._tell()  # about trials on record, in a resumed study
            yield from _trials(candidate, 0, self._stages[0])
        for before, seeds in pairwise(self._stages):
            while not all(self._ended(_trials(candidate, 0, before)) for candidate in candidates):
                yield None
            candidates = self._best_third(candidates, before)
            for candidate in candidates:
                yield from _trials(candidate, before, seeds)

    def _suggest(self, number: int) -> _Candidate:
        """Return a configuration and its first seed: a repeated suggestion gets fresh seeds."""
        params = self._points[number] if self._points is not None else None
        if number in self._earlier:
            params = self._earlier[number].overrides
        elif params is None and number < max(self._earlier, default=0):
            logger.warning("configuration %d has no record left and is suggested anew", number)
        params = self.search.suggest(params)
        values = exact(params)
        if values not in self._names:
            self._names[values] = Configuration.suggested(params, number, self._taken).name
            self._taken.add(self._names[values])
        name = self._names[values]
        first_seed = self._times_suggested[name] * self._stages[-1]
        self._times_suggested[name] += 1
        return Configuration(name, params, number), first_seed

    def _best_third(self, candidates: list[_Candidate], seeds: int) -> list[_Candidate]:
        sound, means = [], []
        for candidate in candidates:
            values = [self.search.values(self._records[trial.id]) for trial in _trials(candidate, 0, seeds)]
            if None not in values:
                sound.append(candidate)
                means.append(np.mean(np.array(values), axis=0) * self._signs)
        best = best_first(means)[: -(-len(candidates) // REDUCTION)]
        return [sound[place] for place in sorted(best)]

    def _ended(self, trials: list[Trial]) -> bool:
        return all(trial.id in self._records for trial in trials)

    def trial_ended(self, trial: Trial, record: TrialRecord) -> None:
        """Note the end of a trial, and tell the sampler once the first stage of a configuration has ended."""
        self._records[trial.id] = record
        self._tell()

    def _tell(self) -> None:
        for number in [number for number, trials in self._pending.items() if self._ended(trials)]:
            self.search.tell(number, [self._records[trial.id] for trial in self._pending.pop(number)])


def _trials(candidate: _Candidate, first: int, end: int) -> list[Trial]:
    """Return the trials of a configuration for its seeds numbered `first` to `end - 1`."""
    configuration, first_seed = candidate
    return [Trial(configuration, first_seed + seed) for seed in range(first, end)]
