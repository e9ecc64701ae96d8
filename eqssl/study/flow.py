"""A study from its options to its results: preflight, Ray, trials, summary, figures."""

import time
from dataclasses import asdict
from dataclasses import replace as change
from typing import TYPE_CHECKING, Any

from rich.console import Console

from eqssl.config import flatten, identity, replace, to_dict
from eqssl.evaluation import PROTOCOL_VERSION
from eqssl.files import as_path
from eqssl.study.controls import with_matched_controls
from eqssl.study.definition import Study, count_trials, seed_stages
from eqssl.study.execution import preflight
from eqssl.study.execution.forecast import Work, approve, forecast
from eqssl.study.execution.plugins import registered
from eqssl.study.execution.signals import Interrupted, StopSignals
from eqssl.study.options import StudyOptions, default_options
from eqssl.study.search.space import Trial
from eqssl.study.store.ledger import ledger, ledger_line
from eqssl.study.store.lock import RunLock, run_seconds
from eqssl.study.store.records import RESULTS_SCHEMA, StudyFolder, TrialRecord

if TYPE_CHECKING:
    from eqssl.study.execution.cluster import Room
    from eqssl.study.search.schedule import Suggestions


def run_study(study: Study, options: StudyOptions | None = None, *, console: Console | None = None) -> dict[str, Any]:
    """Run a study, or go on with it, and return what its summary.json holds.

    Args:
        study: the question.
        options: how it is run; default: the study's own.
        console: where progress and the final table are shown; default: nowhere.

    Raises:
        ValueError: for options that cannot work, before anything is trained or written.
        Interrupted: after SIGINT, SIGTERM or --max-hours, with all that has ended on record.
    """
    options = options or default_options(study)
    preflight.check_options(study, options)
    study = with_matched_controls(study, options)
    with RunLock(as_path(options.output) / study.name) as lock:
        return _Run(study, options, console or Console(quiet=True), lock).go()


class _Run:
    """One process's part in a study."""

    def __init__(self, study: Study, options: StudyOptions, console: Console, lock: RunLock):
        from eqssl.tracking import StudyTracker

        self.start = time.perf_counter()
        self.study, self.options, self.console, self.lock = study, options, console, lock
        self.stages = seed_stages(options.seeds, options.seed_schedule)
        self.trials = count_trials(study.count_configs(options.configs), self.stages)
        self.folder = as_path(options.output) / study.name
        self.record = StudyFolder.open(self.folder, self._identity(), resume=options.resume)
        self.warm_points = self.record.warm_points(options.warm_start, study.objectives)
        if (planned := self._plan()).left_out:
            console.print(
                f"warning: {planned.left_out} of the {planned.design} configurations of {options.sampler} are left out;"
                f" all of them take --configs {planned.design}"
            )
        varied = {option for overrides in study.rows.values() for option in overrides or {}} | study.space.keys()
        self.tracker = StudyTracker(options.tracking_uri, study.name, sorted(varied), study.objectives, self.folder)

    def _identity(self) -> dict[str, Any]:
        """Return everything that must be equal for two runs of a study to be parts of one."""
        return {
            "study": self.study.name,
            "results_schema": RESULTS_SCHEMA,
            "protocol": PROTOCOL_VERSION,
            "space": {option: asdict(values) for option, values in self.study.space.items()},
            "rows": dict(self.study.rows),
            "objectives": dict(self.study.objectives),
            "trials": self.trials,
            "seeds": self.options.seeds,
            **{name: getattr(self.options, name) for name in ("sampler", "seed_schedule", "pruner", "warm_start")},
            **identity(self.options.run),
        }

    def go(self) -> dict[str, Any]:
        from eqssl.study.execution import cluster

        with StopSignals() as signals, self.lock.heartbeat(lost=signals.stop):
            with signals.after(self.options.max_hours), cluster.ray_running(self.options.cluster_config) as nodes:
                signals.arm()
                room = cluster.room(self.options, nodes)
                self.console.print(room.text)
                data = self._try_in_worker(room)
                self.tracker.ready()
                about = {"data": data, "concurrency": room.text, "options": flatten(self.options.run)}
                about["stages"] = self.stages
                shown = {"question": self.study.question, "controls": dict(self.study.controls)}
                shown["subject"] = self.study.subject
                self.record.create(data["digest"], about | shown, self.warm_points)
                self.study = self.study.for_data(labelled=data["num_classes"] > 0, known=data["known"])
                unfinished = self._run_trials(room)
            return self._finish(about, room, signals, unfinished)

    def _try_in_worker(self, room: "Room") -> dict[str, Any]:
        """Return what the data are, after a worker has loaded them, set up a run and told how long all will take.

        What is left to the data among the options is in `resolved` then.

        Raises:
            ValueError: for what the worker found to be impossible, or a forecast that is not approved.
        """
        import ray

        from eqssl.study.execution.cluster import on_every_node, start_in_worker

        options, workers = self.options, room.workers
        # The steps of --smoke are so few that timing them would take as long.
        work = None if options.smoke else self._work(room)
        objectives = list(self.study.objectives)
        output = str(self.folder.absolute()), self.lock.run.token
        on_every_node(preflight.check_node, *output)
        arguments = to_dict(options.run), output, workers, room.worker, work, objectives, registered(), options.pruner
        started = start_in_worker(preflight.try_run, room.worker, *arguments)
        import eqssl.study.execution.pool  # noqa: F401 (Tune takes seconds to import: meanwhile)

        found = ray.get(started)
        if "error" in found:
            raise ValueError(found["error"])
        for warning in found["warnings"]:
            self.console.print(f"warning: {warning}", markup=False)
        strengths = found.pop("strengths")
        self.resolved = replace(options.run, {f"augment.{family}": value for family, value in strengths.items()})
        if timing := found.pop("timing"):
            starts = 1 if workers == 1 else 3  # of the trial's own process, Ray Train's, and those of the workers
            expected = forecast(work, timing, starts=starts)
            self.console.print(expected.text, soft_wrap=True)
            approve(expected.wall_s, options, self.console)
        return found

    def _work(self, room: "Room") -> Work | None:
        """Return what is left to do; None where that is nothing."""
        suggestions = self._suggestions()
        trials = suggestions.total - suggestions.ended
        epochs = suggestions.work(self.options.run) - trials  # that counts an evaluation as one more
        every = self.options.run.train.eval_every
        evaluations = max(trials, epochs // every if every else 0)
        done = self.record.records()
        begun = [trial for trial in self.record.suggested_trials() if trial.id not in done]
        checkpoints = [str((self.record.trial_folder(trial) / "checkpoint").absolute()) for trial in begun]
        return Work(trials, epochs, evaluations, checkpoints, min(room.trials, trials)) if epochs else None

    def _plan(self) -> "Suggestions":
        from eqssl.study.search.schedule import Suggestions

        return Suggestions(self.study, self.options)

    def _suggestions(self) -> "Suggestions":
        suggestions = self._plan()
        suggestions.search.warm_start(self.warm_points)
        suggestions.restore(self.record.suggested_trials(), self.record.records())
        return suggestions

    def _run_trials(self, room: "Room") -> list[TrialRecord]:
        from eqssl.study.execution import pool as runner
        from eqssl.study.progress import StudyProgress
        from eqssl.study.search.pruning import Halving

        base, suggestions = self.options.run, self._suggestions()
        earlier = list(self.record.records().values())
        halving = None
        if self.options.pruner == "halving":
            halving = Halving(base.train, self.study.objectives, self.stages[0])
            halving.restore(earlier)
        self.tracker.begin(self.record.study_id, self.resolved, earlier, self.record.suggested_trials())
        work, figures = suggestions.work(base), list(self.study.objectives)
        progress = StudyProgress(self.console, base, suggestions.total, suggestions.ended, work, figures)

        def spec(trial: Trial) -> dict[str, Any]:
            self.record.trial_suggested(trial)
            return runner.trial_spec(trial, self.options, self.folder, room.worker, self.lock.run.token)

        listeners = [self.record, suggestions, self.tracker, progress]
        with progress:
            return runner.run_trials(suggestions, spec, listeners, room, self.folder / ".ray", figures, halving)

    def _finish(
        self, about: dict[str, Any], room: "Room", signals: StopSignals, unfinished: list[TrialRecord]
    ) -> dict[str, Any]:
        from eqssl.report.tables import result_table
        from eqssl.study.results import summarise, write_results
        from eqssl.study.search.sampler import write_journal

        signal_number = signals.number
        if self.lock.lost:  # what is in the folder is another process's now
            raise Interrupted(signal_number, signals.reason)
        self.lock.renew()
        records = list(self.record.records().values())
        device, devices = ("GPU", room.gpus) if room.gpus else ("CPU", room.cpus)
        about |= {
            "study_id": self.record.study_id,
            "status": "stopped" if signal_number else "complete",
            "wall_s": time.perf_counter() - self.start,
            "ledger": ledger(records, device, devices, run_seconds(self.folder), unfinished),
        }
        summary = summarise(change(self.study, seeds=self.options.seeds), records, about, self.folder)
        files = write_results(summary, records, self.folder)
        if self.study.space:
            write_journal(self.study.space, self.study.objectives, records, self.folder / "optuna.journal")
        status, patience_s = ("KILLED", 2) if signal_number else ("FINISHED", 30)
        self.tracker.close(status, files, patience_s, summary)
        if signal_number:
            raise Interrupted(signal_number, signals.reason)
        if self.tracker.dropped:
            self.console.print(f"warning: {self.tracker.dropped} entries did not reach {self.options.tracking_uri}")
        self.console.print(result_table(summary))
        self.console.print(ledger_line(summary["ledger"]), soft_wrap=True)
        self.console.print(f"results: {self.folder}", soft_wrap=True)
        self.console.print(summary["sentence"], soft_wrap=True, markup=False)
        if signals.number:  # it came meanwhile, and no further study of this command should start
            raise Interrupted(signals.number, signals.reason)
        return summary
