"""Optuna's samplers, which suggest configurations and are told the outcome of each."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from eqssl.files import write_atomically
from eqssl.study.definition import Sampler
from eqssl.study.search.space import Space
from eqssl.study.store.records import Point, TrialRecord

optuna.logging.set_verbosity(optuna.logging.WARNING)

N_STARTUP = 10  # random points before a sampler goes by results
GENETIC = ("nsga2", "nsga3")


class Search:
    """Suggestions of one of Optuna's samplers, or of a design that Optuna is told about.

    Args:
        space: the varied parameters.
        objectives: metric -> maximize or minimize.
        sampler: of the suggestions; a design suggests nothing itself.
        seed: of the sampler.
        storage: of Optuna; default: in memory.
    """

    def __init__(
        self,
        space: Space,
        objectives: Mapping[str, str],
        *,
        sampler: Sampler = "random",
        seed: int = 0,
        storage: BaseStorage | None = None,
    ):
        self._space, self._objectives, self._sampler, self._seed = space, objectives, sampler, seed
        self.optuna = optuna.create_study(storage=storage, study_name="study", directions=list(objectives.values()))
        self._trials: list[optuna.Trial] = []

    def warm_start(self, points: Iterable[Point]) -> None:
        """Tell the sampler the results of an earlier study, before the first suggestion.

        Args:
            points: options and objectives; those of another space, or without an objective, are passed over.
        """
        for params, values in points:
            if values.keys() >= self._objectives.keys() and self._contains(params):
                trial, _ = self._ask(params)
                self.optuna.tell(trial, [values[metric] for metric in self._objectives])

    def _contains(self, params: Mapping[str, Any]) -> bool:
        existing = {option for option, parameter in self._space.items() if parameter.exists_beside(params)}
        return params.keys() == existing and all(self._space[o].contains(value) for o, value in params.items())

    def suggest(self, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the next configuration's overrides.

        Args:
            params: of a design, or of an earlier process's suggestion; None: the sampler suggests.
        """
        trial, params = self._ask(params)
        self._trials.append(trial)
        return params

    def _ask(self, params: dict[str, Any] | None) -> tuple[optuna.Trial, dict[str, Any]]:
        # A sampler of its own for every number, so that a resumed study continues with the same sequence.
        self.optuna.sampler = make_sampler(self._sampler, self._seed, len(self._trials))
        if params is not None:
            self.optuna.enqueue_trial(params)
        trial = self.optuna.ask()
        if params is not None and self._sampler in GENETIC:
            _ = trial.relative_params  # notes the trial's generation, without which it would be no parent of later ones
        suggested: dict[str, Any] = {}
        for option, parameter in self._space.items():
            if parameter.exists_beside(suggested) if params is None else option in params:
                suggested[option] = parameter.suggest(trial, option)
        return trial, suggested

    def tell(self, number: int, records: Sequence[TrialRecord]) -> None:
        """Tell how a configuration ended: complete with the mean over seeds, pruned, or failed.

        A trial that crashed, collapsed or lacks an objective makes its configuration a failure.

        Args:
            number: of the suggestion.
            records: of its seeds.
        """
        trial, values = self._trials[number], [self.values(record) for record in records]
        complete = [of_seed for of_seed in values if of_seed is not None]
        if any(record.status == "STOPPED" for record in records):
            for record in records:
                self._report(trial, record)
            self.optuna.tell(trial, state=TrialState.PRUNED)
        elif len(complete) < len(records):
            self.optuna.tell(trial, state=TrialState.FAIL)
        else:
            self.optuna.tell(trial, np.mean(complete, axis=0).tolist())

    def _report(self, trial: optuna.Trial, record: TrialRecord) -> None:
        """Report a trial's history, as attributes for several objectives, since Optuna takes values of one alone."""
        for epoch, metrics in record.history.items():
            if len(self._objectives) > 1:
                trial.set_user_attr(f"seed {record.seed}, epoch {epoch}", metrics)
            elif (value := metrics.get(next(iter(self._objectives)))) is not None:
                trial.report(value, int(epoch))

    def values(self, record: TrialRecord) -> list[float] | None:
        """Return a complete trial's objectives; None for any other end, a collapse and a missing objective."""
        if record.status != "COMPLETE" or record.collapsed or not record.metrics.keys() >= self._objectives.keys():
            return None
        return [record.metrics[metric] for metric in self._objectives]


def make_sampler(name: Sampler, seed: int, number: int) -> BaseSampler:
    """Return one of Optuna's samplers, seeded for one suggestion; a random one for a design.

    Args:
        name: of the sampler.
        seed: of the study.
        number: of the suggestion.
    """
    seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if name == "tpe":
            return TPESampler(multivariate=True, group=True, n_startup_trials=N_STARTUP, seed=seed)
        if name == "gp":
            return GPSampler(n_startup_trials=N_STARTUP, seed=seed)
        if name == "nsga2":
            return NSGAIISampler(population_size=N_STARTUP, seed=seed)
        if name == "nsga3":
            return NSGAIIISampler(population_size=N_STARTUP, seed=seed)
        return RandomSampler(seed)


def write_journal(space: Space, objectives: Mapping[str, str], records: Sequence[TrialRecord], path: Path) -> None:
    """Write the search as an Optuna journal, which optuna-dashboard opens; the records stay the only truth.

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
        search = Search(space, objectives, storage=JournalStorage(JournalFileBackend(str(temporary))))
        for place, number in enumerate(sorted(by_number)):
            search.suggest(by_number[number][0].params)
            search.tell(place, by_number[number])

    write_atomically(path, write)
