"""From the records of trials to what a study says: intervals per configuration, the choice, the answer, the files."""

import json
import math
import statistics as middle
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eqssl.files import copy_folder, write_atomically
from eqssl.stats import ACCURACY_MARGIN, Estimate, Interval
from eqssl.study.contributions import contributions_of
from eqssl.study.definition import METRIC_NAMES, NEED_LABELS, REFERENCES, WITHOUT_ENCODER, Study
from eqssl.study.execution.environment import environment
from eqssl.study.sentence import sentence
from eqssl.study.store.records import TrialRecord, write_json
from eqssl.study.table import INVARIANCE, Table, significant

# Metrics that say nothing about an encoder.
COSTS = {"epoch", "lr", "train_s", "evaluate_s", "parameters", "requires_transform", "sees_theta"}
COMPARED = ("r2/", "mlp_r2/", "equivariance/", "auroc/")  # metrics of one factor each, beside those of the main table
POSE = "r2/pose"  # the paper's own claim, so that the sentence names it wherever the data have it
LEVEL = 0.95
TIED = 3  # names in a reason

RULE = (
    "of the searched configurations with all seeds (or the most there are) trained to their end, that did not collapse "
    "and whose {accuracy} is at most {margin} below base's, the one with the best {goal}; if there is none, of those "
    "whose {accuracy} is not significantly below the best searched one's, the one with the best {goal}; of its seeds "
    "the first"
)


@dataclass(frozen=True)
class Chosen:
    """The choice of a study.

    Args:
        record: the trial whose encoder is kept.
        reason: of the choice, for a reader.
        candidates: configurations among which it was chosen.
    """

    record: TrialRecord
    reason: str
    candidates: int


def choose(study: Study, records: Iterable[TrialRecord], table: Table | None = None) -> Chosen | None:
    """Return the choice of a study, by `RULE`; None where no searched configuration qualifies.

    Args:
        study: whose objectives are the guard (the first) and the goal (the last).
        records: of all trials.
        table: of the same records; default: it is made.
    """
    records = list(records)
    table = table or Table(records, study.controls, study.objectives)
    searched = _candidates(study, records)
    means = {f: {n: table.sign(f) * value for n, value in table.point_estimates(f).items()} for f in study.objectives}
    metrics = [metric for metric in study.objectives if searched & means[metric].keys()]
    if not metrics:
        return None
    guard, goal = metrics[0], metrics[-1]
    searched = {name for name in searched if name in means[guard] and name in means[goal]}
    if not searched:
        return None
    base = means[guard].get("base", -math.inf)
    good = {name for name in searched if means[guard][name] >= base - ACCURACY_MARGIN}
    most_accurate = max(sorted(searched), key=means[guard].__getitem__)
    allowed = good or _not_below(table, guard, most_accurate, searched)
    name = max(sorted(allowed), key=means[goal].__getitem__)
    noun = next(iter(study.space)).rpartition(".")[2] if len(study.space) == 1 else "configuration"
    if good:
        guarded = base > -math.inf and guard != goal
        keeping = f"{len(good)} that keep the {_word(guard)} within {_margin()} of base"
        reason = f"{name} has the best {_word(goal)} of the {keeping if guarded else f'{len(searched)} searched'}"
        if guarded and len(good) == 1:
            reason = f"{name} alone keeps the {_word(guard)} within {_margin()} of base"
    else:
        reason = f"no {noun} kept the {_word(guard)} within {_margin()} of base; "
        reason += f"{name} has the best {_word(goal)} of those whose {_word(guard)} is not significantly below the best"
        reason += "" if name == most_accurate else f", {most_accurate}'s"
    if "base" in table.failed and guard != goal:
        reason = f"no trial of base came to its end, so that the {_word(guard)} is not guarded; {reason}"
    if tied := _not_below(table, goal, name, allowed) - {name}:
        tied = sorted(tied, key=lambda other: -means[goal][other])
        more = f" and {len(tied) - TIED} more" if len(tied) > TIED else ""
        reason += f"; not significantly different from {', '.join(tied[:TIED])}{more}"
    complete = (r for r in records if r.configuration == name and r.status == "COMPLETE")
    return Chosen(min(complete, key=lambda record: record.seed), reason, len(searched))


def _candidates(study: Study, records: list[TrialRecord]) -> set[str]:
    """Return the searched configurations that were trained to their end with all seeds and did not collapse."""
    searched = {r.configuration for r in records if r.number is not None and r.status == "COMPLETE"}
    searched -= {r.configuration for r in records if r.collapsed}
    seeds = Counter(r.configuration for r in records if r.status == "COMPLETE")
    most = max((seeds[name] for name in searched), default=0)
    # What was suggested again has twice the seeds, which puts no other configuration out of the running.
    return {name for name in searched if seeds[name] >= min(most, study.seeds)}


def _not_below(table: Table, metric: str, best: str, names: Collection[str]) -> set[str]:
    """Return those of the names that are not significantly worse than the best; only it where that is not known."""
    differences = table.differences(metric, dict.fromkeys(names, best))
    sign = table.sign(metric)
    found = {name for name, of in differences.items() if _bound(of.interval(), sign) >= 0}
    return (found & set(names)) | {best}


def _bound(interval: Interval, sign: int) -> float:
    """Return the upper bound of an improvement."""
    return interval.high if sign > 0 else -interval.low


def _word(metric: str) -> str:
    return "accuracy" if metric in NEED_LABELS else METRIC_NAMES.get(metric, metric)


def _margin() -> str:
    return f"{ACCURACY_MARGIN:g}".lstrip("0")


def summarise(
    study: Study, records: list[TrialRecord], about: dict[str, Any], folder: Path | None = None
) -> dict[str, Any]:
    """Return all that summary.json holds.

    Args:
        study: whose objectives and seeds decide the choice.
        records: of all finished trials.
        about: what the caller knows beside: options, data, wall seconds.
        folder: of the study, from which the contributions of held-out images are read; None: intervals leave out that
            these are a sample.
    """
    places = {name: place for place, name in enumerate(study.rows)}
    records = sorted(records, key=lambda r: (places.get(r.configuration, len(places)), r.number or 0, r.seed))
    table = Table(records, study.controls, study.objectives, contributions_of(folder) if folder else None)
    metrics = sorted({metric for record in records for metric in record.metrics} - COSTS)
    compared = [metric for metric in metrics if _is_compared(metric, study)]
    means = {metric: table.means(metric) for metric in metrics}
    gains = _with_significance({metric: table.gains(metric) for metric in compared}, study)
    beyond = _with_significance({metric: table.beyond_autoencode(metric) for metric in compared}, study)
    behind = {metric: table.behind(metric) for metric in compared}
    chosen = choose(study, records, table)
    on_front = table.front_probability(study.objectives)
    verdicts = table.verdicts()
    found = answer(study, table, chosen)
    seeds: dict[str, list[int]] = {}
    for record in records:
        seeds.setdefault(record.configuration, []).extend([record.seed] * (record.status == "COMPLETE"))
    warm = [record.overhead_s for record in records if record.warm]
    return {
        "study": study.name,
        "question": study.question,
        "sentence": sentence(found),
        **about,
        "space": {option: asdict(values) for option, values in study.space.items()},
        "objectives": dict(study.objectives),
        "chosen": chosen
        and {
            **{name: getattr(chosen.record, name) for name in ("configuration", "params", "trial_id")},
            "reason": chosen.reason,
        },
        "answer": found,
        "rule": RULE.format(
            accuracy=_word(next(iter(study.objectives))), goal=_word(list(study.objectives)[-1]), margin=_margin()
        ),
        "images_sampled": table.images_sampled,
        "untrained": table.untrained(table.accuracy()),
        "overhead_s": {"median_warm": middle.median(warm) if warm else None, "warm_trials": len(warm)},
        "minimum_detectable_difference": {metric: table.detectable(metric) for metric in compared},
        "best_control": {metric: table.best_control(metric) for metric in metrics},
        "best": {metric: table.best(metric) for metric in metrics},
        "configurations": [
            {
                "name": name,
                "number": record.number,
                "params": record.params,
                "seeds": seeds[name],
                "controls": [control for control in table.controls(name) if control in seeds],
                "autoencode": table.autoencode_control(name),
                "metrics": {metric: _bounds(means[metric][name]) for metric in metrics if name in means[metric]},
                "front_probability": on_front.get(name),
                "equivariant_without_loss": verdicts.get(name)
                and {"answer": verdicts[name].answer, "power": _finite(verdicts[name].power)},
                "gains": {metric: gains[metric][name] for metric in compared if name in gains[metric]},
                "beyond_autoencode": {metric: beyond[metric][name] for metric in compared if name in beyond[metric]},
                "behind": {
                    metric: _bounds(behind[metric][name].interval()) for metric in compared if name in behind[metric]
                },
            }
            for name, record in {record.configuration: record for record in records}.items()
        ],
        "trials": [asdict(record) for record in records],
        "environment": environment(),
    }


def _is_compared(metric: str, study: Study) -> bool:
    return metric in METRIC_NAMES or metric in study.objectives or metric.startswith(COMPARED)


def _with_significance(
    of_metrics: Mapping[str, Mapping[str, Estimate]], study: Study
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return metric -> configuration -> bounds, and whether they survive Benjamini-Hochberg within their table.

    A table is that of the main metrics, or of one kind of metric over its factors. References are not among the claims,
    so that their large differences lend nothing.
    """
    tables: dict[str, dict[tuple[str, str], Estimate]] = {}
    for metric, estimates in of_metrics.items():
        main = metric in METRIC_NAMES or metric in study.objectives
        table = tables.setdefault("" if main else metric.partition("/")[0], {})
        table |= {(metric, name): of for name, of in estimates.items() if name not in REFERENCES}
    kept = {key for table in tables.values() for key in significant(table)}
    return {
        metric: {n: _bounds(of.interval()) | {"significant": (metric, n) in kept} for n, of in estimates.items()}
        for metric, estimates in of_metrics.items()
    }


def answer(study: Study, table: Table, chosen: Chosen | None) -> dict[str, Any]:
    """Return what the study's sentence is made of, see `sentence`.

    A configuration that was chosen as the best of C looks better than it is: its intervals hold for all C at once
    (Bonferroni, level 1 - .05 / C). One that is trained again with fresh seeds is the only one.

    Args:
        study: whose objectives are asked about.
        table: of its trials.
        chosen: its choice, if any; else the study's own subject is what the sentence is about.
    """
    name = chosen.record.configuration if chosen else study.subject
    goal = [metric for metric in study.objectives if table.values(metric)[0]][-1:]
    if not goal or name not in table.values(goal[0])[0]:
        return {"configuration": None} | _no_choice(study, table)
    level = 1 - (1 - LEVEL) / max(1, chosen.candidates if chosen else 1)
    metrics = [goal[0], POSE, table.accuracy(), INVARIANCE]
    metrics = [metric for metric in dict.fromkeys(metrics) if name in table.values(metric)[0]]
    base = next((control for control in table.controls(name)[:1] if control in table.values(goal[0])[0]), None)
    differences = {}
    for metric in metrics:
        if base is None:
            differences[metric] = _bounds(table.means(metric)[name])
        elif base in table.values(metric)[0]:
            differences[metric] = _difference(table, metric, name, base, level)
    autoencode = table.autoencode_control(name)
    compared = [m for m in metrics if m != INVARIANCE and autoencode in table.values(m)[0]]
    return {
        "configuration": name,
        "base": "base" if base and base.endswith(", base") else base,
        "goal": goal[0],
        "level": level,
        "candidates": chosen.candidates if chosen else 1,
        "differences": differences,
        "signs": {metric: table.sign(metric) for metric in differences},
        "labelled": any(metric in NEED_LABELS for metric in metrics),
        "missing": [control for control in table.controls(name) if control in table.failed],
        "autoencodes": table.is_autoencoding(name),
        "autoencode": autoencode,
        "beyond_autoencode": {metric: _difference(table, metric, name, autoencode, level) for metric in compared},
    }


def _difference(table: Table, metric: str, name: str, other: str, level: float) -> dict[str, float | None]:
    if estimate := table.difference(metric, name, other):
        return _bounds(estimate.interval(level))
    means = table.point_estimates(metric)
    return {"estimate": means[name] - means[other], "low": None, "high": None}


def _no_choice(study: Study, table: Table) -> dict[str, Any]:
    """Return why a study has no choice, and the best of its rows."""
    best = {}
    for metric in study.objectives:
        if name := table.best(metric):
            best[metric] = {"name": name} | _bounds(table.means(metric)[name])
    if not [name for name in table.names if name not in WITHOUT_ENCODER]:
        reason = "No trial came to its end"
    elif study.space and table.searched_collapsed:
        reason = "Every searched configuration that came to its end collapsed, so that none is chosen"
    elif study.space:
        reason = "No searched configuration came to its end, so that none is chosen"
    else:
        reason = "Nothing is chosen, since nothing is searched"
    return {"reason": reason, "best": best}


def _bounds(interval: Interval) -> dict[str, float | None]:
    return {name: _finite(getattr(interval, name)) for name in ("estimate", "low", "high")}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
