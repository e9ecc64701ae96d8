"""Tables as text: Markdown, HTML, CSV, LaTeX."""

import csv
import html
import io
from collections.abc import Iterable, Sequence

from eqssl.report.tables import Cell, Number, Table

LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "²": r"\textsuperscript{2}",
    "Δ": r"$\Delta$",
}


def markdown(tables: Iterable[Table], caption: str) -> str:
    """Return all tables, the first followed by its caption, the others after their titles."""
    first, *others = tables
    parts = [markdown_rows(first.head, first.rows), caption]
    for table in others:
        parts += [f"{table.title}:", markdown_rows(table.head, table.rows)]
    return "\n\n".join(parts) + "\n"


def markdown_rows(head: Sequence[Cell], rows: Iterable[Sequence[Cell]]) -> str:
    """Return one table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |" for cells in lines)


def html_table(table: Table) -> str:
    """Return a table as an HTML element."""
    rows = "".join(_html_row(row, "td", marked=row[0] in table.marked) for row in table.rows)
    return f"<table><thead>{_html_row(table.head, 'th')}</thead><tbody>{rows}</tbody></table>"


def _html_row(cells: Iterable[Cell], tag: str, *, marked: bool = False) -> str:
    start = '<tr class="marked">' if marked else "<tr>"
    return start + "".join(f"<{tag}>{_html_cell(cell)}</{tag}>" for cell in cells) + "</tr>"


def _html_cell(cell: Cell) -> str:
    text = html.escape(str(cell))
    return f"<b>{text}</b>" if isinstance(cell, Number) and cell.significant else text


def csv_text(table: Table) -> str:
    """Return a table as CSV, a column of estimates as three: NAME, NAME_low, NAME_high."""
    bounded = [any(isinstance(row[i], Number) for row in table.rows) for i in range(len(table.head))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = zip(table.head, bounded, strict=True)
    writer.writerow(
        [name for head, three in columns for name in ([head, f"{head}_low", f"{head}_high"][: 1 + 2 * three])]
    )
    for row in table.rows:
        writer.writerow([value for cell, three in zip(row, bounded, strict=True) for value in _values(cell, three)])
    return text.getvalue()


def _values(cell: Cell, three: bool) -> list[str | float | None]:
    if isinstance(cell, Number):
        return [cell.estimate, cell.low, cell.high]
    return [cell, None, None] if three else [cell]


def latex(table: Table) -> str:
    """Return a table for LaTeX with booktabs."""
    lines = [" & ".join(map(_latex_text, cells)) + r" \\" for cells in (table.head, *table.rows)]
    return "\n".join(
        [
            f"% {table.title}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex_text(cell: Cell) -> str:
    return "".join(LATEX.get(letter, letter) for letter in str(cell))
