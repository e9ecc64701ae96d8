"""What a study's summary says, as tables; how they are written is `eqssl.report.render`'s affair."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eqssl.evaluation.statistics import ACCURACY_MARGIN, INVARIANCE_MARGIN

if TYPE_CHECKING:
    import rich.table

    from eqssl.report.importance import Importances

# What a table shows where the evaluation gives it: its figure, and how it is called.
COLUMNS = {
    "knn": "kNN",
    "linear": "linear",
    "r2_mean": "R² mean",
    "mlp_r2_mean": "R² mean (MLP)",
    "equivariance": "equivariance",
    "inv/invariance": "invariance (inv)",
}
HOLDS = {True: "yes", False: "no", None: ""}
GAINS = {"knn": "Δ kNN", "r2_mean": "Δ R² mean", "equivariance": "Δ equivariance"}
# Figures of one factor each, under these prefixes.
FACTORS = {
    "r2/": "R² per factor",
    "mlp_r2/": "R² per factor, MLP",
    "equivariance/": "equivariance per factor",
}
NAMED = 10  # configurations in one cell


@dataclass(frozen=True)
class Estimate:
    """A number with bounds, None where it has none.

    Args:
        estimate, low, high: the number and its two-sided bounds.
        signed: it is a difference.
    """

    estimate: float
    low: float | None = None
    high: float | None = None
    signed: bool = False

    def __str__(self) -> str:
        text = f"{self.estimate:+.3f}" if self.signed else f"{self.estimate:.3f}"
        if self.low is None or self.high is None:
            return text
        below, above = self.estimate - self.low, self.high - self.estimate
        same = abs(below - above) < 5e-4
        return f"{text} ± {below:.3f}" if same else f"{text} ({self.low:.3f} to {self.high:.3f})"


Cell = str | Estimate


@dataclass(frozen=True)
class Table:
    """One table.

    Args:
        name: of its files.
        title: above it; what all cells have in common.
        head: names of the columns; the first names the row.
        rows: as many cells each.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def report_tables(summary: dict[str, Any], found: Sequence["Importances"] = ()) -> list[Table]:
    """Return every table that the summary gives reason to show, the main one first.

    Args:
        summary: what summary.json holds.
        found: importances of the options, one an objective.
    """
    gains = [gains_table(summary, prefix, title) for prefix, title in FACTORS.items()]
    tables = [
        results_table(summary),
        configurations_table(summary),
        *gains,
        winners_table(summary),
        cost_table(summary),
    ]
    tables += [importances_table(found), interactions_table(found)]
    return [table for table in tables if table.rows or table.name == "results"]


def columns_of(summary: dict[str, Any]) -> dict[str, str]:
    """Return the figures of the main table and how they are called, the study's own objectives among them."""
    return COLUMNS | {figure: figure for figure in summary["objectives"] if figure not in COLUMNS}


def results_table(summary: dict[str, Any]) -> Table:
    """Return the study's one table: figures, gains over the better control, probability of being on the front."""
    configurations = [c for c in in_order(summary["configurations"]) if c["seeds"]]
    columns = columns_of(summary)
    gains = GAINS | {figure: f"Δ {columns[figure]}" for figure in summary["objectives"]}
    shown = [f for f in columns if any(f in c["metrics"] for c in configurations)]
    gained = [f for f in gains if any(f in c["gains"] for c in configurations)]
    judged = any(c["equivariant_without_loss"] is not None for c in configurations)
    placed = any(c["front_probability"] is not None for c in configurations)
    head = ["configuration", "seeds", *(columns[f] for f in shown), *(gains[f] for f in gained)]
    rows = [
        (
            c["name"],
            str(len(c["seeds"])),
            *(estimate(c["metrics"].get(f)) for f in shown),
            *(estimate(c["gains"].get(f), signed=True) for f in gained),
            *[HOLDS[c["equivariant_without_loss"]]] * judged,
            *["" if c["front_probability"] is None else f"{c['front_probability']:.2f}"] * placed,
        )
        for c in configurations
    ]
    return Table("results", "Results", (*head, *["holds"] * judged, *["on the front"] * placed), tuple(rows))


def configurations_table(summary: dict[str, Any]) -> Table:
    """Return the values of the searched configurations where these are called by their numbers."""
    numbered = [c for c in in_order(summary["configurations"]) if c["name"] == f"no. {c['number']}"]
    options = list(dict.fromkeys(option for c in numbered for option in c["params"]))
    rows = tuple((c["name"], *(_value(c["params"].get(option, "")) for option in options)) for c in numbered)
    return Table("configurations", "Configurations", ("configuration", *options), rows)


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def gains_table(summary: dict[str, Any], prefix: str, title: str) -> Table:
    """Return the gains in the figures that begin with a prefix, factor by factor."""
    gaining = [c for c in in_order(summary["configurations"]) if any(f.startswith(prefix) for f in c["gains"])]
    figures = sorted({figure for c in gaining for figure in c["gains"] if figure.startswith(prefix)})
    rows = tuple((c["name"], *(estimate(c["gains"].get(f), signed=True) for f in figures)) for c in gaining)
    head = ("gain", *(figure.removeprefix(prefix) for figure in figures))
    return Table(f"gains_{prefix[:-1]}", f"{title}, paired difference from the better control", head, rows)


def winners_table(summary: dict[str, Any]) -> Table:
    """Return the best configuration by each figure, references aside, and those whose difference from it includes 0."""
    by_name = {c["name"]: c for c in summary["configurations"]}
    rows = []
    for figure, called in columns_of(summary).items():
        best = summary["best"].get(figure)
        if best is None:
            continue
        behind = {n: c["behind"][figure] for n, c in by_name.items() if figure in c["behind"]}
        close = [n for n, bounds in behind.items() if bounds["low"] is None or bounds["low"] <= 0 <= bounds["high"]]
        close.sort(key=lambda name: abs(behind[name]["estimate"]))
        others = "; ".join(close[:NAMED])
        others += f" and {len(close) - NAMED} more" if len(close) > NAMED else ""
        unknown = "too few seeds to tell"
        value = estimate(by_name[best]["metrics"][figure])
        rows.append((called, best, value, others or ("none" if behind else unknown)))
    head = ("figure", "best configuration", "value", "not distinguishable from it")
    return Table("winners", "The best by each figure, references aside", head, tuple(rows))


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
            "yes" if any(m.get("sees_theta") == 1 for m in metrics) else "",
        )
        rows.append(cells)
    head = ("configuration", "trials", "trained parameters", "s an epoch", "wall s", "overhead s", "told the transform")
    return Table("cost", "Cost", head, tuple(rows))


def importances_table(found: Sequence["Importances"]) -> Table:
    """Return the importance of every option for every objective, by both estimators."""
    rows = tuple(
        (option, i.objective, Estimate(*i.ped_anova[option]), Estimate(i.forest[option], signed=True))
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
    """Return the reference rows as they are, then the searched configurations by number or by parameters."""
    searched = [c for c in configurations if c["number"] is not None]
    if any(c["name"] == f"no. {c['number']}" for c in searched):
        searched.sort(key=lambda c: c["number"])
    else:
        searched.sort(key=lambda c: [(str(type(v)), v) for v in c["params"].values()])
    return [c for c in configurations if c["number"] is None] + searched


def estimate(bounds: dict[str, float | None] | None, *, signed: bool = False) -> Cell:
    """Return bounds of the summary as a cell, empty without an estimate."""
    if bounds is None or bounds["estimate"] is None:
        return ""
    return Estimate(**bounds, signed=signed)


def caption(summary: dict[str, Any]) -> str:
    """Return what the numbers of the main table mean, column by column that is there."""
    rows, columns, detectable = summary["configurations"], columns_of(summary), summary["minimum_detectable_difference"]
    at_once = " and ".join(columns[f] for f in summary["objectives"])
    found = ", ".join(f"{name} {detectable[f]:.3f}" for f, name in columns.items() if detectable.get(f) is not None)
    collapsed = dict.fromkeys(t["configuration"] for t in summary["trials"] if t["collapsed"])
    without = sum(not c["seeds"] for c in rows)
    said = {
        "± 95 %, standard deviation pooled over configurations.": bool(found),
        "Δ: paired difference from the better control.": any(c["gains"] for c in rows),
        f"Holds: all 95 % bounds give more R² and equivariance, accuracy at most {ACCURACY_MARGIN} lower, "
        f"invariance at most {INVARIANCE_MARGIN} lower.": any(c["equivariant_without_loss"] is not None for c in rows),
        f"On the front: probability that no other row is better in {at_once} at once.": any(
            c["front_probability"] is not None for c in rows
        ),
        f"Minimum detectable difference: {found or 'unknown, too few seeds'}.": True,
        f"Chosen: {summary['chosen']['configuration'] if summary['chosen'] else 'none'}.": True,
        f"Not shown: {without} configurations of which no trial came to its end.": without > 0,
        f"Collapsed, to a line or a point: {'; '.join(collapsed)}.": bool(collapsed),
    }
    return " ".join(sentence for sentence, true in said.items() if true)


def result_table(summary: dict[str, Any]) -> "rich.table.Table":
    """Return the study's main table for a terminal."""
    from rich.table import Table as RichTable

    results = results_table(summary)
    table = RichTable(title=summary["question"], caption=caption(summary), caption_justify="left")
    for index, name in enumerate(results.head):
        table.add_column(name, justify="right" if index else "left")
    for row in results.rows:
        table.add_row(*map(str, row))
    return table
