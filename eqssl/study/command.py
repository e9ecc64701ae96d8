"""The command of a study: its options, the study itself, the final test of its choice, the exit code."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace as change
from typing import Any

from rich.console import Console

from eqssl.config import replace
from eqssl.files import as_path, read
from eqssl.study.controls import final_test
from eqssl.study.definition import Study
from eqssl.study.execution.preflight import check_output
from eqssl.study.execution.signals import Interrupted
from eqssl.study.flow import run_study
from eqssl.study.options import StudyOptions, parse
from eqssl.study.store.records import check_same

NOTHING_COMPLETED, BAD_OPTIONS, SIGNALLED = 1, 2, 128
FRESH_SEED = 1000  # added to the seed of a final test, so that no seed of the search comes again


def on_test(options: StudyOptions, seeds: int) -> StudyOptions:
    """Return the options of a final test: fresh seeds, the full evaluation, reported on test.

    Args:
        options: of the search.
        seeds: trials of every row.
    """
    run = options.run
    final = {"train.seed": run.train.seed + FRESH_SEED, "evaluate.split": "test", "evaluate.level": "full"}
    return change(options, run=replace(run, final), seeds=seeds, configs=None, seed_schedule="fixed", pruner="none")


def run_with_final_test(study: Study, options: StudyOptions, **shown: Any) -> dict[str, Any]:
    """Run a study and then the final test of its choice, if `options.final_test` asks for it.

    The final test is a study of its own, OUTPUT/STUDY_test, whose trials are never pruned.

    Args:
        study, options: as of `run_study`.
        shown: further arguments of `run_study`.

    Returns:
        The study's own summary.
    """
    if not options.final_test:
        return run_study(study, options, **shown)
    check_output(options.output)
    folder = as_path(options.output) / f"{study.name}_test"
    begun = read(folder / "study.json")
    if begun and not options.resume:  # after the search it would be too late
        check_same(folder, {}, {}, resume=False)
    summary = run_study(study, options, **shown)
    if begun:  # its choice holds, even if a trial that was tried again has changed the search's results since
        name, params = list(json.loads(begun)["identity"]["rows"].items())[-1]
    elif summary["chosen"]:
        name, params = summary["chosen"]["configuration"], summary["chosen"]["params"]
    else:
        return summary
    last = change(on_test(options, options.final_test), yes=True)  # nobody may be there to be asked again
    run_study(final_test(study, options, name, params), last, **shown)
    return summary


def main(study: Study, arguments: Sequence[str] | None = None, run: Callable[..., dict[str, Any]] | None = None) -> int:
    """Run a study from the command line and return its exit code.

    Args:
        study: with its defaults.
        arguments: default: those of this process.
        run: in the place of `run_with_final_test`, for a question that takes several studies.

    Returns:
        0; 1 if no searched configuration was completed; 2 for options that cannot work, a folder in use or a forecast
        that was declined; 130 after SIGINT; 143 after SIGTERM, --max-hours or the loss of the folder. A signal after
        the last trial changes none of this, unless the command has another study to start.
    """
    try:
        study, options = parse(study, sys.argv[1:] if arguments is None else arguments)
        width = None if sys.stdout.isatty() else 140
        summary = (run or run_with_final_test)(study, options, console=Console(highlight=False, width=width))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_OPTIONS
    except Interrupted as stop:
        print(f"stopped by {stop}: the same command with --resume goes on", file=sys.stderr)
        return SIGNALLED + stop.number
    searched = [t for t in summary["trials"] if t["number"] is not None] or summary["trials"]
    return 0 if any(trial["status"] == "COMPLETE" for trial in searched) else NOTHING_COMPLETED
