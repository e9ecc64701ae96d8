"""A study from its options to its results: preflight, Ray, trials, summary, figures."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from eqssl import __version__
from eqssl.config import flatten, to_dict
from eqssl.evaluation import PROTOCOL_VERSION
from eqssl.study import preflight
from eqssl.study.definition import Study
from eqssl.study.options import StudyOptions, parse
from eqssl.study.plugins import registered
from eqssl.study.record import Record
from eqssl.study.signals import Interrupted, StopSignals
from eqssl.study.space import Trial

if TYPE_CHECKING:
    from eqssl.study.cluster import Room

NOTHING_COMPLETED, BAD_OPTIONS, SIGNALLED = 1, 2, 128


def main(study: Study, arguments: Sequence[str] | None = None, run: Callable[..., dict[str, Any]] | None = None) -> int:
    """Run a study from the command line and return its exit code.

    Args:
        study: with its defaults.
        arguments: default: those of this process.
        run: in the place of `run_study`, for a question that takes several.

    Returns:
        0; 1 if nothing of what was asked for was completed; 2 for options that cannot work; 130 or 143 after SIGINT
        or SIGTERM.
    """
    try:
        study, options = parse(study, sys.argv[1:] if arguments is None else arguments)
        width = None if sys.stdout.isatty() else 140
        summary = (run or run_study)(study, options, console=Console(highlight=False, width=width))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_OPTIONS
    except Interrupted as stop:
        print(f"stopped by {stop}: the same command with --resume goes on", file=sys.stderr)
        return SIGNALLED + stop.number
    searched = [t for t in summary["trials"] if t["number"] is not None] or summary["trials"]
    return 0 if any(trial["status"] == "COMPLETE" for trial in searched) else NOTHING_COMPLETED


def run_study(study: Study, options: StudyOptions | None = None, *, console: Console | None = None) -> dict[str, Any]:
    """Run a study, or go on with it, and return what its summary.json holds.

    Args:
        study: the question.
        options: how it is run; default: the study's own.
        console: where progress and the final table are shown; default: nowhere.

    Raises:
        ValueError: for options that cannot work, before anything is trained or written.
        Interrupted: after SIGINT or SIGTERM, with all that has ended on record.
    """
    options = options or StudyOptions(run=study.base, seeds=study.seeds, sampler=study.sampler)
    return _Run(study, options, console or Console(quiet=True)).go()


class _Run:
    """One process's part in a study."""

    def __init__(self, study: Study, options: StudyOptions, console: Console):
        from eqssl.tracking import StudyTracker

        self.start = time.perf_counter()
        self.study, self.options, self.console = study, options, console
        preflight.check_options(study, options)
        configurations = study.configurations if study.space else min(1, study.configurations)
        self.trials = options.trials or configurations * options.seeds
        self.seeds = options.seeds if study.space else self.trials or options.seeds
        self.folder = Path(options.output) / study.name
        self.record = Record.open(self.folder, self._identity(), resume=options.resume)
        varied = {option for overrides in study.rows.values() for option in overrides or {}} | study.space.keys()
        self.tracker = StudyTracker(options.tracking_uri, study.name, sorted(varied), options.run, self.folder)

    def _identity(self) -> dict[str, Any]:
        """Return everything that must be equal for two runs of a study to be parts of one."""
        run = {option: value for option, value in flatten(self.options.run).items() if option != "data.cache"}
        return {
            "study": self.study.name,
            "version": __version__,
            "protocol": PROTOCOL_VERSION,
            "space": {option: asdict(values) for option, values in self.study.space.items()},
            "rows": dict(self.study.rows),
            "objectives": dict(self.study.objectives),
            "trials": self.trials,
            "seeds": self.seeds,
            "sampler": self.options.sampler,
            **run,
        }

    def go(self) -> dict[str, Any]:
        from eqssl.study import cluster

        with StopSignals() as signals:
            with cluster.ray_running() as resources:
                signals.arm()
                room = cluster.room(self.options, resources)
                self.console.print(room.text)
                data = self._try_in_worker()
                self.tracker.ready()
                about = {"data": data, "concurrency": room.text, "options": flatten(self.options.run)}
                shown = {"question": self.study.question, "controls": dict(self.study.controls)}
                self.record.create(data["digest"], about | shown)
                self.study = self.study.for_data(labelled=data["num_classes"] > 0)
                self._run_trials(room)
            return self._finish(about, signals.number)

    def _try_in_worker(self) -> dict[str, Any]:
        """Return what the data are, after a worker has loaded them and set up a run.

        Raises:
            ValueError: for what the worker found to be impossible.
        """
        import ray

        from eqssl.study.cluster import cpus_per_worker, start_in_worker

        arguments = to_dict(self.options.run), self.options.workers_per_trial, registered()
        started = start_in_worker(preflight.try_run, cpus_per_worker(self.options), *arguments)
        import eqssl.study.runner  # noqa: F401 (Tune takes seconds to import: meanwhile)

        found = ray.get(started)
        if "error" in found:
            raise ValueError(found["error"])
        for warning in found["warnings"]:
            self.console.print(f"warning: {warning}", markup=False)
        return found

    def _run_trials(self, room: "Room") -> None:
        from eqssl.study import runner
        from eqssl.study.progress import StudyProgress
        from eqssl.study.suggestions import Suggestions

        base = self.options.run
        suggestions = Suggestions(
            self.study, trials=self.trials, seeds=self.seeds, sampler=self.options.sampler, seed=base.train.seed
        )
        asked, done = self.record.asked_trials(), self.record.records()
        suggestions.restore(asked, done)
        self.tracker.begin(self.record.study_id, flatten(base), list(done.values()), asked)
        work, figures = suggestions.work(base), list(self.study.objectives)
        progress = StudyProgress(self.console, base, suggestions.total, suggestions.ended, work, figures)

        def spec(trial: Trial) -> dict[str, Any]:
            self.record.asked(trial)
            return runner.trial_spec(trial, self.options, self.folder, room.gpus)

        listeners = [self.record, suggestions, self.tracker, progress]
        with progress:
            runner.run_trials(suggestions, spec, listeners, room, self.folder / ".ray")

    def _finish(self, about: dict[str, Any], signal_number: int | None) -> dict[str, Any]:
        from eqssl.report.tables import result_table
        from eqssl.study.results import summarise, write_results

        records = list(self.record.records().values())
        about |= {
            "study_id": self.record.study_id,
            "status": "stopped" if signal_number else "complete",
            "wall_s": time.perf_counter() - self.start,
        }
        summary = summarise(self.study, records, about)
        files = write_results(summary, records, self.folder)
        self.tracker.close("KILLED" if signal_number else "FINISHED", files, patience_s=2 if signal_number else 30)
        if signal_number:
            raise Interrupted(signal_number)
        if self.tracker.dropped:
            self.console.print(f"warning: {self.tracker.dropped} entries did not reach {self.options.tracking_uri}")
        self.console.print(result_table(summary))
        self.console.print(f"results: {self.folder}", soft_wrap=True)
        return summary
