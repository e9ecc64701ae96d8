"""All trials of a study as one Tune run whose processes are kept from one trial to the next."""

import logging
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from eqssl.config import replace, to_dict
from eqssl.files import as_path, finite, remove
from eqssl.study.execution.cluster import Room
from eqssl.study.execution.plugins import registered
from eqssl.study.execution.trial import FINAL, HISTORY, LOSSES, METRICS, last_error, run_trial
from eqssl.study.listener import Listener
from eqssl.study.options import StudyOptions
from eqssl.study.search.pruning import Halving, evaluated_every
from eqssl.study.search.schedule import Suggestions
from eqssl.study.search.space import Trial
from eqssl.study.store.records import TrialRecord, collapsed_parts

logger = logging.getLogger(__name__)


def trial_spec(
    trial: Trial, options: StudyOptions, folder: Path, worker: dict[str, float], command: str
) -> dict[str, Any]:
    """Return what a trial's process must know, as plain values.

    Args:
        trial: of the study.
        options: of the study.
        folder: of the study.
        worker: resources of each worker.
        command: names this run of the study's command.
    """
    row = trial.configuration.name if trial.configuration.overrides is None else None
    run = trial.run_config(options.run)
    if options.pruner == "halving" and trial.configuration.number is not None:
        run = replace(run, {"train.eval_every": evaluated_every(run.train)})
    return {
        "id": trial.id,
        "row": row,
        "run": to_dict(run),
        "folder": str((folder / "trials" / trial.id).absolute()),
        "workers": list(options.workers),
        "worker": worker,
        "command": command,
        "ray_folder": str((folder / ".ray").absolute()),
        "cwd": os.getcwd(),
    }


class _Unsaved:
    """What Tune pickles for a restore of its own, which a study never uses: it is resumed from its folder."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_Unsaved, Searcher):
    """Suggestions, as Tune asks for them."""

    def __init__(self, suggestions: Suggestions, spec: Callable[[Trial], dict[str, Any]]):
        super().__init__()
        self._suggestions, self._spec = suggestions, spec
        self.trials: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        trial = self._suggestions.next()
        if trial is None:  # until another has ended, or for good
            return self.FINISHED if self._suggestions.finished else None
        self.trials[trial_id] = trial
        return {"trial": self._spec(trial)}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Nothing: Optuna is told from the record, see `_Events`."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing, see `_Unsaved`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `_Unsaved`."""


class _Scheduler(_Unsaved, FIFOScheduler):
    """Ends trials that are behind; reference rows are never ended."""

    def __init__(self, searcher: _Searcher, halving: Halving):
        super().__init__()
        self._searcher, self._halving = searcher, halving

    def on_trial_result(self, controller: Any, tune_trial: TuneTrial, result: dict[str, Any]) -> str:
        trial = self._searcher.trials[tune_trial.trial_id]
        if trial.configuration.number is None or f"{METRICS}/epoch" not in result:  # Tune gives it flat
            return self.CONTINUE
        seen: dict[int, dict[str, float]] = defaultdict(dict)
        for key, value in result.items():
            if key.startswith(f"{HISTORY}/"):
                _, epoch, figure = key.split("/", 2)
                seen[int(epoch)][figure] = value
        for epoch, figures in seen.items():
            self._halving.add(trial.id, trial.seed, epoch, figures)
        goes_on = self._halving.goes_on(trial.id, trial.seed, int(result[f"{METRICS}/epoch"]))
        return self.CONTINUE if goes_on else self.STOP


class _Events(_Unsaved, tune.Callback):
    """Tune's events, as records for the listeners."""

    def __init__(self, searcher: _Searcher, listeners: list[Listener], objectives: Collection[str]):
        self._searcher, self._listeners, self._objectives = searcher, listeners, objectives
        self._started: dict[str, float] = {}
        self._last: dict[str, tuple[TuneTrial, dict[str, Any]]] = {}  # reports of trials that run

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._started[trial.trial_id] = time.perf_counter()
        for listener in self._listeners:
            listener.trial_started(self._searcher.trials[trial.trial_id])

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if METRICS in result and FINAL not in result:
            self._last[trial.trial_id] = trial, result
            for listener in self._listeners:
                listener.epoch_ended(self._searcher.trials[trial.trial_id], result[METRICS])

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        last = trial.last_result  # of a trial that was ended early, an epoch's
        self._end(trial, last[FINAL]) if FINAL in last else self._end(trial, last, stopped=True)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        _, seen = self._last.get(trial.trial_id, (trial, {}))
        error = last_error(as_path(trial.config["trial"]["folder"]))
        self._end(trial, {"error": error, HISTORY: seen.get(HISTORY, {})})

    def unfinished(self) -> list[TrialRecord]:
        """Return how far the trials have come that have not ended."""
        return [self._record(trial, result, stopped=True) for trial, result in self._last.values()]

    def _end(self, tune_trial: TuneTrial, final: dict[str, Any], stopped: bool = False) -> None:
        self._last.pop(tune_trial.trial_id, None)
        record = self._record(tune_trial, final, stopped)
        trial = self._searcher.trials[tune_trial.trial_id]
        first, *others = self._listeners
        first.trial_ended(trial, record)  # it is on record, and without that it has not ended
        for listener in others:
            try:
                listener.trial_ended(trial, record)
            except OSError:  # as of a terminal's log on a full disk; Tune would train the trial once more for it
                logger.exception("the end of trial %s is not told to all", record.trial_id)

    def _record(self, tune_trial: TuneTrial, final: dict[str, Any], stopped: bool) -> TrialRecord:
        held_s = time.perf_counter() - self._started.get(tune_trial.trial_id, time.perf_counter())
        return trial_record(self._searcher.trials[tune_trial.trial_id], final, held_s, self._objectives, stopped)


def trial_record(
    trial: Trial, final: dict[str, Any], held_s: float, objectives: Collection[str], stopped: bool = False
) -> TrialRecord:
    """Return the record of a trial from its last report.

    Args:
        final: `metrics` and `epochs`, or `error`; `history`, `attempt_s`, `wall_s` and `warm`.
        held_s: seconds from Tune's start of the last attempt to its end.
        objectives: the figures that are kept of earlier epochs.
        stopped: whether it was ended before its last epoch.
    """
    configuration = trial.configuration
    metrics = finite(final.get(METRICS, {}))
    epochs = int(final.get("epochs", metrics.get("epoch", 0)))
    cut = stopped or "error" in final  # else the last epoch's figures are the trial's
    earlier = {epoch: finite(seen) for epoch, seen in final.get(HISTORY, {}).items() if cut or int(epoch) < epochs}
    return TrialRecord(
        trial_id=trial.id,
        configuration=configuration.name,
        number=configuration.number,
        params=configuration.overrides or {},
        seed=trial.seed,
        status="STOPPED" if stopped else "FAILED" if "error" in final else "COMPLETE",
        epochs=epochs,
        metrics=metrics,
        wall_s=final.get("wall_s", 0.0),
        resumed_s=final.get("wall_s", 0.0) - final.get("attempt_s", 0.0),
        overhead_s=max(0.0, held_s - final.get("attempt_s", 0.0)),
        warm=final.get("warm", False),
        error=final.get("error"),
        history={epoch: {f: seen[f] for f in objectives if f in seen} for epoch, seen in earlier.items()},
        collapsed=collapsed_parts(metrics),
    )


def run_trials(
    suggestions: Suggestions,
    spec: Callable[[Trial], dict[str, Any]],
    listeners: list[Listener],
    room: Room,
    folder: Path,
    objectives: Collection[str],
    halving: Halving | None = None,
) -> list[TrialRecord]:
    """Run all trials to their ends, or until SIGUSR1 comes, and return how far those have come that have not ended.

    Args:
        suggestions: which trials.
        spec: trial -> what its process must know.
        listeners: told of every start, epoch and end.
        room: how many at a time, and what each reserves.
        folder: for what Ray Train writes, removed at the end.
        objectives: of the study.
        halving: ends trials that are behind; None: all are trained to their ends.
    """
    searcher = _Searcher(suggestions, spec)
    events = _Events(searcher, listeners, objectives)
    staging = tempfile.mkdtemp()  # what Tune itself keeps is read by nobody, so it needs no storage that is shared
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, plugins=registered()), room.resources),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_Scheduler(searcher, halving) if halving else None,
            num_samples=-1,
            max_concurrent_trials=room.trials,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=staging,
            verbose=0,
            callbacks=[events],
            failure_config=tune.FailureConfig(max_failures=LOSSES),
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        remove(folder)
    return events.unfinished()
