"""A study's summary as tables: text for a terminal, rows for whatever else shows them."""

from typing import Any

from rich.table import Table

# What a table shows where the evaluation gives it: its figure, and how it is called.
COLUMNS = {
    "knn": "kNN",
    "linear": "linear",
    "r2_mean": "R² mean",
    "mlp_r2_mean": "R² mean (MLP)",
    "equivariance": "equivariance",
    "inv/invariance": "invariance (inv)",
}
WHOLE = {"inv/invariance": "invariance"}  # without a split all features are the method's
HOLDS = {True: "yes", False: "no", None: ""}
GAINS = {"knn": "Δ kNN", "r2_mean": "Δ R² mean", "equivariance": "Δ equivariance"}


def table_rows(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a study's one table: figures, then gains over the better control.

    Args:
        summary: what summary.json holds.
    """
    configurations = summary["configurations"]
    shown = [f for f in COLUMNS if any(f in c["metrics"] for c in configurations)]
    gained = [f for f in GAINS if any(f in c["gains"] for c in configurations)]
    judged = any(c["equivariant_without_loss"] is not None for c in configurations)
    head = ["configuration", "seeds", *(COLUMNS[f] for f in shown), *(GAINS[f] for f in gained)]
    head += ["holds"] * judged
    rows = [
        [
            c["name"],
            str(len(c["seeds"])),
            *(interval_text(c["metrics"].get(f, c["metrics"].get(WHOLE.get(f)))) for f in shown),
            *(interval_text(c["gains"].get(f), signed=True) for f in gained),
            *[HOLDS[c["equivariant_without_loss"]]] * judged,
        ]
        for c in in_order(configurations)
    ]
    return head, rows


def in_order(configurations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the reference rows as they are, then the searched configurations by their parameters."""
    searched = [c for c in configurations if c["number"] is not None]
    by_params = sorted(searched, key=lambda c: [(str(type(v)), v) for v in c["params"].values()])
    return [c for c in configurations if c["number"] is None] + by_params


def interval_text(bounds: dict[str, float | None] | None, *, signed: bool = False) -> str:
    """Return `.512 ± .034`, the estimate alone without bounds, nothing without an estimate."""
    if bounds is None or bounds["estimate"] is None:
        return ""
    text = f"{bounds['estimate']:+.3f}" if signed else f"{bounds['estimate']:.3f}"
    return text if bounds["low"] is None else f"{text} ± {bounds['estimate'] - bounds['low']:.3f}"


def caption(summary: dict[str, Any]) -> str:
    """Return what the numbers of the table mean."""
    detectable = summary["minimum_detectable_difference"]
    found = ", ".join(f"{name} {detectable[f]:.3f}" for f, name in COLUMNS.items() if detectable.get(f) is not None)
    chosen = summary["chosen"]["configuration"] if summary["chosen"] else "none"
    collapsed = dict.fromkeys(t["configuration"] for t in summary["trials"] if t["collapsed"])
    return (
        f"± 95 %, standard deviation pooled over configurations; Δ: paired difference from the better control. "
        f"Holds: all bounds give more R² and equivariance, and no loss of accuracy and invariance. "
        f"Minimum detectable difference: {found or 'unknown, too few seeds'}. Chosen: {chosen}."
        + (f" Collapsed, to a line or a point: {', '.join(collapsed)}." if collapsed else "")
    )


def result_table(summary: dict[str, Any]) -> Table:
    """Return the study's table for a terminal."""
    head, rows = table_rows(summary)
    table = Table(title=summary["question"], caption=caption(summary), caption_justify="left")
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    return table
