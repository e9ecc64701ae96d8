"""A study from its options to its results: the folder, Ray, the preflight, the trials, the summary."""

import signal
import time
from contextlib import suppress
from dataclasses import asdict
from dataclasses import replace as change
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from eqssl.config import RunConfig, flatten, identity, replace
from eqssl.evaluation import PROTOCOL_VERSION
from eqssl.files import as_path, is_no_lack_of_space, persist
from eqssl.metrics import stored_properties
from eqssl.signals import Interrupted
from eqssl.study.controls import with_matched_controls
from eqssl.study.definition import REFERENCE_ROWS, Study, count_trials, seed_stages
from eqssl.study.execution.preflight import approve, check_options, check_worker, temporary_places, try_run
from eqssl.study.execution.setup import StudySetup, registered
from eqssl.study.execution.stop import StopSignals
from eqssl.study.options import StudyOptions, opening
from eqssl.study.search.space import Trial
from eqssl.study.store.ledger import ledger, ledger_line
from eqssl.study.store.lock import RunLock, run_seconds
from eqssl.study.store.records import RESULTS_SCHEMA, StudyFolder, TrialRecord

if TYPE_CHECKING:
    from rich.console import RenderableType

    from eqssl.study.execution.cluster import Capacity
    from eqssl.study.search.schedule import Suggestions


MANY_ENTRIES = 1000  # that wait for the tracking server, and are mentioned
NOTHING = "failed"  # status of a study in which no searched configuration, or no row if none is, was completed


def run_search(study: Study, options: StudyOptions, console: Console) -> dict[str, Any]:
    """Run a study, or resume it, write its results and report, and return the content of its summary.json.

    Args:
        study, options: consistent with each other, see `settle`.
        console: where progress and the final table are shown.

    Raises:
        ValueError, Interrupted: as `eqssl.study.run_study` does.
    """
    check_options(study, options)
    study = with_matched_controls(study, options)
    say = partial(console.print, markup=False, soft_wrap=True)
    with StopSignals() as signals, RunLock(as_path(options.output) / study.name, say) as lock:
        return _StudyRun(study, options, console, lock, signals).run()


class _StudyRun:
    """One run of a study's command, step by step."""

    def __init__(self, study: Study, options: StudyOptions, console: Console, lock: RunLock, signals: StopSignals):
        from eqssl.tracking.study import StudyTracker

        self.start = time.perf_counter()
        self.study, self.options, self.console = study, options, console
        self.lock, self.signals = lock, signals
        self.stages = seed_stages(options.seeds, options.seed_schedule)
        self.folder = as_path(options.output) / study.name
        self.record = StudyFolder.open(self.folder, self._identity(), resume=options.resume, owned=lock.owned)
        self.record.stopped = lambda: signals.interruption is not None
        self.warm_points = self.record.warm_points(options.warm_start, study.objectives)
        own = [overrides or {} for name, overrides in study.rows.items() if name not in REFERENCE_ROWS]
        varied = study.space.keys() or {option for overrides in own for option in overrides}
        self.tracker = StudyTracker(options.tracking_uri, study.name, sorted(varied), study.objectives, self.folder)

    def _identity(self) -> dict[str, Any]:
        """Return all values that a resumed study must share with the earlier one."""
        return {
            "study": self.study.name,
            "results_schema": RESULTS_SCHEMA,
            "protocol": PROTOCOL_VERSION,
            "space": {option: asdict(values) for option, values in self.study.space.items()},
            "rows": dict(self.study.rows),
            "objectives": dict(self.study.objectives),
            "trials": count_trials(self.study.count_configs(self.options.configs), self.stages),
            "seeds": self.options.seeds,
            **{name: getattr(self.options, name) for name in ("sampler", "seed_schedule", "pruner", "warm_start")},
            **identity(self.options.run),
        }

    def run(self) -> dict[str, Any]:
        self._say(opening(self.study, self.options))
        for warning in temporary_places(self.options):
            self._say(f"warning: {warning}")
        with self.lock.heartbeat(lost=self.signals.stop):
            try:
                return self._run()
            except BaseException as error:
                # A request to Ray that a signal interrupts raises a SystemExit of its own.
                stopped = self.signals.interruption if isinstance(error, SystemExit) else None
                if self.lock.owned():  # otherwise the MLflow runs, too, belong to another process
                    self.tracker.close("KILLED" if stopped else "FAILED", [], patience_s=2)
                if stopped:
                    raise stopped from None
                raise

    def _run(self) -> dict[str, Any]:
        from eqssl.study.execution import cluster

        with self.signals.after(self.options.max_hours), cluster.ray_running():
            suggestions = self._suggestions()
            left = suggestions.total - suggestions.ended
            epochs = suggestions.work() - left  # without evaluations
            capacity = cluster.capacity(self.options, cluster.alive_nodes(), left)
            self._say(capacity.text)
            folder, objectives = str(self.folder.absolute()), tuple(self.study.objectives)
            setup = StudySetup(folder, objectives, workers=self.options.workers, worker=capacity.worker)
            data = self._preflight(setup, capacity, timed=epochs > 0 and not self.options.smoke)
            if (epoch_s := data.pop("epoch_s")) is not None:
                approve(epochs, epoch_s, min(capacity.trials, left), self.options, self.console)
            self.tracker.ready()
            if self.tracker.missing:
                self._say(f"warning: {self.tracker.missing}; --resume with MLflow installed will track it")
            self.about = {"data": data, "concurrency": capacity.text, "stages": self.stages}
            self.about |= {"metrics": stored_properties(registered()["metric"]), "options": flatten(self.options.run)}
            shown = {name: getattr(self.study, name) for name in ("question", "subject", "controls")}
            self.record.create(data["digest"], self.about | shown, self.warm_points)
            self.study = self.study.for_data(labelled=data["num_classes"] > 0, known=data["known"])
            unfinished = self._run_trials(setup, capacity)
        return self._finish(capacity, unfinished)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def _suggestions(self) -> "Suggestions":
        """Return the trials to come, after those of earlier runs of the command."""
        from eqssl.study.search.schedule import Suggestions

        suggestions = Suggestions(self.study, self.options)
        suggestions.search.warm_start(self.warm_points)
        suggestions.restore(self.record.configurations(), self.record.records())
        return suggestions

    def _preflight(self, setup: StudySetup, capacity: "Capacity", *, timed: bool) -> dict[str, Any]:
        """Check the study on every node and in a worker, and return a description of its data.

        Sets `resolved` to the run with the defaults that depend on the data filled in.

        Raises:
            ValueError: with the reason why the study cannot run.
        """
        from eqssl.study.execution import cluster

        arguments = setup, self.options.run, self.lock.run.token, capacity.workers, self.options.pruner, timed
        cluster.on_every_node(check_worker, setup, self.lock.run.token)
        task = cluster.start_in_worker(setup.worker, try_run, *arguments)
        import eqssl.study.execution.pool  # noqa: F401 (Tune takes seconds to import: meanwhile)

        found = cluster.result_of(task, setup.worker, self._say)
        if "error" in found:
            raise ValueError(found["error"])
        for warning in found["warnings"]:
            self._say(f"warning: {warning}")
        strengths = found.pop("strengths")
        self.resolved = replace(self.options.run, {f"augment.{name}": value for name, value in strengths.items()})
        return found

    def _run_trials(self, setup: StudySetup, capacity: "Capacity") -> list[TrialRecord]:
        """Run the trials, and return records of those that a stop has cut off."""
        from eqssl.study.execution.cluster import autoscaler_status
        from eqssl.study.execution.pool import run_trials
        from eqssl.study.progress import StudyProgress
        from eqssl.study.search.pruning import Halving, evaluated_every

        base, suggestions = self.options.run, self._suggestions()
        if suggestions.left_out:
            self._say(
                f"warning: {suggestions.left_out} of the {suggestions.design} configurations of {self.options.sampler} "
                f"are left out; all of them take --configs {suggestions.design}"
            )
        earlier = list(self.record.records().values())
        self.tracker.begin(self.record.study_id, self.resolved, earlier)
        halving = None
        if self.options.pruner == "halving":
            halving = Halving(base.train, self.study.objectives, self.stages[0])
            for record in earlier:
                halving.add(record)

        def run_of(trial: Trial) -> RunConfig:
            self.record.trial_suggested(trial)
            run = trial.run_config(base)
            pruned = halving is not None and trial.configuration.number is not None
            return replace(run, {"train.eval_every": evaluated_every(run.train)}) if pruned else run

        with StudyProgress(self.console, suggestions, autoscaler_status, self.tracker.behind) as progress:
            listeners = [self.record, suggestions, self.tracker, progress]
            return run_trials(suggestions, run_of, setup, capacity, listeners, self.signals, halving)

    def _finish(self, capacity: "Capacity", unfinished: list[TrialRecord]) -> dict[str, Any]:
        """Write the summary and the report, and return the summary."""
        from eqssl.study.results import summarise

        if not self.lock.owned():  # the folder is another process's now
            raise self.signals.interruption or Interrupted(signal.SIGTERM, "the loss of the folder")
        stopped = self.signals.interruption
        if stopped and (left := self._suggestions()).next() is None and left.finished:
            stopped = None  # the signal came after the last trial
        with suppress(OSError):  # of a full disk, which is waited for below
            self.lock.renew()
        records = list(self.record.records().values())
        searched = [record for record in records if record.number is not None] or records
        completed = any(record.status == "COMPLETE" for record in searched)
        status = "stopped" if stopped else "complete" if completed else NOTHING
        about = self.about | {
            "study_id": self.record.study_id,
            "status": status,
            "wall_s": time.perf_counter() - self.start,
            "ledger": ledger(records, *capacity.devices, run_seconds(self.folder), unfinished),
        }
        summary = summarise(change(self.study, seeds=self.options.seeds), records, about, self.folder)
        try:
            files, table = persist(
                partial(self._write, summary, records),
                lambda error: is_no_lack_of_space(error) or self.signals.interruption is not None,
            )
        except OSError as error:
            if self.signals.interruption:
                raise self.signals.interruption from error
            raise
        tracked = {"stopped": "KILLED", NOTHING: "FAILED", "complete": "FINISHED"}[status]
        if (waiting := self.tracker.waiting) > MANY_ENTRIES and not stopped:
            self._say(f"{waiting} entries wait for {self.options.tracking_uri}; Ctrl-C leaves them to --resume")
        self.tracker.close(tracked, files, 2 if stopped else 30, summary, lambda: self.signals.interruption is not None)
        if self.tracker.dropped:
            missing = f"{self.tracker.dropped} entries have not reached {self.options.tracking_uri}"
            self._say(f"warning: {missing}; the same command with --resume sends them")
        if stopped:
            raise stopped
        self.console.print(table)
        self._say(ledger_line(summary["ledger"]))
        self._say(f"results: {self.folder}")
        self._say(summary["sentence"])
        self.signals.postpone()
        return summary

    def _write(self, summary: dict[str, Any], records: list[TrialRecord]) -> "tuple[list[Path], RenderableType]":
        """Write all results and the report; return the files worth tracking and the table for the console."""
        from eqssl.report.report import write_report  # imports matplotlib
        from eqssl.report.tables import result_table
        from eqssl.study.results import write_results
        from eqssl.study.search.sampler import write_journal

        files = write_results(summary, records, self.folder)
        if self.study.space:
            write_journal(self.study, records, self.folder / "optuna.journal")
        return [*files, *write_report(summary, self.folder)], result_table(summary)
