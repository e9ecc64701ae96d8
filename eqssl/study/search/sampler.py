"""The search: points of a design, or of Optuna's samplers, which are told the truth about every configuration."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from eqssl.files import write_atomically
from eqssl.study.definition import Sampler
from eqssl.study.search.designs import make_sampler, planned
from eqssl.study.search.space import Space, chosen_by
from eqssl.study.store.records import Point, TrialRecord

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Search:
    """Configurations, one after the other.

    Args:
        space: what is varied.
        objectives: metric -> maximize or minimize.
        sampler: a design or one of Optuna's samplers.
        seed: of the sampler.
        count: configurations that a design should have.
        storage: of Optuna; default: in memory.
    """

    def __init__(
        self,
        space: Space,
        objectives: Mapping[str, str],
        *,
        sampler: Sampler = "random",
        seed: int = 0,
        count: int = 0,
        storage: BaseStorage | None = None,
    ):
        self._space, self._objectives, self._sampler, self._seed = space, objectives, sampler, seed
        self.points = planned(sampler, space, count, seed)
        self.optuna = optuna.create_study(storage=storage, study_name="study", directions=list(objectives.values()))
        self._trials: list[optuna.Trial] = []

    def warm_start(self, points: Iterable[Point]) -> None:
        """Tell the sampler what an earlier study found; to be called before the first suggestion.

        Args:
            points: options and objectives; those of another space, or without an objective, are passed over.
        """
        for params, values in points:
            exists = chosen_by(self._space, lambda option, _, params=params: params.get(option))
            allowed = params.keys() == exists.keys() and all(self._space[o].allows(v) for o, v in params.items())
            if allowed and values.keys() >= self._objectives.keys():
                self.optuna.tell(self._replay(params)[0], [values[figure] for figure in self._objectives])

    def suggest(self, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the next configuration's overrides.

        Args:
            params: what it was, where an earlier process had suggested it.
        """
        number = len(self._trials)
        if self.points is None:
            self.optuna.sampler = make_sampler(self._sampler, self._seed, number)
        elif params is None:
            params = self.points[number]
        if params is None:
            trial = self.optuna.ask()
            params = chosen_by(self._space, lambda option, values: values.suggest(trial, option))
        else:
            trial, params = self._replay(params)
        self._trials.append(trial)
        return params

    def _replay(self, params: dict[str, Any]) -> tuple[optuna.Trial, dict[str, Any]]:
        self.optuna.enqueue_trial(params)
        trial = self.optuna.ask()
        return trial, {option: self._space[option].suggest(trial, option) for option in params}

    def tell(self, number: int, records: Sequence[TrialRecord]) -> None:
        """Tell how a configuration ended: complete with the mean over seeds, stopped (PRUNED), or failed.

        A trial that crashed, collapsed or lacks an objective makes its configuration a failure.
        """
        trial, values = self._trials[number], [self.values(record) for record in records]
        if any(record.status == "STOPPED" for record in records):
            for record in records:
                self._intermediate(trial, record)
            self.optuna.tell(trial, state=TrialState.PRUNED)
        elif any(v is None for v in values):
            self.optuna.tell(trial, state=TrialState.FAIL)
        else:
            self.optuna.tell(trial, [sum(column) / len(column) for column in zip(*values, strict=True)])

    def _intermediate(self, trial: optuna.Trial, record: TrialRecord) -> None:
        """Leave what was seen on the way: Optuna has intermediate values for a single objective only."""
        for epoch, figures in record.history.items():
            if len(self._objectives) > 1:
                trial.set_user_attr(f"seed {record.seed}, epoch {epoch}", figures)
            elif (value := figures.get(next(iter(self._objectives)))) is not None:
                trial.report(value, int(epoch))

    def values(self, record: TrialRecord) -> list[float] | None:
        """Return a complete trial's objectives; None for any other end, for a collapse and where one is missing."""
        if record.status != "COMPLETE" or record.collapsed or any(f not in record.metrics for f in self._objectives):
            return None
        return [record.metrics[figure] for figure in self._objectives]


def write_journal(space: Space, objectives: Mapping[str, str], records: Sequence[TrialRecord], path: Path) -> None:
    """Write what Optuna was told as a journal, which optuna-dashboard opens; the records stay the only truth.

    Args:
        space, objectives: of the study.
        records: of all finished trials.
        path: replaced if it is there.
    """
    by_number: dict[int, list[TrialRecord]] = {}
    for record in records:
        if record.number is not None:
            by_number.setdefault(record.number, []).append(record)

    def write(temporary: Path) -> None:
        storage = JournalStorage(JournalFileBackend(str(temporary)))
        search = Search(space, objectives, storage=storage)
        for place, number in enumerate(sorted(by_number)):
            search.suggest(by_number[number][0].params)
            search.tell(place, by_number[number])

    write_atomically(path, write)
