"""After a study: what it chose, trained again with fresh seeds and reported on test."""

import json
from dataclasses import replace as change
from typing import Any

from eqssl.config import replace
from eqssl.files import as_path, read
from eqssl.study.definition import ATTENTION, AUTOENCODE, CONTROLS, Study
from eqssl.study.execution.preflight import check_output
from eqssl.study.flow import run_study
from eqssl.study.options import StudyOptions
from eqssl.study.store.records import check_same

FRESH = 1000  # added to the seed, so that no seed of the search comes again
PLAIN = tuple(row for row in CONTROLS if row != AUTOENCODE)
BESIDE = ("constant", "pixels", "random", *PLAIN)


def on_test(options: StudyOptions, seeds: int) -> StudyOptions:
    """Return the options of a last stage: fresh seeds, everything evaluated, reported on test."""
    run = options.run
    fresh = {"train.seed": run.train.seed + FRESH, "evaluate.split": "test", "evaluate.level": "full"}
    return change(options, run=replace(run, fresh), seeds=seeds, trials=None, race=False, stopping="none")


def run_confirmed(study: Study, options: StudyOptions, **shown: Any) -> dict[str, Any]:
    """Run a study and, if `options.confirm` asks for it, confirm its choice; return the study's own summary.

    Args:
        study, options: as of `run_study`.
        shown: what `run_study` takes beside.
    """
    if not options.confirm:
        return run_study(study, options, **shown)
    check_output(options.output)
    last = as_path(options.output) / f"{study.name}_test"
    begun = read(last / "study.json")
    if begun and not options.resume:  # after the search it would be too late
        check_same(last, {}, {}, resume=False)
    summary = run_study(study, options, **shown)
    if chosen := _choice_of(begun) if begun else summary["chosen"]:
        confirm(study, change(options, yes=True), chosen, **shown)  # nobody may be there to be asked again
    return summary


def _choice_of(begun: bytes) -> dict[str, Any]:
    """Return what a confirmation confirms: it holds, whatever a trial that was tried again has shown since.

    Args:
        begun: its study.json, whose last row is the choice.
    """
    *_, (name, params) = json.loads(begun)["identity"]["rows"].items()
    return {"configuration": name, "params": params}


def confirm(study: Study, options: StudyOptions, chosen: dict[str, Any], **shown: Any) -> dict[str, Any]:
    """Train a choice again, beside its controls, and report it on test; return the summary.

    It is a study of its own, OUTPUT/STUDY_test, at the full budget whatever the search had stopped. Where more than the
    reconstruction was searched, the choice is compared with controls that share the rest: what stronger augmentation
    brings is no gain of the reconstruction. Its auto-encoding control has all of its options but the attention.

    Args:
        study, options: of the search.
        chosen: from its summary.
        shown: what `run_study` takes beside.
    """
    name, params = chosen["configuration"], chosen["params"]
    rows = {row: overrides for row, overrides in study.rows.items() if row in BESIDE}
    shared = {option: value for option, value in params.items() if not option.startswith("recon.")}
    own = {f"{name}, {row}": shared | rows[row] for row in PLAIN if row in rows and shared.keys() - rows[row].keys()}
    compared = tuple(own_row if (own_row := f"{name}, {row}") in own else row for row in PLAIN)
    controls = {row: ("base",) for row in own} | {name: compared}
    recon = replace(options.run, params).recon
    if (study.twins or AUTOENCODE in study.rows) and recon.attention != AUTOENCODE and recon.weight > 0:
        twin = f"{name}, {AUTOENCODE}"
        own[twin] = params | {ATTENTION: AUTOENCODE}
        controls |= {name: (*compared, twin), twin: compared}
    last = change(
        study,
        name=f"{study.name}_test",
        space={},
        configurations=0,
        rows=rows | own | {name: params},  # the choice last, see `_choice_of`
        controls=dict(study.controls) | controls,
        twins=False,
        subject=name,
    )
    return run_study(last, on_test(options, options.confirm), **shown)
