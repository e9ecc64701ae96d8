"""Optuna's samplers, which suggest configurations and are told the outcome of each."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from eqssl.files import find, read_all, write_atomically
from eqssl.metrics import Direction
from eqssl.study.definition import Sampler, Study
from eqssl.study.search.space import Params, Space
from eqssl.study.store.records import ENDED, EPOCHS, TRIALS, Point, TrialRecord

optuna.logging.set_verbosity(optuna.logging.WARNING)

N_STARTUP = 10  # random points before a sampler learns from results
GENETIC = ("nsga2", "nsga3")
SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": partial(TPESampler, multivariate=True, group=True, n_startup_trials=N_STARTUP),
    "gp": partial(GPSampler, n_startup_trials=N_STARTUP),
    "nsga2": partial(NSGAIISampler, population_size=N_STARTUP),
    "nsga3": partial(NSGAIIISampler, population_size=N_STARTUP),
}


class Search:
    """An Optuna study in memory: suggestions of a sampler, or a design whose points it receives.

    Args:
        space: the varied parameters.
        objectives: metric -> maximize or minimize.
        sampler: where suggestions come from; a design suggests nothing itself.
        seed: seed of the sampler.
    """

    def __init__(
        self, space: Space, objectives: Mapping[str, Direction], *, sampler: Sampler = "random", seed: int = 0
    ):
        self._space, self._objectives, self._sampler, self._seed = space, objectives, sampler, seed
        self.optuna = optuna.create_study(directions=[*objectives.values()])
        self._trials: list[optuna.Trial] = []

    def warm_start(self, points: Iterable[Point]) -> None:
        """Tell the sampler the results of an earlier study, before the first suggestion.

        Args:
            points: options and objectives; those of another space, or without an objective, are skipped.
        """
        for params, values in points:
            existing = {option for option, parameter in self._space.items() if parameter.exists_beside(params)}
            if params.keys() != existing or not values.keys() >= self._objectives.keys():
                continue
            if all(self._space[option].contains(value) for option, value in params.items()):
                trial, _ = self._ask(params)
                self.optuna.tell(trial, [values[metric] for metric in self._objectives])

    def suggest(self, params: Params | None = None) -> Params:
        """Return the next configuration's overrides.

        Args:
            params: those of a design, or of an earlier process's suggestion; None: the sampler suggests.
        """
        trial, params = self._ask(params)
        self._trials.append(trial)
        return params

    def _ask(self, params: Params | None) -> tuple[optuna.Trial, Params]:
        # Seeded by the number of the suggestion, so that a resumed study continues with the same sequence.
        seed = int(np.random.SeedSequence([self._seed, len(self._trials)]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.optuna.sampler = SAMPLERS.get(self._sampler, RandomSampler)(seed=seed)
        if params is not None:
            self.optuna.enqueue_trial(params)
        trial = self.optuna.ask()
        if params is not None and self._sampler in GENETIC:
            _ = trial.relative_params  # sets the trial's generation, without which it cannot be a parent of later ones
        suggested: Params = {}
        for option, parameter in self._space.items():
            if parameter.exists_beside(suggested) if params is None else option in params:
                suggested[option] = parameter.suggest(trial, option)
        return trial, suggested

    def tell(self, number: int, records: Sequence[TrialRecord]) -> None:
        """Tell the sampler how a configuration ended: complete with the mean over seeds, pruned, or failed.

        A trial that crashed, collapsed or lacks an objective makes its configuration a failure. A pruned trial's
        history becomes intermediate values or, with several objectives, for which Optuna has none, attributes.

        Args:
            number: number of the suggestion.
            records: records of its seeds.
        """
        trial, values = self._trials[number], [self.values(record) for record in records]
        if any(record.status == "STOPPED" for record in records):
            for record in records:
                for epoch, metrics in record.history.items():
                    if len(self._objectives) > 1:
                        trial.set_user_attr(f"seed {record.seed}, epoch {epoch}", metrics)
                    elif self._objectives.keys() <= metrics.keys():
                        trial.report(metrics[next(iter(self._objectives))], int(epoch))
            self.optuna.tell(trial, state=TrialState.PRUNED)
        elif None in values:
            self.optuna.tell(trial, state=TrialState.FAIL)
        else:
            self.optuna.tell(trial, np.mean(np.array(values), axis=0).tolist())

    def values(self, record: TrialRecord) -> list[float] | None:
        """Return a complete trial's objectives; None for any other status, a collapse or a missing objective."""
        if record.status != "COMPLETE" or record.collapsed or not record.metrics.keys() >= self._objectives.keys():
            return None
        return [record.metrics[metric] for metric in self._objectives]


def write_journal(study: Study, records: Sequence[TrialRecord], path: Path) -> None:
    """Write the search as an Optuna journal, which optuna-dashboard can open; the records remain the source of truth.

    Each Optuna trial is a configuration, from the start of its first seed to the end of its last one; its attributes
    are the configuration's name and the status of each seed.

    Args:
        study: the study, with its space and objectives.
        records: records of all finished trials.
        path: a file in the study's folder; replaced if it exists.
    """
    by_number: dict[int, list[TrialRecord]] = {}
    for record in records:
        if record.number is not None:
            by_number.setdefault(record.number, []).append(record)
    search, ended = Search(study.space, study.objectives), _epochs_ended(path.parent)
    configurations = [seeds for _, seeds in sorted(by_number.items())]
    for place, seeds in enumerate(configurations):
        search.suggest(seeds[0].params)
        search.tell(place, seeds)
    trials = search.optuna.get_trials(deepcopy=False)
    for trial, seeds in zip(trials, configurations, strict=True):
        trial.set_user_attr("configuration", seeds[0].configuration)
        trial.set_user_attr("seeds", {str(record.seed): record.status for record in seeds})
        timed = [(record.wall_s, ended[record.trial_id]) for record in seeds if record.trial_id in ended]
        if timed:  # `wall_s` excludes pauses: a resumed trial began before its first known epoch ended
            trial.datetime_start = datetime.fromtimestamp(min(min(s[0], s[-1] - wall_s) for wall_s, s in timed))
            trial.datetime_complete = datetime.fromtimestamp(max(s[-1] for _, s in timed))

    def write(temporary: Path) -> None:  # each trial is one line, with a disk sync
        storage = JournalStorage(JournalFileBackend(str(temporary)))
        written = optuna.create_study(storage=storage, study_name=study.name, directions=[*study.objectives.values()])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            written.set_metric_names([*study.objectives])
        written.add_trials(trials)

    write_atomically(path, write)


def _epochs_ended(folder: Path) -> dict[str, list[float]]:
    """Return trial id -> end of its epochs, seconds since 1970; a study's folder may lack trials."""
    paths = find(folder, f"{TRIALS}/*/{EPOCHS}")
    pattern = re.compile(rb'"%s": (\d+)' % ENDED.encode())  # whole files would take long to parse
    found = {path.parent.name: pattern.findall(text) for path, text in zip(paths, read_all(paths), strict=True)}
    return {trial: [int(ms) / 1000 for ms in ends] for trial, ends in found.items() if ends}
