"""After a study: what it chose, trained again with fresh seeds and reported on test."""

from dataclasses import replace as change
from typing import Any

from eqssl.config import replace
from eqssl.study.command import run_study
from eqssl.study.definition import CONTROLS, Study
from eqssl.study.options import StudyOptions

FRESH = 1000  # added to the seed, so that no seed of the search comes again
BESIDE = ("constant", "pixels", "random", *CONTROLS)


def on_test(options: StudyOptions, seeds: int) -> StudyOptions:
    """Return the options of a last stage: fresh seeds, everything evaluated, reported on test."""
    run = options.run
    fresh = {"train.seed": run.train.seed + FRESH, "evaluate.split": "test", "evaluate.level": "full"}
    return change(options, run=replace(run, fresh), seeds=seeds, trials=None, race=False, stopping="none")


def run_confirmed(study: Study, options: StudyOptions, **shown: Any) -> dict[str, Any]:
    """Run a study and, if `options.confirm` asks for it, confirm its choice; return the study's own summary.

    The confirmation is a study of its own, OUTPUT/STUDY_test, at the full budget whatever the search had stopped.

    Args:
        study, options: as of `run_study`.
        shown: what `run_study` takes beside.
    """
    summary = run_study(study, options, **shown)
    chosen = summary["chosen"]
    if options.confirm and chosen:
        rows = {name: overrides for name, overrides in study.rows.items() if name in BESIDE}
        rows[chosen["configuration"]] = chosen["params"]
        last = change(study, name=f"{study.name}_test", space={}, configurations=0, rows=rows)
        run_study(last, on_test(options, options.confirm), **shown)
    return summary
