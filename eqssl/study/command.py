"""A study with the final test of its choice, from code or as a command with an exit code."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace as change
from typing import Any

from rich.console import Console

from eqssl.config import replace
from eqssl.files import as_path, replace_unknown_letters
from eqssl.signals import Interrupted, SignalHandler, terminate
from eqssl.study.controls import final_test
from eqssl.study.definition import FRESH_SEED, Study
from eqssl.study.execution.preflight import check_output
from eqssl.study.flow import NOTHING, run_search
from eqssl.study.options import StudyOptions, default_options, parse, settle
from eqssl.study.plan import plan
from eqssl.study.store.records import known_study

PLANNED = "planned"  # status of a dry run
NOTHING_COMPLETED, BAD_OPTIONS = 1, 2  # exit codes


def on_test(options: StudyOptions, seeds: int) -> StudyOptions:
    """Return the options of a final test: fresh seeds, the full evaluation, reported on test.

    Args:
        options: those of the search, see `settle`.
        seeds: number of trials of every row.
    """
    run = options.run
    final = {"train.seed": run.train.seed + FRESH_SEED, "evaluate.split": "test", "evaluate.level": "full"}
    return change(
        options, run=replace(run, final), seeds=seeds, configs=None, final_test=0, seed_schedule="fixed", pruner="none"
    )


def run_study(study: Study, options: StudyOptions | None = None, *, console: Console | None = None) -> dict[str, Any]:
    """Run a study, or resume it, write its results and report, and return the content of summary.json.

    The final test of its choice, if `options.final_test` asks for one, is a separate study, OUTPUT/STUDY_test, whose
    trials are never pruned. With `options.dry_run` the plan is shown, and only `study` and `status`, planned, returned.

    Args:
        study: the question.
        options: how it is run; default: the study's own.
        console: where progress and the final table are shown; default: nowhere.

    Raises:
        ValueError: for options that cannot work, before anything is trained or written.
        Interrupted: after SIGINT, SIGTERM or --max-hours; all trials that have ended are on record.
    """
    study, options = settle(study, options or default_options(study))
    console = console or Console(quiet=True)
    if options.dry_run:
        console.print("\n".join(plan(study, options)), markup=False, soft_wrap=True)
        return {"status": PLANNED, "study": study.name}
    if not options.final_test:
        return run_search(study, options, console)
    check_output(options.output)
    folder = as_path(options.output) / f"{study.name}_test"
    begun = known_study(folder, resume=options.resume)  # checked now, since after the search it would be too late
    summary = run_search(study, options, console)
    if begun:  # its choice stands, even if a retried trial has changed the search's results since
        name, params = list(begun["identity"]["rows"].items())[-1]
    elif summary["chosen"]:
        name, params = summary["chosen"]["configuration"], summary["chosen"]["params"]
    else:
        return summary
    last = change(on_test(options, options.final_test), yes=True)  # the user may no longer be there to answer
    run_search(final_test(study, options, name, params), last, console)
    return summary


def main(study: Study, arguments: Sequence[str] | None = None, run: Callable[..., dict[str, Any]] | None = None) -> int:
    """Run a study from the command line and return its exit code.

    Args:
        study: the question, with its defaults.
        arguments: the command line; default: that of this process.
        run: called instead of `run_study`, for a question that takes several studies.

    Returns:
        0; 1 if no searched configuration was completed; 2 for options that cannot work, a folder in use or a forecast
        that was declined; 130 after SIGINT; 143 after SIGTERM, --max-hours or the loss of the folder. A signal after
        the last trial does not change the exit code, unless the command has another study to start.
    """
    replace_unknown_letters()
    try:
        with SignalHandler(terminate):  # while `StopSignals` is not entered, such as during imports
            study, options = parse(study, sys.argv[1:] if arguments is None else arguments)
            width = None if sys.stdout.isatty() else 140
            summary = (run or run_study)(study, options, console=Console(highlight=False, width=width))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_OPTIONS
    except Interrupted as stop:
        print(f"stopped by {stop}: continue with the same command and --resume", file=sys.stderr)
        return stop.code
    return NOTHING_COMPLETED if summary["status"] == NOTHING else 0
