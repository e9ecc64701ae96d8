"""A stage of a study that compares methods: one knob of every entrant is tuned on val, with one seed."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import replace as change
from typing import Any

from eqssl.config import replace
from eqssl.study.command import run_study
from eqssl.study.definition import Study
from eqssl.study.options import StudyOptions


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
        accuracy: kNN on val; 0 without labels.
    """

    overrides: dict[str, Any]
    accuracy: float


def tune(
    study: Study, options: StudyOptions, entrants: Mapping[str, Entrant], earlier: Mapping[str, Setting], **shown: Any
) -> tuple[dict[str, Setting], dict[str, Any]]:
    """Run every setting of every entrant and return the best ones, and the data's description.

    The best has the highest R² among those that are accurate enough: at most .01 below what the entrant builds on. If
    none is, it has the highest accuracy, and without labels the highest R².

    Args:
        study: whose name and base are taken.
        options: how it is run.
        entrants: by name; those whose settings all failed or collapsed are left out of what is returned.
        earlier: what entrants build on: they have its learning rate, and are left out where it is missing.
        shown: what `run_study` takes beside.
    """
    from eqssl.evaluation.statistics import ACCURACY_MARGIN

    on_val = replace(options.run, {"evaluate.split": "val", "evaluate.level": "quick"})
    entrants = {name: entrant for name, entrant in entrants.items() if entrant.on in {None, *earlier}}
    settings = {name: _settings(name, entrant, earlier) for name, entrant in entrants.items()}
    rows = {row: overrides for of_entrant in settings.values() for row, overrides in of_entrant.items()}
    summary = run_study(change(study, rows=rows), change(options, seeds=1, run=on_val), **shown)
    done = usable(summary["trials"])
    best = {}
    for name, entrant in entrants.items():
        metrics = {row: done[row] for row in settings[name] if row in done}
        if metrics:
            floor = earlier[entrant.on].accuracy - ACCURACY_MARGIN if entrant.on else math.inf
            row = best_row(metrics, floor)
            best[name] = Setting(rows[row], metrics[row].get("knn", 0.0))
    return best, summary["data"]


def usable(trials: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return configuration -> figures of the trials, as a summary has them, that neither failed nor collapsed."""
    return {t["configuration"]: t["metrics"] for t in trials if t["status"] == "COMPLETE" and not t["collapsed"]}


def _settings(name: str, entrant: Entrant, earlier: Mapping[str, Setting]) -> dict[str, dict[str, Any]]:
    rate = {"train.lr": earlier[entrant.on].overrides["train.lr"]} if entrant.on else {}
    at = {**rate, **entrant.overrides}
    return {f"{name}, {entrant.knob} {value:g}": at | {entrant.knob: value} for value in entrant.values}


def best_row(metrics: Mapping[str, Mapping[str, float]], floor: float) -> str:
    """Return the row with the highest R² of those whose accuracy reaches the floor, else the most accurate."""
    r2 = {row: figures["r2_mean"] for row, figures in metrics.items()}
    accuracy = {row: figures.get("knn", 0.0) for row, figures in metrics.items()}
    good = [row for row in metrics if accuracy[row] >= floor]
    return max(good, key=r2.get) if good else max(metrics, key=lambda row: (accuracy[row], r2[row]))
