"""A study from its options to its results: the folder, Ray, the preflight, the trials, the summary."""

import time
from dataclasses import asdict
from dataclasses import replace as change
from typing import TYPE_CHECKING, Any

from rich.console import Console

from eqssl.config import RunConfig, flatten, identity, replace
from eqssl.evaluation import PROTOCOL_VERSION
from eqssl.files import as_path
from eqssl.study.controls import with_matched_controls
from eqssl.study.definition import Study, count_trials, seed_stages
from eqssl.study.execution.forecast import approve
from eqssl.study.execution.preflight import check_node, check_options, try_run
from eqssl.study.execution.setup import StudySetup
from eqssl.study.execution.signals import StopSignals
from eqssl.study.options import StudyOptions, default_options
from eqssl.study.search.space import Trial
from eqssl.study.store.ledger import ledger, ledger_line
from eqssl.study.store.lock import RunLock, run_seconds
from eqssl.study.store.records import RESULTS_SCHEMA, StudyFolder, TrialRecord

if TYPE_CHECKING:
    from eqssl.study.execution.cluster import Capacity
    from eqssl.study.search.pruning import Halving
    from eqssl.study.search.schedule import Suggestions

MANY_ENTRIES = 1000  # that wait for the tracking server: what is waited for is said


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
    check_options(study, options)
    study = with_matched_controls(study, options)
    with RunLock(as_path(options.output) / study.name) as lock:
        return _StudyRun(study, options, console or Console(quiet=True), lock).run()


class _StudyRun:
    """One process's part in a study, step by step."""

    def __init__(self, study: Study, options: StudyOptions, console: Console, lock: RunLock):
        from eqssl.tracking import StudyTracker

        self.start = time.perf_counter()
        self.study, self.options, self.console, self.lock = study, options, console, lock
        self.stages = seed_stages(options.seeds, options.seed_schedule)
        self.folder = as_path(options.output) / study.name
        self.record = StudyFolder.open(self.folder, self._identity(), resume=options.resume)
        self.warm_points = self.record.warm_points(options.warm_start, study.objectives)
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
            "trials": count_trials(self.study.count_configs(self.options.configs), self.stages),
            "seeds": self.options.seeds,
            **{name: getattr(self.options, name) for name in ("sampler", "seed_schedule", "pruner", "warm_start")},
            **identity(self.options.run),
        }

    def run(self) -> dict[str, Any]:
        from eqssl.study.execution import cluster

        self._say(self.study.question)
        with StopSignals() as signals, self.lock.heartbeat(lost=signals.stop):
            with signals.after(self.options.max_hours), cluster.ray_running():
                signals.arm()
                suggestions = self._suggestions(self.record.suggested_trials(), self.record.records())
                left = suggestions.total - suggestions.ended
                epochs = suggestions.work(self.options.run) - left  # without the evaluations
                capacity = cluster.capacity(self.options, cluster.alive_nodes(), left)
                self._say(capacity.text)
                data = self._preflight(capacity, timed=epochs > 0 and not self.options.smoke)
                if (epoch_s := data.pop("epoch_s")) is not None:
                    approve(epochs, epoch_s, min(capacity.trials, left), self.options, self.console)
                self.tracker.ready()
                self.about = {"data": data, "concurrency": capacity.text, "stages": self.stages}
                self.about["options"] = flatten(self.options.run)
                shown = {name: getattr(self.study, name) for name in ("question", "subject", "controls")}
                self.record.create(data["digest"], self.about | shown, self.warm_points)
                self.study = self.study.for_data(labelled=data["num_classes"] > 0, known=data["known"])
                unfinished = self._run_trials(capacity, signals)
            return self._finish(capacity, signals, unfinished)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def _suggestions(self, asked: list[Trial], ended: dict[str, TrialRecord]) -> "Suggestions":
        """Return the trials to come, after those that earlier commands have asked for and ended."""
        from eqssl.study.search.schedule import Suggestions

        suggestions = Suggestions(self.study, self.options)
        suggestions.search.warm_start(self.warm_points)
        suggestions.restore(asked, ended)
        return suggestions

    def _setup(self, capacity: "Capacity") -> StudySetup:
        folder, objectives = str(self.folder.absolute()), tuple(self.study.objectives)
        return StudySetup(folder, objectives, workers=self.options.workers, worker=capacity.worker)

    def _preflight(self, capacity: "Capacity", *, timed: bool) -> dict[str, Any]:
        """Return a description of the data, once every node and a worker have found that the study can run.

        `resolved` then has the options with all that is left to the data.

        Raises:
            ValueError: with the reason why the study cannot run.
        """
        from eqssl.study.execution import cluster

        setup, token = self._setup(capacity), self.lock.run.token
        cluster.on_every_node(check_node, setup.folder, token)
        arguments = self.options.run, token, capacity.workers, self.options.pruner, timed
        task = cluster.start_in_worker(try_run, setup, *arguments)
        import eqssl.study.execution.pool  # noqa: F401 (Tune takes seconds to import: meanwhile)

        found = cluster.result_of(task, setup, self._say)
        if "error" in found:
            raise ValueError(found["error"])
        for warning in found["warnings"]:
            self._say(f"warning: {warning}")
        strengths = found.pop("strengths")
        self.resolved = replace(self.options.run, {f"augment.{name}": value for name, value in strengths.items()})
        return found

    def _run_trials(self, capacity: "Capacity", signals: StopSignals) -> list[TrialRecord]:
        """Run the trials and return records of those that a stop has cut off."""
        from eqssl.study.execution.cluster import autoscaler_status
        from eqssl.study.execution.pool import run_trials
        from eqssl.study.progress import StudyProgress
        from eqssl.study.search.pruning import evaluated_every

        base = self.options.run
        suggestions, halving = self._resume()
        if suggestions.left_out:
            self._say(
                f"warning: {suggestions.left_out} of the {suggestions.design} configurations of {self.options.sampler} "
                f"are left out; all of them take --configs {suggestions.design}"
            )

        def run_of(trial: Trial) -> RunConfig:
            self.record.trial_suggested(trial)
            run = trial.run_config(base)
            pruned = halving is not None and trial.configuration.number is not None
            return replace(run, {"train.eval_every": evaluated_every(run.train)}) if pruned else run

        progress = StudyProgress(self.console, base, suggestions, list(self.study.objectives), autoscaler_status)
        listeners = [self.record, suggestions, self.tracker, progress]
        with progress:
            return run_trials(suggestions, run_of, self._setup(capacity), capacity, listeners, signals, halving)

    def _resume(self) -> "tuple[Suggestions, Halving | None]":
        """Return the trials to come and the pruner; they and the tracker take the records, which nothing else keeps."""
        from eqssl.study.search.pruning import Halving

        asked, ended = self.record.suggested_trials(), self.record.records()
        self.tracker.begin(self.record.study_id, self.resolved, list(ended.values()), asked)
        halving = None
        if self.options.pruner == "halving":
            halving = Halving(self.options.run.train, self.study.objectives, self.stages[0])
            halving.restore(ended.values())
        return self._suggestions(asked, ended), halving

    def _finish(self, capacity: "Capacity", signals: StopSignals, unfinished: list[TrialRecord]) -> dict[str, Any]:
        """Write the summary and the report of all trials that have ended, and return the summary."""
        from eqssl.report.tables import result_table
        from eqssl.study.results import summarise, write_results
        from eqssl.study.search.sampler import write_journal

        stopped = signals.interruption
        if stopped and self.lock.lost:  # the folder is another process's now
            raise stopped
        self.lock.renew()
        records = list(self.record.records().values())
        about = self.about | {
            "study_id": self.record.study_id,
            "status": "stopped" if stopped else "complete",
            "wall_s": time.perf_counter() - self.start,
            "ledger": ledger(records, *capacity.devices, run_seconds(self.folder), unfinished),
        }
        summary = summarise(change(self.study, seeds=self.options.seeds), records, about, self.folder)
        files = write_results(summary, records, self.folder)
        if self.study.space:
            write_journal(self.study.space, self.study.objectives, records, self.folder / "optuna.journal")
        status, patience_s = ("KILLED", 2) if stopped else ("FINISHED", 30)
        if (waiting := self.tracker.waiting) > MANY_ENTRIES and not stopped:
            self._say(f"{waiting} entries wait for {self.options.tracking_uri}; Ctrl-C leaves them to --resume")
        self.tracker.close(status, files, patience_s, summary, lambda: signals.interruption is not None)
        if self.tracker.dropped:
            missing = f"{self.tracker.dropped} entries have not reached {self.options.tracking_uri}"
            self._say(f"warning: {missing}; the same command with --resume sends them")
        if stopped:
            raise stopped
        self.console.print(result_table(summary))
        self._say(ledger_line(summary["ledger"]))
        self._say(f"results: {self.folder}")
        self._say(summary["sentence"])
        if signals.interruption:  # it came meanwhile, and no further study of this command should start
            raise signals.interruption
        return summary
