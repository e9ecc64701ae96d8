"""All trials of a study as one run of Ray Tune, which reuses its processes from one trial to the next.

Tune retries a trial, from its checkpoint, after any failure of its process, its node or its code. After three attempts
without a further epoch the trial has failed. The driver keeps the count, so it includes attempts that end before their
first line, such as in an import. An announced departure of a node is not a failure.
"""

import importlib
import logging
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from eqssl.config import RunConfig
from eqssl.files import as_path, remove, write_atomically
from eqssl.study.execution.cluster import Capacity, alive_nodes
from eqssl.study.execution.nodes import ADDRESS, FailingNodes
from eqssl.study.execution.preemption import SaveNotice, start_here
from eqssl.study.execution.setup import StudySetup
from eqssl.study.execution.stop import StopSignals
from eqssl.study.execution.trial import RECORD, record_of, run_trial
from eqssl.study.execution.workers import run_with_workers
from eqssl.study.listener import Listener
from eqssl.study.search.pruning import Halving
from eqssl.study.search.schedule import Suggestions
from eqssl.study.search.space import Trial
from eqssl.study.store.records import RETRYABLE, TrialRecord

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
ERROR = "error.txt"  # in a trial's folder: the errors of its attempts
DIED = ("The actor died", "The actor is temporarily unavailable")  # how Ray's text about a lost process begins
NODE = re.compile(r"\bip[=:] ?([\w.:]*\w)")  # in Ray's text
TRACKERS = ("mlflow", "wandb", "comet_ml", "aim")
SAVING_S = 15.0  # for trials to save their state when the study is stopped
SAVING_POLL_S = 0.2  # until a wait notices that Tune has ended


def run_trials(
    suggestions: Suggestions,
    run_of: Callable[[Trial], RunConfig],
    setup: StudySetup,
    capacity: Capacity,
    listeners: Sequence[Listener],
    signals: StopSignals,
    halving: Halving | None = None,
) -> list[TrialRecord]:
    """Run all trials until they end or the study is stopped, and return the records of those that a stop interrupted.

    Args:
        suggestions: the trials, in order.
        run_of: trial -> its run; called once per trial, before it starts.
        setup: the setup of the trials' processes.
        capacity: number of trials at a time, and the resources of each.
        listeners: receive all events; the first one keeps the records, and waits for a full disk.
        signals: the study's signals; a stop first waits until trials have saved their state.
        halving: the pruner, if there is one.
    """
    notice = start_here(SaveNotice)
    notice.watch_nodes.remote()
    ended = threading.Event()
    reserved = dict(capacity.driver or capacity.worker)
    nodes = FailingNodes(reserved, [node[ADDRESS] for node in alive_nodes()])
    searcher = _Searcher(suggestions, run_of)
    events = _Events(searcher, setup, listeners, nodes)
    run = run_with_workers if max(setup.workers) > 1 else run_trial
    trainable = tune.with_parameters(run, setup=replace(setup, save_notice=notice))
    staging = tempfile.mkdtemp()  # nobody reads Tune's own files, so they need no shared storage
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([reserved])),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_Scheduler(searcher, nodes, halving),
            num_samples=-1,
            max_concurrent_trials=capacity.trials,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=staging,
            verbose=0,
            callbacks=[events],
            failure_config=tune.FailureConfig(max_failures=MAX_ATTEMPTS - 1),
        ),
    )
    signals.before_stop = partial(save_all, notice, ended)
    _hide_broken_trackers()
    try:
        tuner.fit()
    finally:
        ended.set()
        signals.tune_ended()
        shutil.rmtree(staging, ignore_errors=True)
        remove(as_path(setup.folder) / ".ray")  # Ray Train's own files
    return events.unfinished()


def save_all(notice: Any, ended: threading.Event, most_s: float = SAVING_S) -> None:
    """Ask all trials to save their state, and wait until they have, for Tune's end, or for `most_s` seconds.

    Args:
        notice: handle of the actor `SaveNotice`.
        ended: set when Tune has ended.
        most_s: maximum wait, s.
    """
    saved, deadline = [notice.stop.remote()], time.monotonic() + most_s
    while not ended.is_set() and time.monotonic() < deadline and not ray.wait(saved, timeout=SAVING_POLL_S)[0]:
        pass


def _hide_broken_trackers() -> None:
    """Make trackers whose import fails look uninstalled to Tune, which imports them all and expects nothing worse."""
    for name in TRACKERS:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        except Exception as error:  # of any type, by any of its packages
            logger.debug("%s cannot be imported: %s", name, error)
            sys.modules[name] = None  # type: ignore[assignment]


class _Unsaved:
    """An object without state that Tune could restore: a study resumes from its folder."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_Unsaved, Searcher):
    """The study's suggestions, as a Tune searcher."""

    def __init__(self, suggestions: Suggestions, run_of: Callable[[Trial], RunConfig]):
        super().__init__()
        self._suggestions, self._run_of = suggestions, run_of
        self.trials: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> Any:
        trial = self._suggestions.next()
        if trial is None:  # either until another has ended, or for good
            return self.FINISHED if self._suggestions.finished else None
        self.trials[trial_id] = trial
        return {"trial": trial, "run": self._run_of(trial)}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Do nothing: the suggestions are a listener of `_Events`."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing, see `_Unsaved`."""


class _Scheduler(_Unsaved, FIFOScheduler):
    """The choice of nodes, and the pruner if there is one, as a Tune scheduler; reference rows are never pruned."""

    def __init__(self, searcher: _Searcher, nodes: FailingNodes, halving: Halving | None = None):
        super().__init__()
        self._searcher, self._nodes, self._halving = searcher, nodes, halving

    def on_trial_add(self, controller: Any, tune_trial: TuneTrial) -> None:
        if not tune_trial.num_failures:  # otherwise `on_trial_error` came first, and Tune has queued the trial
            tune_trial.update_resources(self._nodes.requirement(tune_trial.trial_id))

    def on_trial_error(self, controller: Any, tune_trial: TuneTrial) -> None:
        _, address = _last_error(tune_trial)
        if address:
            self._nodes.failed(tune_trial.trial_id, address)
        if tune_trial.status == TuneTrial.ERROR:  # there is another attempt
            tune_trial.update_resources(self._nodes.requirement(tune_trial.trial_id))

    def on_trial_result(self, controller: Any, tune_trial: TuneTrial, result: dict[str, Any]) -> str:
        trial, record = self._searcher.trials[tune_trial.trial_id], result.get(RECORD)
        if not self._halving or not record or record.status != "STOPPED" or trial.configuration.number is None:
            return self.CONTINUE
        self._halving.add(record)
        return self.CONTINUE if self._halving.goes_on(record) else self.STOP


class _Events(_Unsaved, tune.Callback):
    """Passes Tune's events on to the listeners."""

    def __init__(self, searcher: _Searcher, setup: StudySetup, listeners: Sequence[Listener], nodes: FailingNodes):
        self._searcher, self._setup, self._listeners, self._nodes = searcher, setup, listeners, nodes
        self._started_s: dict[str, float] = {}
        self._last: dict[str, TrialRecord] = {}  # last records of running trials, with their whole history
        self._open: list[TuneTrial] = []  # those that have not ended, among the first `_seen` trials
        self._seen = 0

    def unfinished(self) -> list[TrialRecord]:
        """Return the last records of the trials that have not ended."""
        return [self._with_overhead(trial_id, record) for trial_id, record in self._last.items()]

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._started_s[trial.trial_id] = time.perf_counter()
        for listener in self._listeners:
            listener.trial_started(self._searcher.trials[trial.trial_id])

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        record: TrialRecord | None = result.get(RECORD)
        if not record:
            return
        address = result["node_ip"]
        # Tune keeps the last result, and statistics of its numbers, for good; without one it prints the trial's end.
        result.clear()
        result[RECORD] = ""
        before = self._last.get(trial.trial_id)
        if record.status == "STOPPED" and before:
            before.history.update(record.history)
            record = replace(record, history=before.history)
        self._last[trial.trial_id] = record
        if record.status == "COMPLETE" or before is None or record.epochs > before.epochs:
            self._nodes.progressed(trial.trial_id, address)
            trial.max_failures = trial.num_failures + MAX_ATTEMPTS - 1  # attempts are counted without progress
        if record.status != "STOPPED":
            return
        for listener in self._listeners:
            listener.epoch_ended(self._searcher.trials[trial.trial_id], record.metrics)

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        error = self._error(trial)
        for listener in self._listeners:
            listener.trial_retried(self._searcher.trials[trial.trial_id], error)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        error = f"{self._error(trial)} ({MAX_ATTEMPTS}{RETRYABLE}"
        last = self._last.get(trial.trial_id)
        history = last.history if last else {}
        self._end(trial, record_of(self._searcher.trials[trial.trial_id], "FAILED", error=error, history=history))

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._end(trial, self._last[trial.trial_id])  # STOPPED if the scheduler has pruned it

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        unseen, self._seen = trials[self._seen :], len(trials)
        self._open = [trial for trial in (*self._open, *unseen) if not trial.is_finished()]
        states = [trial.status for trial in self._open]
        for listener in self._listeners:
            listener.time_passed(states.count(TuneTrial.RUNNING), states.count(TuneTrial.PENDING))

    def _error(self, tune_trial: TuneTrial) -> str:
        """Return the last line of an attempt's error, and its node; write the whole error to the trial's folder."""
        path = as_path(self._setup.folder) / "trials" / self._searcher.trials[tune_trial.trial_id].id / ERROR
        with suppress(OSError):
            write_atomically(path, partial(shutil.copyfile, tune_trial.error_file))
        error, address = _last_error(tune_trial)
        return error + (f" (on {address})" if address else "")

    def _end(self, tune_trial: TuneTrial, record: TrialRecord) -> None:
        trial, record = self._searcher.trials[tune_trial.trial_id], self._with_overhead(tune_trial.trial_id, record)
        first, *others = self._listeners
        try:
            first.trial_ended(trial, record)
        except OSError as error:  # raised only by a study that stops or has lost its folder; Tune would train it again
            logger.warning("the record of %s cannot be written: %s", trial.name, error)
            return
        self._last.pop(tune_trial.trial_id, None)
        for listener in others:
            with suppress(OSError):  # such as from a terminal's log on a full disk
                listener.trial_ended(trial, record)

    def _with_overhead(self, tune_id: str, record: TrialRecord) -> TrialRecord:
        """Return the record with the seconds beyond training for which the last attempt held its process."""
        held_s = time.perf_counter() - self._started_s.get(tune_id, time.perf_counter())
        return replace(record, overhead_s=max(0.0, held_s - (record.wall_s - record.resumed_s)))


def _last_error(tune_trial: TuneTrial) -> tuple[str, str | None]:
    """Return the last line of the error of a trial's last attempt, and the address of its node if that is known."""
    last = Path(tune_trial.error_file).read_text(encoding="utf-8").rpartition("Failure # ")[2].strip()
    lines, node = last.splitlines()[1:] or ["an error without a text"], NODE.search(last)
    error = lines[-1]
    if lines[0].startswith(DIED) and "creation task" not in lines[0]:  # otherwise it raised an error
        error = "its node died" if "its node" in lines[0] else "its process died"
    return error, node[1] if node else None
