"""A table of estimates as Markdown, CSV, LaTeX and terminal output; HTML comes from the page's template."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table as RichTable

GAP = 3  # characters between the columns of a terminal
MARK = "*"  # marks a significant difference
# In addition to the characters that pandas escapes.
LATEX = {"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "²": r"\textsuperscript{2}", "Δ": r"$\Delta$"}


@dataclass(frozen=True)
class Number:
    """A number with bounds, which are None if it has none.

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
        rounded = round(self.estimate, 3) + 0.0  # avoids a minus before zero
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
        name: name of its files.
        title: heading.
        frame: a `Cell` in every position; the first column names the row.
        marked: first cell of the rows to highlight: the choice.
        keys: number of columns that together name a row.
    """

    name: str
    title: str
    frame: pd.DataFrame
    marked: str | None = None
    keys: int = 1


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


class TerminalTable:
    """A table for a terminal of any width: columns that do not fit side by side go into further blocks.

    Numbers have no zero before the decimal point, and column titles are as wide as their cells; every block begins with
    the names of the rows, none of them wider than two fifths of the terminal.
    """

    def __init__(self, table: Table):
        self.table = table
        self.texts = table.frame.map(lambda c: re.sub(r"(?<!\d)0\.", ".", str(c)) if isinstance(c, Number) else c)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        titles = [str(title) for title in self.texts]
        keys, others = titles[: self.table.keys], titles[self.table.keys :]
        widths = {title: max(5, *map(len, [*title.split(), *self.texts[title]])) for title in titles}
        widths[keys[0]] = min(widths[keys[0]], max(16, 2 * options.max_width // 5))
        blocks: list[list[str]] = [[]]
        for title in others:
            if blocks[-1] and sum(widths[of] + GAP for of in [*keys, *blocks[-1], title]) > options.max_width:
                blocks.append([])
            blocks[-1].append(title)
        for place, titles in enumerate(blocks):
            yield self._block({title: widths[title] for title in (*keys, *titles)}, "" if place else self.table.title)

    def _block(self, widths: Mapping[str, int], title: str) -> "RichTable":
        from rich import box
        from rich.markup import escape
        from rich.table import Table as RichTable

        made = RichTable(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), title_justify="left", pad_edge=False)
        made.title = escape(title) or None
        for name, width in widths.items():
            look: dict[str, Any] = {"justify": "right"} if made.columns else {"justify": "left", "min_width": width}
            made.add_column(escape(name), max_width=width, vertical="bottom", **look)
        for row in self.texts[list(widths)].to_numpy():
            made.add_row(*map(escape, row), style="bold" if row[0] == self.table.marked else None)
        return made
