"""The tables of a README, from a summary alone."""

import json
import subprocess
import sys

from eqssl.report.markdown import gain_rows, markdown
from tests.report.test_report import summary  # noqa: F401 (a fixture)


def test_every_table_has_a_row_for_every_configuration(summary):  # noqa: F811
    tables = markdown(summary).split("\n\n")
    lines = tables[0].splitlines()
    assert lines[0].startswith("| configuration | seeds | kNN | R² mean |") and set(lines[1]) == set("|- ")
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "base",
        "split-0",
        "weight 0.1",
        "weight 1",
        "weight 10",
    ]
    head, rows = gain_rows(summary, "r2/")
    assert head == ["gain", "angle", "dx", "hue"]
    found = {row[0]: row[1] for row in rows}
    gain = next(c for c in summary["configurations"] if c["name"] == "weight 10")["gains"]["r2/angle"]
    assert found["weight 10"] == f"{gain['estimate']:+.3f} ± {gain['estimate'] - gain['low']:.3f}"


def test_the_command_writes_the_report_again_and_names_a_wrong_folder(summary, tmp_path):  # noqa: F811
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    command = [sys.executable, "-m", "eqssl.report"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == markdown(summary) + "\n", done.stderr
    assert (tmp_path / "report.html").is_file()
    wrong = subprocess.run([*command, str(tmp_path / "no")], capture_output=True, text=True)
    assert wrong.returncode == 2 and "holds no summary.json" in wrong.stderr
