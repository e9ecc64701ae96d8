"""A study that compares methods: one knob of every entrant is tuned on val, with one seed; the best are compared."""

import json
import logging
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from dataclasses import replace as change
from typing import Any

from eqssl.config import get, replace
from eqssl.files import as_path, read
from eqssl.study.definition import ATTENTION, AUTOENCODE, REFERENCE_ROWS, REFERENCES, Study
from eqssl.study.execution import preflight
from eqssl.study.flow import run_study
from eqssl.study.options import StudyOptions, default_options
from eqssl.study.store.records import write_json

logger = logging.getLogger(__name__)

OF_A_SEARCH = ("trials", "sampler", "race", "stopping", "warm_start", "confirm", "objectives")


@dataclass(frozen=True)
class Entrant:
    """What is tuned.

    Args:
        overrides: dotted option -> value, of all its settings.
        knob: the one dotted option that differs.
        values: of the knob, a setting each.
        on: the entrant of an earlier stage that it builds on.
    """

    overrides: Mapping[str, Any]
    knob: str
    values: tuple[float, ...]
    on: str | None = None


@dataclass(frozen=True)
class Setting:
    """The best setting of an entrant.

    Args:
        overrides: of its row.
        accuracy: of the linear probe on val; 0 without labels.
        accurate: whether that is enough beside what the entrant builds on, so that R² chose it, where it is known; else
            accuracy did. None where it builds on nothing.
    """

    overrides: dict[str, Any]
    accuracy: float
    accurate: bool | None = None


def check_options(study: Study, options: StudyOptions, own: Iterable[str] = ()) -> None:
    """Refuse what the options alone show to be impossible, and what has no meaning where all configurations are rows.

    Args:
        study, options: as of `run_study`.
        own: dotted options that the study gives values of its own.

    Raises:
        ValueError: naming the option, its value and what is allowed.
    """
    default = default_options(study)
    for name in OF_A_SEARCH:
        value, allowed = getattr(options, name), getattr(default, name)
        if value != allowed:
            raise ValueError(
                f"--{name.replace('_', '-')} is {value}; allowed in {study.name}, which searches no space: {allowed}"
            )
    for name in own:
        value, allowed = get(options.run, name), get(study.base, name)
        if value != allowed:
            raise ValueError(f"--{name} is {value}; allowed in {study.name}, which sets it: {allowed}")
    preflight.check_options(change(study, space={}), options)


def tune(
    study: Study,
    options: StudyOptions,
    entrants: Mapping[str, Entrant],
    earlier: Mapping[str, Setting],
    *,
    later: str,
    **shown: Any,
) -> tuple[dict[str, Setting], dict[str, Any]]:
    """Run every setting of every entrant and return the best ones, and the data's description.

    The best has the highest R² among those that are accurate enough: at most .01 below what the entrant builds on. If
    none is, it has the highest accuracy, and without labels the highest R². What was chosen, and by which of these, is
    written to OUTPUT/STUDY/choices.json, and holds once the next study was begun, whatever a trial that is tried again
    after a resume may show.

    Args:
        study: whose name and base are taken.
        options: how it is run.
        entrants: by name; those whose settings all failed or collapsed are left out of what is returned, with a
            warning.
        earlier: what entrants build on: they have its learning rate, and are left out where it is missing.
        later: name of the study that builds on the choice.
        shown: what `run_study` takes beside.
    """
    on_val = replace(options.run, {"evaluate.split": "val", "evaluate.level": "quick"})
    entrants = {name: entrant for name, entrant in entrants.items() if entrant.on in {None, *earlier}}
    settings = {name: _settings(name, entrant, earlier) for name, entrant in entrants.items()}
    rows = {row: overrides for of_entrant in settings.values() for row, overrides in of_entrant.items()}
    once = change(options, run=on_val, seeds=1, trials=None)
    summary = run_study(change(study, rows=rows), once, **shown)
    output = as_path(options.output)
    path = output / study.name / "choices.json"
    if read(output / later / "study.json") and (text := read(path)):
        best = {name: Setting(**of) for name, of in json.loads(text).items()}
    else:
        best = _best(entrants, settings, usable(summary["trials"]), earlier)
        write_json(path, {name: asdict(of) for name, of in best.items()})
    for name in (name for name in entrants if name not in best):
        why = _why(summary["trials"], settings[name]) or f"{later} was begun without"
        logger.warning("%s is left out: %s", name, why)
    return best, summary["data"]


def _best(
    entrants: Mapping[str, Entrant],
    settings: Mapping[str, Mapping[str, dict[str, Any]]],
    done: Mapping[str, Mapping[str, float]],
    earlier: Mapping[str, Setting],
) -> dict[str, Setting]:
    """Return the best setting of every entrant that has one.

    Args:
        entrants, earlier: as `tune` has them.
        settings: entrant -> row -> overrides.
        done: row -> figures of what can be used.
    """
    found = {}
    for name, entrant in entrants.items():
        if metrics := {row: done[row] for row in settings[name] if row in done}:
            found[name] = _choose(settings[name], metrics, earlier[entrant.on] if entrant.on else None)
    return found


def _choose(
    rows: Mapping[str, dict[str, Any]], metrics: Mapping[str, Mapping[str, float]], on: Setting | None
) -> Setting:
    from eqssl.stats import ACCURACY_MARGIN

    floor = on.accuracy - ACCURACY_MARGIN if on else math.inf
    row = best_row(metrics, floor)
    accuracy = metrics[row].get("linear", 0.0)
    return Setting(rows[row], accuracy, accuracy >= floor if on else None)


def _why(trials: Iterable[Mapping[str, Any]], rows: Collection[str]) -> str:
    return "; ".join(
        f"{trial['configuration']}: {trial['error'] or 'collapsed: ' + ', '.join(trial['collapsed'])}"
        for trial in trials
        if trial["configuration"] in rows and (trial["error"] or trial["collapsed"])
    )


def usable(trials: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return configuration -> figures of the trials, as a summary has them, that neither failed nor collapsed."""
    return {t["configuration"]: t["metrics"] for t in trials if t["status"] == "COMPLETE" and not t["collapsed"]}


def _settings(name: str, entrant: Entrant, earlier: Mapping[str, Setting]) -> dict[str, dict[str, Any]]:
    rate = {"train.lr": earlier[entrant.on].overrides["train.lr"]} if entrant.on else {}
    at = {**rate, **entrant.overrides}
    return {f"{name}, {entrant.knob} {value:g}": at | {entrant.knob: value} for value in entrant.values}


def best_row(metrics: Mapping[str, Mapping[str, float]], floor: float) -> str:
    """Return the row with the highest R² of those whose accuracy reaches the floor, else the most accurate.

    Without labels R² decides alone, and where nothing is known between the views accuracy does.
    """
    r2 = {row: figures.get("r2_mean", 0.0) for row, figures in metrics.items()}
    accuracy = {row: figures.get("linear", 0.0) for row, figures in metrics.items()}
    good = [row for row in metrics if accuracy[row] >= floor]
    if good:
        return max(good, key=lambda row: (r2[row], accuracy[row]))
    return max(metrics, key=lambda row: (accuracy[row], r2[row]))


def rows_on_test(
    alone: Mapping[str, Setting],
    entrants: Mapping[str, Entrant],
    tuned: Mapping[str, Setting],
    longer: Mapping[str, float],
    epochs: int,
) -> tuple[dict[str, dict[str, Any] | None], dict[str, tuple[str, ...]]]:
    """Return the rows of the final table, and the controls of each.

    Args:
        alone: method -> its setting. Each also has a row of as long as it takes with reconstruction, one of the split
            without reconstruction and, where its reconstruction was tuned, one of auto-encoding at the same weight.
        entrants: that build on the methods.
        tuned: entrant -> its setting.
        longer: method -> how long an epoch with reconstruction takes over one without.
        epochs: of every other row.
    """
    rows = {name: REFERENCE_ROWS[name] for name in REFERENCES}
    controls = {}
    for method, setting in alone.items():
        rows[method] = setting.overrides
        rows[f"{method}, equal time"] = setting.overrides | {"train.epochs": math.ceil(epochs * longer.get(method, 1))}
        rows[f"{method}, no-recon"] = {o: v for o, v in setting.overrides.items() if o != "encoder.equi_fraction"}
        controls[method] = [method, f"{method}, no-recon"]
        if reconstruction := tuned.get(f"{method} + reconstruction"):
            rows[f"{method}, autoencode"] = reconstruction.overrides | {ATTENTION: AUTOENCODE}
            controls[method].append(f"{method}, autoencode")
    rows |= {entrant: setting.overrides for entrant, setting in tuned.items()}
    builds_on = {name: entrants[name].on for name in tuned}
    builds_on |= {row: row.partition(",")[0] for row in rows if row.partition(",")[0] in alone}
    return rows, {row: tuple(controls[method]) for row, method in builds_on.items()}
