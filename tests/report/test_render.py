"""The same table for a README, a page, a spreadsheet and a paper."""

import csv
import dataclasses
import io
import re

import pandas as pd

from eqssl.report.render import Number, Table, csv_text, latex, markdown
from eqssl.report.report import page
from eqssl.report.tables import caption, report_tables

HEAD = ("name", "R² 100 %", "note")
ROWS = (("a_b <c>", Number(0.5, 0.4, 0.6), "x|y"), ("$d, e", Number(-0.25, signed=True), ""), ("f", "", ""))
TABLE = Table("toy", "A & B", pd.DataFrame(ROWS, columns=HEAD, dtype=object), marked="f")


def html_table(table: Table, summary: dict) -> str:
    """Return a table as the page has it."""
    return page(summary, [table], {}).partition("<table>")[2].partition("</table>")[0]


def test_markdown_has_the_main_table_its_caption_and_the_others_by_title(summary):
    tables = report_tables(summary, pd.DataFrame())
    blocks = markdown(tables, caption(summary)).split("\n\n")
    assert blocks[0].startswith("| configuration | seeds | kNN | linear | R² mean |")
    assert set(blocks[0].splitlines()[1]) == set("|- ")
    assert blocks[1] == caption(summary)
    assert blocks[2] == "Gains over the best control:"
    assert len(blocks) == 2 * len(tables)


def test_a_bar_in_a_cell_does_not_split_it():
    assert r"| 0.500 ± 0.100 | x\|y |" in markdown([TABLE], "")


def test_csv_keeps_the_digits_and_the_bounds():
    head, *rows = csv.reader(io.StringIO(csv_text(TABLE)))
    assert head == ["name", "R² 100 %", "R² 100 %_low", "R² 100 %_high", "note"]
    assert rows == [
        ["a_b <c>", "0.5", "0.4", "0.6", "x|y"],
        ["$d, e", "-0.25", "", "", ""],
        ["f", "", "", "", ""],
    ]


def test_latex_escapes_what_it_would_read_as_commands():
    lines = latex(TABLE).splitlines()
    assert lines[1:3] == [r"\begin{tabular}{lrr}", r"\toprule"]
    assert lines[3] == r"name & R\textsuperscript{2} 100 \% & note \\"
    assert lines[5] == r"a\_b \textless{}c\textgreater{} & 0.500 $\pm$ 0.100 & x|y \\"
    assert lines[6].startswith(r"\$d, e & -0.250 &")


def test_html_escapes_and_has_every_cell(summary):
    text = html_table(TABLE, summary)
    assert "a_b &lt;c&gt;" in text
    assert len(re.findall("<td>", text)) == 9 and len(re.findall("<th>", text)) == 3


def test_html_marks_the_choice_and_what_is_significant(summary):
    rows = (("a", Number(0.5, 0.4, 0.6, True, True), ""), ("f", Number(0.5), ""))
    table = dataclasses.replace(TABLE, frame=pd.DataFrame(rows, columns=HEAD, dtype=object))
    text = html_table(table, summary)
    assert re.findall(r'<tr class="marked"><td>(\w)', text) == ["f"]
    assert re.findall("<b>(.*?)</b>", text) == ["+0.500 ± 0.100*"]
