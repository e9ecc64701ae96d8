"""From the records of trials to what a study says: intervals per configuration, the choice, the files."""

import json
import math
import statistics as middle
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eqssl.evaluation.statistics import (
    ACCURACY_MARGIN,
    Interval,
)
from eqssl.files import copy_folder, write_atomically
from eqssl.study.definition import Study
from eqssl.study.environment import environment
from eqssl.study.record import TrialRecord, write_json
from eqssl.study.table import Table

# Metrics that say nothing about an encoder.
COSTS = {"epoch", "lr", "train_s", "evaluate_s", "parameters", "sees_theta"}


RULE = (
    "of the searched configurations with all seeds (or the most there are) trained to their end, that did not collapse "
    "and whose {accuracy} is at most {margin} below the better control's, the one with the best {goal}; if there is "
    "none, the one with the best {accuracy}; of its seeds the first"
)


def choose(study: Study, records: Iterable[TrialRecord]) -> TrialRecord | None:
    """Return the trial whose encoder is kept, by `RULE`; None where no searched configuration qualifies."""
    records = list(records)
    searched = {r.configuration for r in records if r.number is not None and r.status == "COMPLETE"}
    searched -= {r.configuration for r in records if r.collapsed}
    seeds = Counter(r.configuration for r in records if r.status == "COMPLETE")
    most = max((seeds[name] for name in searched), default=0)
    # What was suggested again has twice the seeds, which puts no other configuration out of the running.
    searched = {name for name in searched if seeds[name] >= min(most, study.seeds)}
    table = Table(records, study.controls, study.objectives)
    means = {f: {n: table.sign(f) * i.estimate for n, i in table.means(f).items()} for f in study.objectives}
    figures = [figure for figure in study.objectives if searched & means[figure].keys()]
    if not figures:
        return None
    guard, goal = figures[0], figures[-1]
    control = table.better_control(guard)
    floor = means[guard][control] - ACCURACY_MARGIN if control else -math.inf
    good = [name for name in searched if means[guard].get(name, -math.inf) >= floor and name in means[goal]]
    key = goal if good else guard
    name = max(sorted(good or searched & means[guard].keys()), key=means[key].__getitem__)
    complete = (r for r in records if r.configuration == name and r.status == "COMPLETE")
    return min(complete, key=lambda record: record.seed)


def summarise(study: Study, records: list[TrialRecord], about: dict[str, Any]) -> dict[str, Any]:
    """Return all that summary.json holds.

    Args:
        study: whose objectives and seeds decide the choice.
        records: of all finished trials.
        about: what the caller knows beside: options, data, wall seconds.
    """
    places = {name: place for place, name in enumerate(study.rows)}
    records = sorted(records, key=lambda r: (places.get(r.configuration, len(places)), r.number or 0, r.seed))
    table = Table(records, study.controls, study.objectives)
    figures = sorted({figure for record in records for figure in record.metrics} - COSTS)
    means = {figure: table.means(figure) for figure in figures}
    gains = {figure: table.gains(figure) for figure in figures}
    behind = {figure: table.behind(figure) for figure in figures}
    chosen = choose(study, records)
    on_front = table.front_probability(study.objectives)
    verdicts = table.verdicts()
    accuracy, goal = next(iter(study.objectives)), list(study.objectives)[-1]
    warm = [record.overhead_s for record in records if record.warm]
    return {
        "study": study.name,
        "question": study.question,
        **about,
        "space": {option: asdict(values) for option, values in study.space.items()},
        "objectives": dict(study.objectives),
        "chosen": chosen and {name: getattr(chosen, name) for name in ("configuration", "params", "trial_id")},
        "rule": RULE.format(accuracy=accuracy, goal=goal, margin=ACCURACY_MARGIN),
        "overhead_s": {"median_warm": middle.median(warm) if warm else None, "warm_trials": len(warm)},
        "minimum_detectable_difference": {figure: table.detectable(figure) for figure in figures},
        "better_control": {figure: table.better_control(figure) for figure in figures},
        "best": {figure: table.best(figure) for figure in figures},
        "configurations": [
            {
                "name": name,
                "number": record.number,
                "params": record.params,
                "seeds": [r.seed for r in records if r.configuration == name and r.status == "COMPLETE"],
                "metrics": {figure: _bounds(means[figure][name]) for figure in figures if name in means[figure]},
                "front_probability": on_front.get(name),
                "equivariant_without_loss": verdicts.get(name),
                "gains": {figure: _bounds(gains[figure][name]) for figure in figures if name in gains[figure]},
                "behind": {figure: _bounds(behind[figure][name]) for figure in figures if name in behind[figure]},
            }
            for name, record in {record.configuration: record for record in records}.items()
        ],
        "trials": [asdict(record) for record in records],
        "environment": environment(),
    }


def _bounds(interval: Interval) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in asdict(interval).items()}


def write_parquet(records: list[TrialRecord], path: Path) -> None:
    """Write one row per trial and metric, a column for every option that any trial set."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    options = sorted({option for record in records for option in record.params})
    rows = [
        {
            "trial_id": record.trial_id,
            "configuration": record.configuration,
            "number": record.number,
            "seed": record.seed,
            "status": record.status,
            "epochs": record.epochs,
            "wall_s": record.wall_s,
            **{option: _plain(record.params.get(option)) for option in options},
            "metric": metric,
            "value": value,
        }
        for record in records
        for metric, value in record.metrics.items()
    ]
    write_atomically(path, lambda temporary: pq.write_table(pa.Table.from_pylist(rows), temporary))


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value


def write_results(summary: dict[str, Any], records: list[TrialRecord], folder: Path) -> list[Path]:
    """Write summary.json, trials.parquet, the best encoder and the report; return the files worth tracking.

    Args:
        summary: from `summarise`.
        records: of all finished trials.
        folder: of the study.
    """
    from eqssl.report.report import write_report

    write_json(folder / "summary.json", summary)
    write_parquet(records, folder / "trials.parquet")
    if summary["chosen"]:
        copy_folder(folder / "trials" / summary["chosen"]["trial_id"] / "encoder", folder / "best_encoder")
    return [folder / "summary.json", folder / "trials.parquet", *write_report(summary, folder)]
