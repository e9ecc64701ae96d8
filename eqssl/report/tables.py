"""What a study's summary says, as tables; how they are written is `eqssl.report.render`'s affair."""

import re
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eqssl.stats import ACCURACY_MARGIN, INVARIANCE_MARGIN
from eqssl.study.definition import CONTROLS, METRIC_NAMES, NEED_LABELS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from eqssl.report.importance import Importances

GAINS = ("linear", "r2_mean", "equivariance", "inv/invariance")  # differences that are shown, beside the objectives
# Metrics of one factor each, under these prefixes.
FACTORS = {
    "r2/": "R² per factor",
    "mlp_r2/": "R² per factor, MLP",
    "equivariance/": "equivariance per factor",
}
DIFFERENCE = "paired difference from the best control"
PARTS = {"inv": "inv/", "equi": "equi/"}
NAMED = 10  # configurations in one cell
SEPARATED = 8  # configurations of the table of separation, beyond which it has the controls and the choice alone
WIDTH = 140  # columns of a terminal that the main table fits in
MARK = "*"  # of a significant difference
ENOUGH_POWER = 0.5


@dataclass(frozen=True)
class Number:
    """A number with bounds, None where it has none.

    Args:
        estimate, low, high: the number and its two-sided bounds.
        signed: it is a difference.
        significant: it is a difference that survives the correction for the comparisons of its table.
    """

    estimate: float
    low: float | None = None
    high: float | None = None
    signed: bool = False
    significant: bool = False

    def __str__(self) -> str:
        rounded = round(self.estimate, 3) + 0.0  # no minus before zero
        text = f"{rounded:+.3f}" if self.signed else f"{rounded:.3f}"
        mark = MARK * self.significant
        if self.low is None or self.high is None:
            return text + mark
        below, above = self.estimate - self.low, self.high - self.estimate
        same = abs(below - above) < 5e-4
        return (f"{text} ± {below:.3f}" if same else f"{text} ({self.low:.3f} to {self.high:.3f})") + mark


Cell = str | Number


@dataclass(frozen=True)
class Table:
    """One table.

    Args:
        name: of its files.
        title: above it; what all cells have in common.
        head: names of the columns; the first names the row.
        rows: as many cells each.
        marked: the first cell of the rows that stand out: the choice.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    marked: tuple[str, ...] = ()


def report_tables(summary: dict[str, Any], found: Sequence["Importances"] = ()) -> list[Table]:
    """Return every table that the summary gives reason to show, the main one first.

    Args:
        summary: what summary.json holds.
        found: importances of the options, one an objective.
    """
    tables = [
        results_table(summary),
        gains_table(summary),
        separation_table(summary),
        beyond_table(summary),
        configurations_table(summary),
        *(factors_table(summary, prefix, title) for prefix, title in FACTORS.items()),
        winners_table(summary),
        cost_table(summary),
        importances_table(found),
        interactions_table(found),
    ]
    return [table for table in tables if table.rows or table.name == "results"]


def columns_of(summary: dict[str, Any]) -> dict[str, str]:
    """Return the metrics of the main table and their names, the study's own objectives among them."""
    return METRIC_NAMES | {metric: metric for metric in summary["objectives"] if metric not in METRIC_NAMES}


def _choice(summary: dict[str, Any]) -> tuple[str, ...]:
    name = summary["answer"]["configuration"]
    return (name,) if name else ()


def results_table(summary: dict[str, Any]) -> Table:
    """Return the study's main table: metrics, and the probability of being on the front."""
    configurations = [c for c in in_order(summary["configurations"]) if c["seeds"]]
    columns = columns_of(summary)
    shown = [m for m in columns if any(m in c["metrics"] for c in configurations)]
    placed = any(c["front_probability"] is not None for c in configurations)
    rows = tuple(
        (
            c["name"],
            str(len(c["seeds"])),
            *(number(c["metrics"].get(m)) for m in shown),
            *["" if c["front_probability"] is None else f"{c['front_probability']:.2f}"] * placed,
        )
        for c in configurations
    )
    head = ("configuration", "seeds", *(columns[m] for m in shown), *["on the front"] * placed)
    return Table("results", "Results", head, rows, _choice(summary))


def gains_table(summary: dict[str, Any]) -> Table:
    """Return the gains over the best control, what of the goal is beyond auto-encoding, and the verdict."""
    configurations = [c for c in in_order(summary["configurations"]) if c["gains"]]
    columns, goal = columns_of(summary), list(summary["objectives"])[-1]
    shown = [m for m in columns if m in GAINS or m in summary["objectives"]]
    shown = [m for m in shown if any(m in c["gains"] for c in configurations)]
    beyond = any(goal in c["beyond_autoencode"] for c in configurations)
    judged = any(c["equivariant_without_loss"] for c in configurations)
    rows = tuple(
        (
            c["name"],
            *(number(c["gains"].get(m), signed=True) for m in shown),
            *[number(c["beyond_autoencode"].get(goal), signed=True)] * beyond,
            *[_verdict(c["equivariant_without_loss"])] * judged,
        )
        for c in configurations
    )
    head = ["configuration", *(f"Δ {columns[m]}" for m in shown), *[f"{columns[goal]} beyond autoencode"] * beyond]
    title = "Gains over the best control"
    return Table("gains", title, (*head, *["without loss"] * judged), rows, _choice(summary))


def _verdict(found: dict[str, Any] | None) -> str:
    """Return the answer, and its power where that is inconclusive and could hardly have been yes."""
    if found is None:
        return ""
    weak = found["power"] is not None and found["power"] < ENOUGH_POWER and found["answer"] == "inconclusive"
    power = f" (power {found['power']:.2f})".replace("0.", ".", 1) if weak else ""
    return found["answer"] + power


def separation_table(summary: dict[str, Any], most: int = SEPARATED) -> Table:
    """Return class accuracy and R² of every factor, read from the invariant and from the equivariant part alone.

    Args:
        summary: what summary.json holds.
        most: configurations, two rows each, beyond which only the controls and the choice are shown.
    """
    configurations = [c for c in in_order(summary["configurations"]) if _has_parts(c)]
    if len(configurations) > most:
        chosen = {*_choice(summary), *(c["autoencode"] for c in configurations if c["name"] in _choice(summary))}
        configurations = [c for c in configurations if c["name"] in CONTROLS or c["name"] in chosen]
    known = {metric for c in configurations for metric in c["metrics"]}
    accuracy = [m for m in ("linear", "knn") if f"inv/{m}" in known][:1]
    factors = sorted({metric.removeprefix("inv/") for metric in known if metric.startswith("inv/r2/")})
    metrics = accuracy + ["r2_mean"] * ("inv/r2_mean" in known) + factors
    rows = tuple(
        (c["name"], part, *(_mean(c["metrics"].get(prefix + metric)) for metric in metrics))
        for c in configurations
        for part, prefix in PARTS.items()
    )
    names = ("accuracy" if m in NEED_LABELS else METRIC_NAMES.get(m, m.removeprefix("r2/")) for m in metrics)
    title = "Separation: accuracy and R² from each part"
    return Table("separation", title, ("configuration", "part", *names), rows, _choice(summary))


def _has_parts(configuration: dict[str, Any]) -> bool:
    metrics = configuration["metrics"]
    return all(any(m.startswith((f"{p}r2/", f"{p}knn", f"{p}linear")) for m in metrics) for p in PARTS.values())


def _mean(bounds: dict[str, float | None] | None) -> Cell:
    return "" if bounds is None or bounds["estimate"] is None else Number(bounds["estimate"])


def beyond_table(summary: dict[str, Any]) -> Table:
    """Return what every configuration has beyond its auto-encoding control: the part of cross-attention."""
    compared = [c for c in in_order(summary["configurations"]) if c["beyond_autoencode"]]
    given = {metric for c in compared for metric in c["beyond_autoencode"]}
    columns = {metric: name for metric, name in columns_of(summary).items() if metric in given}
    columns |= {metric: metric.removeprefix("r2/") for metric in sorted(given) if metric.startswith("r2/")}
    rows = tuple((c["name"], *(number(c["beyond_autoencode"].get(m), signed=True) for m in columns)) for c in compared)
    title = "Beyond auto-encoding: difference from the auto-encoding control"
    return Table("beyond_autoencode", title, ("configuration", *columns.values()), rows, _choice(summary))


def configurations_table(summary: dict[str, Any]) -> Table:
    """Return the values of the searched configurations where these are called by their numbers."""
    numbered = [c for c in in_order(summary["configurations"]) if c["name"] == f"no. {c['number']}"]
    options = list(dict.fromkeys(option for c in numbered for option in c["params"]))
    rows = tuple((c["name"], *(_value(c["params"].get(option, "")) for option in options)) for c in numbered)
    return Table("configurations", "Configurations", ("configuration", *options), rows, _choice(summary))


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def factors_table(summary: dict[str, Any], prefix: str, title: str) -> Table:
    """Return the gains in the metrics that begin with a prefix, factor by factor, and how large one must be to show."""
    gaining = [c for c in in_order(summary["configurations"]) if any(m.startswith(prefix) for m in c["gains"])]
    metrics = sorted({metric for c in gaining for metric in c["gains"] if metric.startswith(prefix)})
    rows = [(c["name"], *(number(c["gains"].get(m), signed=True) for m in metrics)) for c in gaining]
    detectable = [summary["minimum_detectable_difference"].get(metric) for metric in metrics]
    if any(of is not None for of in detectable):
        rows.append(("minimum detectable", *("" if of is None else Number(of) for of in detectable)))
    head = ("gain", *(metric.removeprefix(prefix) for metric in metrics))
    return Table(f"gains_{prefix[:-1]}", f"{title}, {DIFFERENCE}", head, tuple(rows), _choice(summary))


def winners_table(summary: dict[str, Any]) -> Table:
    """Return the best configuration by each metric, references aside, and those whose difference from it includes 0."""
    by_name = {c["name"]: c for c in summary["configurations"]}
    rows = []
    for metric, called in columns_of(summary).items():
        best = summary["best"].get(metric)
        if best is None:
            continue
        behind = {n: c["behind"][metric] for n, c in by_name.items() if metric in c["behind"]}
        close = [n for n, bounds in behind.items() if bounds["low"] is None or bounds["low"] <= 0 <= bounds["high"]]
        close.sort(key=lambda name: abs(behind[name]["estimate"]))
        others = "; ".join(close[:NAMED])
        others += f" and {len(close) - NAMED} more" if len(close) > NAMED else ""
        value = number(by_name[best]["metrics"][metric])
        rows.append((called, best, value, others or ("none" if behind else "too few seeds to judge by")))
    head = ("metric", "best configuration", "value", "not significantly different from it")
    return Table("winners", "The best by each metric, references aside", head, tuple(rows))


def cost_table(summary: dict[str, Any]) -> Table:
    """Return what every configuration took."""
    rows = []
    for c in in_order(summary["configurations"]):
        trials = [t for t in summary["trials"] if t["configuration"] == c["name"]]
        metrics = [t["metrics"] for t in trials]
        epochs = [m["train_s"] for m in metrics if "train_s" in m]
        sizes = {t["metrics"]["parameters"] for t in trials if t["epochs"] and "parameters" in t["metrics"]}
        cells = (
            c["name"],
            str(len(trials)),
            f"{max(sizes):.0f}" if sizes else "",
            f"{statistics.median(epochs):.1f}" if epochs else "",
            f"{sum(t['wall_s'] for t in trials):.0f}",
            f"{sum(t['overhead_s'] for t in trials):.1f}",
            "yes" if any(m.get("requires_transform", m.get("sees_theta")) == 1 for m in metrics) else "",
        )
        rows.append(cells)
    head = ("configuration", "trials", "trained parameters", "s an epoch", "wall s", "overhead s")
    return Table("cost", "Cost", (*head, "conditioned on the transform"), tuple(rows), _choice(summary))


def importances_table(found: Sequence["Importances"]) -> Table:
    """Return the importance of every option for every objective, by both estimators."""
    rows = tuple(
        (option, i.objective, Number(*i.ped_anova[option]), Number(i.forest[option], signed=True))
        for i in found
        for option in i.ped_anova
    )
    resamples = f"{found[0].resamples} bootstrap resamples" if found else ""
    title = f"Importances: share by PED-ANOVA ({resamples}), loss of a random forest's out-of-bag R² by permutation"
    return Table("importances", title, ("option", "objective", "PED-ANOVA", "random forest"), rows)


def interactions_table(found: Sequence["Importances"]) -> Table:
    """Return the pairs of options that act together most, by Friedman's H in the random forest."""
    rows = tuple(
        (" x ".join(pair.options), i.objective, f"{pair.h:.3f}", f"{pair.share:.3f}")
        for i in found
        for pair in i.interactions[:NAMED]
    )
    head = ("options", "objective", "Friedman's H", "share of the variance")
    return Table("interactions", "Strongest interactions, in the random forest", head, rows)


def in_order(configurations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the reference rows, then the searched configurations by number or by parameters, each with its twin."""
    searched = [c for c in configurations if c["number"] is not None]
    if any(c["name"] == f"no. {c['number']}" for c in searched):
        searched.sort(key=lambda c: c["number"])
    else:
        searched.sort(key=lambda c: [(str(type(v)), v) for v in c["params"].values()])
    twins = {c["autoencode"]: c["name"] for c in reversed(searched) if c.get("autoencode") not in (None, *CONTROLS)}
    rows = [c for c in configurations if c["number"] is None and c["name"] not in twins]
    of = {twins[c["name"]]: c for c in configurations if c["number"] is None and c["name"] in twins}
    return rows + [c for s in searched for c in (s, of.get(s["name"])) if c is not None]


def number(bounds: dict[str, Any] | None, *, signed: bool = False) -> Cell:
    """Return bounds of the summary as a cell, empty without an estimate."""
    if bounds is None or bounds["estimate"] is None:
        return ""
    return Number(**bounds, signed=signed)


def caption(summary: dict[str, Any]) -> str:
    """Return what the numbers of the main tables mean, column by column that is there."""
    rows, columns, detectable = summary["configurations"], columns_of(summary), summary["minimum_detectable_difference"]
    at_once = " and ".join(columns[m] for m in summary["objectives"])
    shown = [m for m in columns if m in GAINS or m in summary["objectives"]]
    found = ", ".join(f"{columns[m]} {detectable[m]:.3f}" for m in shown if detectable.get(m) is not None)
    collapsed = dict.fromkeys(t["configuration"] for t in summary["trials"] if t["collapsed"])
    without = sum(not c["seeds"] for c in rows)
    powers = [v["power"] for c in rows if (v := c["equivariant_without_loss"]) and v["power"] is not None]
    sample = ", and that of the sample of held-out images" if summary["images_sampled"] else ""
    said = {
        f"± 95 %, each configuration's own variance over seeds, moderated{sample}.": bool(found),
        "Δ: paired difference from the best of its controls, metric by metric.": any(c["gains"] for c in rows),
        f"{MARK} differs from 0 with the comparisons of its table accounted for (Benjamini-Hochberg, 5 %).": any(
            of["significant"] for c in rows for of in c["gains"].values()
        ),
        "Beyond autoencode: paired difference from the same configuration that reconstructs from the target's own "
        "tokens.": any(c["beyond_autoencode"] for c in rows),
        f"Without loss: yes where all 95 % bounds give more R² and equivariance, accuracy at most {ACCURACY_MARGIN} "
        f"lower, invariance at most {INVARIANCE_MARGIN} lower; no where one is significantly on the wrong side. "
        f"{_power_of(powers)}": bool(powers),
        f"On the front: probability that no other row is better in {at_once} at once.": any(
            c["front_probability"] is not None for c in rows
        ),
        f"Minimum detectable difference (power .8): {found or 'unknown, too few seeds'}.": True,
        f"Chosen: {summary['chosen']['reason'] if summary['chosen'] else 'none'}.": bool(
            summary["space"] or summary["chosen"]
        ),
        _untrained(summary["untrained"]): bool(summary["untrained"]),
        f"Not shown: {without} configurations of which no trial came to its end.": without > 0,
        f"Collapsed, to a line or a point: {'; '.join(collapsed)}.": bool(collapsed),
    }
    return " ".join(sentence for sentence, true in said.items() if true)


def _power_of(powers: list[float]) -> str:
    if not powers:
        return ""
    least, most = min(powers), max(powers)
    amount = f"{least:.2f}" if least == most else f"{least:.2f} to {most:.2f}"
    weak = ": a yes could hardly have been found" if most < ENOUGH_POWER else ""
    return f"Power, the probability of yes if nothing were lost and the gains were as estimated: {amount}{weak}."


def _untrained(bases: dict[str, list[str]]) -> str:
    said = (f"{base} does not beat {' and '.join(rows)}" for base, rows in bases.items())
    return f"Not trained enough to compare with: in accuracy {', '.join(said)} beyond the noise."


def result_table(summary: dict[str, Any]) -> "RenderableType":
    """Return the study's main tables for a terminal: one where it fits in 140 columns, else metrics and gains apart."""
    from rich.console import Group
    from rich.text import Text

    results, gains, parts = results_table(summary), gains_table(summary), separation_table(summary, most=0)
    joined = _joined(results, gains)
    shown = [joined] if _width(joined) <= WIDTH else [results, gains]
    shown = [table for table in (*shown, parts) if table.rows]
    titles = [table.title for table in shown]
    titles[:1] = [summary["question"]] * bool(shown)
    tables = [_rich(table, title) for table, title in zip(shown, titles, strict=True)]
    return Group(*tables, Text(caption(summary), style="italic"))


def _joined(results: Table, gains: Table) -> Table:
    """Return the columns of both in one table, the front last."""
    of = {row[0]: row[1:] for row in gains.rows}
    placed = 1 if results.head[-1] == "on the front" else 0
    end = len(results.head) - placed

    def join(row: tuple[Cell, ...], beside: tuple[Cell, ...]) -> tuple[Cell, ...]:
        return (*row[:end], *beside, *row[end:])

    empty = ("",) * (len(gains.head) - 1)
    rows = tuple(join(row, of.get(row[0], empty)) for row in results.rows)
    return Table("results", "Results", join(results.head, gains.head[1:]), rows, results.marked)


def _compact(cell: Cell) -> str:
    """Return a cell in fewer letters: no zero before the point."""
    return re.sub(r"(?<!\d)0\.", ".", str(cell)) if isinstance(cell, Number) else str(cell)


def _titles(table: Table) -> list[list[str]]:
    """Return the lines of every column's title, no wider than its cells where words allow it."""
    cells = zip(*(map(len, map(_compact, row)) for row in table.rows), strict=True)
    return [
        textwrap.wrap(title, max(7, *widths), break_long_words=False)
        for title, widths in zip(table.head, cells, strict=True)
    ]


def _width(table: Table) -> int:
    """Return the columns of a terminal that a table takes."""
    if not table.rows:
        return 0
    titles = [max(map(len, lines)) for lines in _titles(table)]
    cells = zip(*(map(len, map(_compact, row)) for row in table.rows), strict=True)
    return sum(max(title, *widths) + 2 for title, widths in zip(titles, cells, strict=True))


def _rich(table: Table, title: str) -> "RenderableType":
    from rich import box
    from rich.table import Table as RichTable

    made = RichTable(title=title, box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), title_justify="left", pad_edge=False)
    for index, lines in enumerate(_titles(table)):
        made.add_column("\n".join(lines), justify="right" if index else "left", vertical="bottom")
    for row in table.rows:
        made.add_row(*map(_compact, row), style="bold" if row[0] in table.marked else None)
    return made
