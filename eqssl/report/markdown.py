"""A study's summary as Markdown: the tables of a README or a paper."""

from typing import Any

from eqssl.report.tables import caption, in_order, interval_text, table_rows

# Figures of one factor each, under these prefixes.
FACTORS = {
    "r2/": "R² per factor",
    "mlp_r2/": "R² per factor, MLP",
    "equivariance/": "equivariance per factor",
}


def markdown(summary: dict[str, Any]) -> str:
    """Return the main table and, factor by factor, the gains over the better control.

    Args:
        summary: what summary.json holds.
    """
    head, rows = table_rows(summary)
    parts = [table(head, rows), caption(summary)]
    for prefix, title in FACTORS.items():
        head, rows = gain_rows(summary, prefix)
        if rows:
            parts += [f"{title}, paired difference from the better control:", table(head, rows)]
    return "\n\n".join(parts) + "\n"


def gain_rows(summary: dict[str, Any], prefix: str) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the gains in the figures that begin with a prefix."""
    gaining = [c for c in in_order(summary["configurations"]) if any(f.startswith(prefix) for f in c["gains"])]
    figures = sorted({figure for c in gaining for figure in c["gains"] if figure.startswith(prefix)})
    rows = [[c["name"], *(interval_text(c["gains"].get(f), signed=True) for f in figures)] for c in gaining]
    return ["gain", *(figure.removeprefix(prefix) for figure in figures)], rows


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
