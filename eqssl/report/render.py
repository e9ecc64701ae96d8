"""A table of estimates, written as Markdown, CSV, LaTeX and for a terminal; the page's template writes HTML."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from rich.table import Table as RichTable

MARK = "*"  # of a significant difference
# Beside the characters that pandas escapes.
LATEX = {"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "²": r"\textsuperscript{2}", "Δ": r"$\Delta$"}


@dataclass(frozen=True)
class Number:
    """A number with bounds, None where it has none.

    Args:
        estimate, low, high: the number and its two-sided bounds.
        signed: whether it is a difference.
        significant: whether it is a difference that survives the correction for the comparisons of its table.
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
        title: heading.
        frame: a `Cell` everywhere; the first column names the row.
        marked: first cell of the rows that stand out: the choice.
    """

    name: str
    title: str
    frame: pd.DataFrame
    marked: str | None = None


def markdown(tables: Iterable[Table], caption: str) -> str:
    """Return all tables, the first followed by its caption, the others after their titles."""
    first, *others = tables
    parts = [_markdown_rows(first.frame), caption]
    for table in others:
        parts += [f"{table.title}:", _markdown_rows(table.frame)]
    return "\n\n".join(parts) + "\n"


def _markdown_rows(frame: pd.DataFrame) -> str:
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |" for cells in lines)


def csv_text(table: Table) -> str:
    """Return a table as CSV with all digits, a column of estimates as three: NAME, NAME_low, NAME_high."""
    columns: dict[str, list[str | float | None]] = {}
    for title in map(str, table.frame):
        cells: list[Cell] = table.frame[title].tolist()
        columns[title] = [cell.estimate if isinstance(cell, Number) else cell for cell in cells]
        if any(isinstance(cell, Number) for cell in cells):
            columns[f"{title}_low"] = [getattr(cell, "low", None) for cell in cells]
            columns[f"{title}_high"] = [getattr(cell, "high", None) for cell in cells]
    return pd.DataFrame(columns, dtype=object).to_csv(index=False, lineterminator="\n")


def latex(table: Table) -> str:
    """Return a table for LaTeX with booktabs."""
    alignment = "l" + "r" * (len(table.frame.columns) - 1)
    text = table.frame.map(str).to_latex(index=False, escape=True, column_format=alignment)
    return f"% {table.title}\n" + "".join(LATEX.get(letter, letter) for letter in text)


def terminal_table(table: Table) -> "RichTable":
    """Return a table for a terminal: no zero before the point, titles of columns as wide as their cells."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    made = RichTable(
        title=escape(table.title), box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), title_justify="left", pad_edge=False
    )
    texts = table.frame.map(lambda cell: re.sub(r"(?<!\d)0\.", ".", str(cell)) if isinstance(cell, Number) else cell)
    for title in map(str, texts):
        width = max(7, *map(len, [*title.split(), *texts[title]]))
        made.add_column(escape(title), max_width=width, justify="right" if made.columns else "left", vertical="bottom")
    for row in texts.to_numpy():
        made.add_row(*map(escape, row), style="bold" if row[0] == table.marked else None)
    return made
