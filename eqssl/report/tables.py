"""The tables of a study's summary."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

import pandas as pd

from eqssl.metrics import METRICS, PARTS, factor_of, find_metric, label_of
from eqssl.report.render import MARK, Cell, Number, Table, TerminalTable
from eqssl.report.selection import Summary, choice, in_order, members_of
from eqssl.stats import ACCURACY_MARGIN, INVARIANCE_MARGIN
from eqssl.study.definition import CONTROLS
from eqssl.study.sentence import NAMES, plain_number

if TYPE_CHECKING:
    from rich.console import RenderableType

JUDGED = ("linear", "r2_mean", "equivariance", "inv/invariance")  # metrics of the verdict
# Of the results table, beside the main metrics.
SHOWN = {"r2/pose": NAMES["r2/pose"]} | {metric: label_of(metric) for metric in ("dense/r2", "recon/use_other")}
VERDICT = "without loss"  # title of its column
MAX_NAMES = 10  # in one cell
MAX_SEPARATED = 8  # configurations; with more, the separation table has only the controls and the choice
ENOUGH_POWER = 0.5
LOST_SHARE = 1e-3  # share of the gradient; of reconstructions that do train the encoder, .01 is the least measured
Row = dict[str, Cell]  # column title -> cell


def report_tables(summary: Summary, importances: pd.DataFrame) -> list[Table]:
    """Return every table that has rows, the main one always and first; importances are from `study_importances`."""
    tables = [
        results_table(summary),
        gains_table(summary),
        separation_table(summary),
        beyond_table(summary),
        configurations_table(summary),
        *(factors_table(summary, m.name) for m in METRICS.values() if m.per_factor and m.is_compared),
        winners_table(summary),
        cost_table(summary),
        importances_table(importances),
    ]
    return [table for table in tables if len(table.frame) or table.name == "results"]


def main_metrics(summary: Summary) -> list[str]:
    """Return the metrics of the main table, the study's objectives among them."""
    return list(dict.fromkeys([*(m.name for m in METRICS.values() if m.in_main_table), *summary["objectives"]]))


def gain_metrics(summary: Summary) -> list[str]:
    """Return the metrics whose gains over the controls are reported: those of the verdict and the objectives."""
    return [metric for metric in main_metrics(summary) if metric in JUDGED or metric in summary["objectives"]]


def results_table(summary: Summary) -> Table:
    """Return the study's main table: metrics, and the probability of being on the front."""
    labels = _labels(main_metrics(summary))
    titles = labels | {metric: title for metric, title in SHOWN.items() if metric not in labels}
    rows = [
        {"configuration": c["name"], "seeds": str(len(c["seeds"]))}
        | _numbers(c["metrics"], titles)
        | {"on the front": _fixed(c["front_probability"], 2)}
        for c in in_order(summary["configurations"])
        if c["seeds"]
    ]
    return _table("results", "Results", rows, summary)


def gains_table(summary: Summary) -> Table:
    """Return the gains over the best control, the goal's difference from auto-encoding, and the verdict."""
    goal = list(summary["objectives"])[-1]
    rows = [
        {"configuration": c["name"]}
        | _numbers(c["gains"], _labels(gain_metrics(summary)), prefix="Δ ", signed=True)
        | {f"{label_of(goal)} beyond autoencode": _number(c["beyond_autoencode"].get(goal), signed=True)}
        | {VERDICT: _verdict(c["equivariant_without_loss"])}
        for c in in_order(summary["configurations"])
        if c["gains"]
    ]
    return _table("gains", "Gains over the best control", rows, summary)


def _verdict(found: Mapping[str, Any] | None) -> str:
    """Return the answer, and its power if it is inconclusive and a yes was hardly possible."""
    if found is None:
        return ""
    weak = found["power"] is not None and found["power"] < ENOUGH_POWER and found["answer"] == "inconclusive"
    return found["answer"] + (f" (power {plain_number(found['power'], 2)})" if weak else "")


def separation_table(summary: Summary, most: int = MAX_SEPARATED) -> Table:
    """Return class accuracy and R² of every factor, read from the invariant and from the equivariant part only.

    Args:
        summary: content of summary.json.
        most: number of configurations, two rows each, beyond which only the controls and the choice are shown.
    """
    known = summary["best"]  # by every metric
    titles = {"linear" if "inv/linear" in known else "knn": "accuracy", "r2_mean": label_of("r2_mean")}
    titles |= _factors(members_of("r2", known))
    separated = [
        c
        for c in in_order(summary["configurations"])
        if all(any(f"{part}/{metric}" in c["metrics"] for metric in titles) for part in PARTS)
    ]
    if len(separated) > most:
        controls = [c["autoencode"] for c in separated if c["name"] == choice(summary)]
        separated = [c for c in separated if c["name"] in (choice(summary), *CONTROLS, *controls)]
    rows = [
        {"configuration": c["name"], "part": part}
        | {title: _number(c["metrics"].get(f"{part}/{metric}"), bounded=False) for metric, title in titles.items()}
        for c in separated
        for part in PARTS
    ]
    return replace(_table("separation", "Separation: accuracy and R² from each part", rows, summary), keys=2)


def beyond_table(summary: Summary) -> Table:
    """Return every configuration's difference from its auto-encoding control: the effect of cross-attention."""
    factors = members_of("r2", summary["minimum_detectable_difference"])
    titles = _labels(main_metrics(summary)) | _factors(factors)
    rows = [
        {"configuration": c["name"]} | _numbers(c["beyond_autoencode"], titles, signed=True)
        for c in in_order(summary["configurations"])
        if c["beyond_autoencode"]
    ]
    title = "Beyond auto-encoding: difference from the auto-encoding control"
    return _table("beyond_autoencode", title, rows, summary)


def configurations_table(summary: Summary) -> Table:
    """Return the values of the searched configurations if numbers are their names."""
    rows = [
        {"configuration": c["name"]}
        | {option: f"{v:.4g}" if isinstance(v, float) else str(v) for option, v in c["params"].items()}
        for c in in_order(summary["configurations"])
        if c["name"] == f"no. {c['number']}"
    ]
    return _table("configurations", "Configurations", rows, summary)


def factors_table(summary: Summary, family: str) -> Table:
    """Return the gains in a family of metrics, factor by factor, and the minimum detectable differences."""
    detectable = summary["minimum_detectable_difference"]
    titles = _factors(members_of(family, detectable))
    rows: list[Row] = [
        {"gain": c["name"]} | _numbers(c["gains"], titles, signed=True)
        for c in in_order(summary["configurations"])
        if members_of(family, c["gains"])
    ]
    known = {title: Number(detectable[metric]) for metric, title in titles.items() if detectable[metric] is not None}
    if known:
        rows.append({"gain": "minimum detectable"} | known)
    title = f"{find_metric(family).label}, paired difference from the best control"
    return _table(f"gains_{family}", title, rows, summary)


def winners_table(summary: Summary) -> Table:
    """Return the best non-reference configuration by each metric, and those whose difference from it includes 0."""
    by_name = {c["name"]: c for c in summary["configurations"]}
    rows = []
    for metric in main_metrics(summary):
        if best := summary["best"].get(metric):
            behind = {name: c["behind"][metric] for name, c in by_name.items() if metric in c["behind"]}
            close = [name for name, of in behind.items() if of["low"] is None or of["low"] <= 0 <= of["high"]]
            close.sort(key=lambda name: abs(behind[name]["estimate"]))
            others = "; ".join(close[:MAX_NAMES]) or ("none" if behind else "too few seeds to judge by")
            others += f" and {len(close) - MAX_NAMES} more" if len(close) > MAX_NAMES else ""
            row: Row = {"metric": label_of(metric), "best configuration": best}
            row |= {"value": _number(by_name[best]["metrics"][metric]), "not significantly different from it": others}
            rows.append(row)
    return _table("winners", "The best by each metric, references aside", rows)


def cost_table(summary: Summary) -> Table:
    """Return the trials, parameters and seconds of every configuration."""
    rows, trials_of = [], defaultdict(list)
    for trial in summary["trials"]:
        trials_of[trial["configuration"]].append(trial)
    for c in in_order(summary["configurations"]):
        trials = trials_of[c["name"]]
        epochs = [t["metrics"]["train_s"] for t in trials if "train_s" in t["metrics"]]
        sizes = [t["metrics"]["parameters"] for t in trials if t["epochs"] and "parameters" in t["metrics"]]
        conditioned = any(t["metrics"].get("requires_transform", t["metrics"].get("sees_theta")) for t in trials)
        row: Row = {
            "configuration": c["name"],
            "trials": str(len(trials)),
            "trained parameters": _fixed(max(sizes, default=None), 0),
            "s an epoch": _fixed(median(epochs) if epochs else None, 1),
            "wall s": _fixed(sum(t["wall_s"] for t in trials), 0),
            "overhead s": _fixed(sum(t["overhead_s"] for t in trials), 1),
            "conditioned on the transform": "yes" if conditioned else "",
        }
        rows.append(row)
    return _table("cost", "Cost", rows, summary)


def importances_table(importances: pd.DataFrame) -> Table:
    """Return the result of `study_importances`: every option and objective, by both estimators."""
    rows: list[Row] = [
        {
            "option": str(option),
            "objective": label_of(of["objective"]),
            "PED-ANOVA": Number(of["share"], of["low"], of["high"]),
            "random forest": Number(of["permutation"], signed=True),
        }
        for option, of in importances.iterrows()
    ]
    title = "Importances: share by PED-ANOVA, loss of a random forest's out-of-bag R² by permutation"
    return _table("importances", title, rows)


def _table(name: str, title: str, rows: Sequence[Row], summary: Summary | None = None) -> Table:
    """Return a table without its empty columns, the choice of the summary marked."""
    frame = pd.DataFrame(rows, columns=None if rows else ["configuration"], dtype=object).fillna("")
    return Table(name, title, frame.loc[:, (frame != "").any() | frame.empty], choice(summary) if summary else None)


def _labels(metrics: Iterable[str]) -> dict[str, str]:
    """Return metric -> column title in a table of several metrics."""
    return {metric: label_of(metric) for metric in metrics}


def _factors(metrics: Iterable[str]) -> dict[str, str]:
    """Return metric -> column title in a table of one family, which needs only the factor."""
    return {metric: factor_of(metric) or metric for metric in metrics}


def _numbers(
    bounds: Mapping[str, Any], titles: Mapping[str, str], *, prefix: str = "", signed: bool = False
) -> dict[str, Cell]:
    """Return title -> cell of metrics, from bounds by metric."""
    return {prefix + title: _number(bounds.get(metric), signed=signed) for metric, title in titles.items()}


def _number(bounds: Mapping[str, Any] | None, *, signed: bool = False, bounded: bool = True) -> Cell:
    """Return bounds of the summary as a cell, empty without an estimate."""
    if bounds is None or bounds["estimate"] is None:
        return ""
    return Number(**bounds, signed=signed) if bounded else Number(bounds["estimate"])


def _fixed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def caption(summary: Summary, *, differences: bool = True) -> str:
    """Return the meaning of the numbers in the main tables, for the columns that are present.

    Args:
        summary: content of summary.json.
        differences: whether the tables have differences, and probabilities of being on the front.
    """
    rows = summary["configurations"]
    detectable_of = summary["minimum_detectable_difference"]
    known = [metric for metric in gain_metrics(summary) if detectable_of.get(metric) is not None]
    detectable = ", ".join(f"{label_of(metric)} {detectable_of[metric]:.3f}" for metric in known)
    powers = [v["power"] for c in rows if (v := c["equivariant_without_loss"]) and v["power"] is not None]
    collapsed = dict.fromkeys(t["configuration"] for t in summary["trials"] if t["collapsed"])
    without = sum(not c["seeds"] for c in rows)
    text = []
    if known:
        sample = ", and that of the sample of held-out images" if summary["images_sampled"] else ""
        text.append(f"± 95 %, each configuration's own variance over seeds, moderated{sample}.")
    if differences and any(c["gains"] for c in rows):
        text.append("Δ: paired difference from the best of its controls, metric by metric.")
    if differences and any(of["significant"] for c in rows for of in c["gains"].values()):
        comparisons = "with the comparisons of its table accounted for (Benjamini-Hochberg, 5 %)"
        text.append(f"{MARK} differs from 0 {comparisons}.")
    if differences and any(c["beyond_autoencode"] for c in rows):
        control = "the same configuration that reconstructs from the target's own tokens"
        text.append(f"Beyond autoencode: paired difference from {control}.")
    if powers:
        text.append(_verdict_caption(powers))
    if differences and any(c["front_probability"] is not None for c in rows):
        at_once = " and ".join(map(label_of, summary["objectives"]))
        text.append(f"On the front: probability that no other row is better in {at_once} at once.")
    text.append(f"Minimum detectable difference (power .8): {detectable or 'unknown, too few seeds'}.")
    if summary["space"] or summary["chosen"]:
        text.append(f"Chosen: {summary['chosen']['reason'] if summary['chosen'] else 'none'}.")
    if summary["untrained"]:
        untrained = (f"{base} does not beat {' and '.join(names)}" for base, names in summary["untrained"].items())
        text.append(f"Not trained enough to compare with: in accuracy {', '.join(untrained)} beyond the noise.")
    if without:
        text.append(f"Not shown: {without} configurations without a complete trial.")
    if lost := _lost_reconstructions(summary["trials"]):
        text.append(f"The reconstruction no longer trains the encoder (share of the gradient below .001): {lost}.")
    if collapsed:
        text.append(f"Collapsed, to a line or a point: {'; '.join(collapsed)}.")
    if not differences:
        text.append("Other metrics, and differences from the controls: report.html.")
    return " ".join(text)


def _lost_reconstructions(trials: Iterable[Mapping[str, Any]]) -> str:
    """Return the rows and seeds of trials whose reconstruction no longer reached the encoder; empty if none."""
    lost: dict[str, list[str]] = {}
    for trial in trials:
        if trial["metrics"].get("recon_share/gradient", 1.0) < LOST_SHARE:
            lost.setdefault(trial["configuration"], []).append(str(trial["seed"]))
    return "; ".join(f"{row} (seed {', '.join(seeds)})" for row, seeds in lost.items())


def _verdict_caption(powers: Sequence[float]) -> str:
    least, most = f"{min(powers):.2f}", f"{max(powers):.2f}"
    amount = least if least == most else f"{least} to {most}"
    weak = ", so a yes was hardly possible" if max(powers) < ENOUGH_POWER else ""
    return (
        f"Without loss: yes where all 95 % bounds give more R² and equivariance, accuracy at most {ACCURACY_MARGIN} "
        f"lower, invariance at most {INVARIANCE_MARGIN} lower; no where one is significantly on the wrong side. Power, "
        f"the probability of yes if nothing were lost and the gains were as estimated: {amount}{weak}."
    )


def result_table(summary: Summary) -> "RenderableType":
    """Return the study's table for a terminal of 100 columns: the metrics of its sentence, then the separation."""
    from rich.console import Group
    from rich.text import Text

    results, gains = results_table(summary), gains_table(summary).frame
    metrics = [*summary["objectives"], "inv/invariance"]
    titles = ["configuration", "seeds", *_labels(metrics).values(), SHOWN["r2/pose"]]
    frame = results.frame[[title for title in dict.fromkeys(titles) if title in results.frame]]
    if VERDICT in gains:
        frame = frame.merge(gains[["configuration", VERDICT]], on="configuration", how="left").fillna("")
        frame[VERDICT] = frame[VERDICT].str.partition(" (")[0]  # the caption has the power
    tables = [Table("results", summary["question"], frame, results.marked), separation_table(summary, most=0)]
    shown = [TerminalTable(table) for table in tables if len(table.frame)]
    return Group(*shown, Text(caption(summary, differences=False), style="italic"))
