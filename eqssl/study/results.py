"""From the records of trials to the result of a study: the choice, the answer, the summary and its files."""

import json
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from eqssl.environment import environment
from eqssl.files import copy_folder, write_atomically
from eqssl.metrics import is_accuracy, metric_of, stored_properties
from eqssl.stats import ACCURACY_MARGIN, LEVEL, Estimate, minimum_detectable_difference, significant
from eqssl.study.contributions import read_contributions
from eqssl.study.definition import CONTROLS, ONE_SEED, REFERENCES, Study
from eqssl.study.sentence import name_of, plain_number, sentence
from eqssl.study.store.records import TrialRecord
from eqssl.study.summary import (
    BEST_ENCODER,
    SUMMARY,
    Answer,
    Best,
    Chosen,
    ConfigResult,
    Interval,
    NoAnswer,
    StudySummary,
)
from eqssl.study.table import INVARIANCE, Table, interval

POSE = "r2/pose"  # the paper's own claim, so the sentence reports it whenever the data have it
SPLIT_ALONE = CONTROLS[1]  # how the name of the control with the split and without reconstruction ends
TIED = 3  # tied configurations named in a reason
COLUMNS = ("trial_id", "configuration", "number", "seed", "status", "epochs", "wall_s")  # of trials.parquet
MARGIN = plain_number(ACCURACY_MARGIN, 2)

RULE = (
    "of the searched configurations with all seeds (or the most there are) trained to their end, that did not collapse "
    "and whose {accuracy} is at most {margin} below base's, the one with the best {goal}; if there is none, of those "
    "whose {accuracy} is not significantly below the best searched one's, the one with the best {goal}; of its seeds "
    "the first"
)


def choose(study: Study, table: Table) -> Chosen | None:
    """Return the choice of a study, by `RULE`; None if no searched configuration qualifies.

    Args:
        study: its objectives are the guard (the first) and the goal (the last).
        table: of all its trials.
    """
    objectives, searched = _candidates(study, table)
    if not searched:
        return None
    guard, goal = objectives[0], objectives[-1]
    guarded = {name: table.sign(guard) * mean for name, mean in table.point_estimates(guard).items()}
    wanted = {name: table.sign(goal) * mean for name, mean in table.point_estimates(goal).items()}
    base = guarded.get("base", -math.inf)
    values = {name: (guarded[name], wanted[name]) for name in sorted(searched)}
    most_accurate = max(values, key=values.__getitem__)
    good, allowed, name = best_by_rule(
        values, base - ACCURACY_MARGIN, lambda: _not_below(table, guard, most_accurate, searched)
    )

    within = f"the {_word(guard)} within {MARGIN} of base"
    if not good:
        noun = next(iter(study.space)).rpartition(".")[2] if len(study.space) == 1 else "configuration"
        reason = f"no {noun} kept {within}; {name} has the best {_word(goal)} of those whose {_word(guard)} is not "
        reason += "significantly below the best" + ("" if name == most_accurate else f", {most_accurate}'s")
    elif base == -math.inf or guard == goal:
        reason = f"{name} has the best {_word(goal)} of the {len(searched)} searched"
    elif len(good) == 1:
        reason = f"{name} alone keeps {within}"
    else:
        reason = f"{name} has the best {_word(goal)} of the {len(good)} that keep {within}"
    if "base" in table.failed and guard != goal:
        reason = f"no trial of base completed, so the {_word(guard)} is not guarded; {reason}"
    if tied := sorted(_not_below(table, goal, name, allowed) - {name}, key=lambda other: -wanted[other]):
        more = f" and {len(tied) - TIED} more" if len(tied) > TIED else ""
        reason += f"; not significantly different from {', '.join(tied[:TIED])}{more}"
    trials = table.trials[name]
    return Chosen(name, table.params[name], trials[min(trials)], reason)


def best_by_rule(
    values: Mapping[str, tuple[float, float]], floor: float, not_below: Callable[[], Collection[str]] | None = None
) -> tuple[list[str], Collection[str], str]:
    """Return the names whose guard reaches a floor, those that may be chosen, and the best of these by the goal.

    Args:
        values: name -> guard and goal, both better when larger; among equals the earlier name comes first.
        floor: minimum guard; infinite: the guard decides.
        not_below: returns those that may be chosen if none reaches the floor; None: the one with the best guard.
    """
    good = [name for name, (guard, _) in values.items() if guard >= floor]
    allowed = good or (not_below() if not_below else [max(values, key=values.__getitem__)])
    best = max((name for name in values if name in allowed), key=lambda name: values[name][::-1])
    return good, allowed, best


def _candidates(study: Study, table: Table) -> tuple[list[str], set[str]]:
    """Return the objectives that searched configurations have, and the configurations that may be chosen by them.

    The latter completed training with all seeds, did not collapse, and have the first and the last objective.
    """
    seeds = {name: len(trials) for name, trials in table.trials.items()}
    searched = {record.configuration for record in table.records if record.number is not None} & seeds.keys()
    searched -= {record.configuration for record in table.records if record.collapsed}
    # A configuration that was suggested twice has twice the seeds, which must not exclude the others.
    enough = min(study.seeds, max((seeds[name] for name in searched), default=0))
    searched = {name for name in searched if seeds[name] >= enough}
    objectives = [metric for metric in study.objectives if searched & table.point_estimates(metric).keys()]
    for metric in objectives[:1] + objectives[-1:]:
        searched &= table.point_estimates(metric).keys()
    return objectives, searched if objectives else set()


def _not_below(table: Table, metric: str, best: str, names: Collection[str]) -> set[str]:
    """Return the names that are not significantly worse than the best, including the best; only the best if unknown."""
    found = {best}
    for name, difference in table.differences(metric, dict.fromkeys(names, best)).items():
        low, high = difference.bounds()
        if (high if table.sign(metric) > 0 else -low) >= 0:
            found.add(name)
    return found


def _word(metric: str) -> str:
    return "accuracy" if is_accuracy(metric) else name_of(metric)


def summarise(
    study: Study, records: Iterable[TrialRecord], about: dict[str, Any], folder: Path | None = None
) -> dict[str, Any]:
    """Return the result of a study, the content of summary.json.

    Args:
        study: its objectives and seeds determine the choice.
        records: records of all trials that have ended.
        about: a description of the run: options, data, wall seconds, ...
        folder: the study's folder, from which the contributions of held-out images are read; None: intervals do not
            account for the sampling of these images.
    """
    places = {name: place for place, name in enumerate(study.rows)}
    records = sorted(records, key=lambda r: (places.get(r.configuration, len(places)), r.number or 0, r.seed))
    table = Table(records, study.controls, study.objectives, partial(read_contributions, folder) if folder else None)
    metrics = sorted({metric for record in records for metric in record.metrics})
    metrics = [metric for metric in metrics if metric_of(metric).level != "cost"]
    gains = {metric: table.gains(metric) for metric in metrics if table.is_compared(metric)}
    chosen = choose(study, table)
    found = answer(study, table, chosen)
    warm = [record.overhead_s for record in records if record.warm]
    objectives = list(study.objectives)
    summary = StudySummary(
        study=study.name,
        question=study.question,
        sentence=sentence(found),
        about=about,
        space=study.space,
        objectives=dict(study.objectives),
        chosen=chosen,
        answer=found,
        rule=RULE.format(accuracy=_word(objectives[0]), goal=_word(objectives[-1]), margin=MARGIN),
        images_sampled=table.images_sampled,
        untrained=table.untrained(),
        overhead_s={"median_warm": statistics.median(warm) if warm else None, "warm_trials": len(warm)},
        minimum_detectable_difference={metric: _detectable(of) for metric, of in gains.items()},
        best_control={metric: table.best_control(metric) for metric in metrics},
        best={metric: table.best(metric) for metric in metrics},
        configurations=_configurations(table, metrics, gains),
        records=records,
        environment=environment(),
        metrics=stored_properties(metrics),
    )
    return summary.to_dict()


def _configurations(table: Table, metrics: list[str], gains: dict[str, dict[str, Estimate]]) -> list[ConfigResult]:
    means = {metric: table.means(metric) for metric in metrics}
    tested_gains = _tested(table, gains)
    beyond = _tested(table, {metric: table.beyond_autoencode(metric) for metric in gains})
    behind = {m: {name: interval(of) for name, of in table.behind(m).items()} for m in gains}
    on_front, verdicts = table.front_probability(), table.verdicts(gains)
    return [
        ConfigResult(
            name=name,
            number=record.number,
            params=record.params,
            seeds=list(table.trials.get(name, ())),
            controls=[control for control in table.controls(name) if control in table.params],
            autoencode=table.autoencode_control(name),
            metrics=_of(name, means),
            front_probability=on_front.get(name),
            equivariant_without_loss=verdicts.get(name),
            gains=_of(name, tested_gains),
            beyond_autoencode=_of(name, beyond),
            behind=_of(name, behind),
        )
        for name, record in {record.configuration: record for record in table.records}.items()
    ]


def _of(name: str, intervals: Mapping[str, Mapping[str, Interval]]) -> dict[str, Interval]:
    return {metric: of[name] for metric, of in intervals.items() if name in of}


def _tested(table: Table, differences: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, Interval]]:
    """Return metric -> configuration -> interval, and whether it is significant within its table (Benjamini-Hochberg).

    A table covers the main metrics, or one family of metrics over its factors. References are not among the claims, so
    that their large differences do not help other claims to significance.
    """
    tables: dict[str, dict[tuple[str, str], Estimate]] = {}
    for metric, of_metric in differences.items():
        claims = {(metric, name): of for name, of in of_metric.items() if name not in REFERENCES}
        tables.setdefault("" if table.is_main(metric) else metric_of(metric).name, {}).update(claims)
    kept = {key for claims in tables.values() for key in significant(claims)}
    return {
        metric: {name: replace(interval(of), significant=(metric, name) in kept) for name, of in of_metric.items()}
        for metric, of_metric in differences.items()
    }


def _detectable(gains: Mapping[str, Estimate]) -> float | None:
    """Return the minimum detectable difference of the gain with the median standard error, excluding references."""
    found = sorted((gain for name, gain in gains.items() if name not in REFERENCES), key=lambda gain: gain.error)
    return minimum_detectable_difference(found[len(found) // 2]) if found else None


def answer(study: Study, table: Table, chosen: Chosen | None) -> Answer | NoAnswer:
    """Return the comparison that the study's sentence is about: that of its choice, else of its subject.

    The best of C configurations looks better than it is, so its intervals hold for all C at once (Bonferroni, level
    1 - .05 / C). A choice that is retrained with fresh seeds is the only candidate.
    """
    name = chosen.configuration if chosen else study.subject
    objectives = [metric for metric in study.objectives if len(table.values(metric))]
    if not objectives or name not in table.values(objectives[-1]).index:
        return _no_answer(study, table)
    goal = objectives[-1]
    candidates = len(_candidates(study, table)[1]) if chosen else 1
    metrics = [m for m in dict.fromkeys((goal, POSE, table.accuracy, INVARIANCE)) if name in table.values(m).index]
    controls, autoencode = table.controls(name), table.autoencode_control(name)
    base = next((control for control in controls[:1] if control in table.values(goal).index), None)
    split = next((control for control in controls if control.endswith(SPLIT_ALONE)), None)
    differences = _differences(table, name, base, metrics, candidates)
    if base is None:
        differences = {metric: table.means(metric)[name] for metric in metrics}
    without_invariance = [metric for metric in metrics if metric != INVARIANCE]
    return Answer(
        configuration=name,
        base="base" if base and base.endswith(", base") else base,
        goal=goal,
        level=1 - (1 - LEVEL) / candidates,
        candidates=candidates,
        differences=differences,
        signs={metric: table.sign(metric) for metric in differences},
        labelled=any(map(is_accuracy, metrics)),
        missing=[control for control in controls if control in table.failed],
        autoencodes=table.is_autoencoding(name),
        autoencode=autoencode,
        beyond_autoencode=_differences(table, name, autoencode, without_invariance, candidates),
        beyond_split=_differences(table, name, split, metrics, candidates),
        untrained=table.untrained().get(base or "", []),
    )


def _differences(
    table: Table, name: str, other: str | None, metrics: Sequence[str], candidates: int
) -> dict[str, Interval]:
    """Return metric -> difference of a configuration from another that has it; empty without another.

    Intervals hold for all candidates at once. Differences are significant if they also survive Benjamini-Hochberg
    among these metrics.
    """
    if other is None:
        return {}
    means = {metric: table.point_estimates(metric) for metric in metrics if other in table.values(metric).index}
    level = 1 - (1 - LEVEL) / candidates
    estimates = {m: found[name] for m in means if name in (found := table.differences(m, {name: other}))}
    kept = significant(estimates, candidates)
    return {metric: Interval(of[name] - of[other]) for metric, of in means.items()} | {
        metric: replace(interval(estimate, level), significant=metric in kept) for metric, estimate in estimates.items()
    }


def _no_answer(study: Study, table: Table) -> NoAnswer:
    bests = {metric: table.best(metric) for metric in study.objectives}
    best = {metric: Best(**vars(table.means(metric)[name]), name=name) for metric, name in bests.items() if name}
    if not [name for name in table.names if name not in ONE_SEED]:
        reason = "No trial completed"
    elif not study.space:
        reason = "Nothing is chosen, since nothing is searched"
    elif any(record.number is not None and record.configuration in table.collapsed for record in table.records):
        reason = "Every searched configuration that completed collapsed, so none is chosen"
    else:
        reason = "No searched configuration completed, so none is chosen"
    return NoAnswer(reason, best)


def write_parquet(records: list[TrialRecord], path: Path) -> None:
    """Write one row per trial and metric, with a column for every option that any trial set."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [getattr(record, name) for record in records] for name in COLUMNS}
    for option in sorted({option for record in records for option in record.params}):
        values = [record.params.get(option) for record in records]
        columns[option] = [json.dumps(value) if isinstance(value, dict) else value for value in values]
    rows = pa.array([row for row, record in enumerate(records) for _ in record.metrics], pa.int64())
    table = pa.table(columns).take(rows)
    metrics = [item for record in records for item in record.metrics.items()]
    table = table.append_column("metric", pa.array([name for name, _ in metrics], pa.string()))
    table = table.append_column("value", pa.array([value for _, value in metrics], pa.float64()))
    write_atomically(path, lambda temporary: pq.write_table(table, temporary))


def _write_summary(summary: dict[str, Any], path: Path) -> None:
    """Write indented JSON, but each configuration or trial on one line: indenting thousands takes ten times as long."""
    with path.open("w", encoding="utf-8") as file:
        for place, (name, value) in enumerate(summary.items()):
            file.write(f"{',' if place else '{'}\n  {json.dumps(name)}: ")
            if name in ("configurations", "trials"):
                for row, of in enumerate(value):
                    file.write(("," if row else "[") + "\n    " + json.dumps(of, allow_nan=False))
                file.write("\n  ]" if value else "[]")
            else:
                file.write(json.dumps(value, indent=2, allow_nan=False).replace("\n", "\n  "))
        file.write("\n}\n")


def write_results(summary: dict[str, Any], records: list[TrialRecord], folder: Path) -> list[Path]:
    """Write summary.json, trials.parquet and the best encoder; return the files worth tracking.

    Args:
        summary: from `summarise`.
        records: records of all trials that have ended.
        folder: the study's folder.
    """
    write_atomically(folder / SUMMARY, partial(_write_summary, summary))
    write_parquet(records, folder / "trials.parquet")
    if summary["chosen"]:
        copy_folder(folder / "trials" / summary["chosen"]["trial_id"] / "encoder", folder / BEST_ENCODER)
    return [folder / SUMMARY, folder / "trials.parquet"]
