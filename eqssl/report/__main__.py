"""`python -m eqssl.report FOLDER`: a study's report and figures again, and its tables as Markdown."""

import json
import sys
from pathlib import Path
from typing import Annotated

import tyro

from eqssl.report.markdown import markdown
from eqssl.report.report import write_report


def report(folder: Annotated[Path, tyro.conf.Positional]) -> None:
    """Write report.html and the figures of a study from its summary.json, and print its tables as Markdown.

    Args:
        folder: OUTPUT/STUDY.
    """
    path = folder / "summary.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no summary.json; give the folder of a study, OUTPUT/STUDY")
    summary = json.loads(path.read_text())
    write_report(summary, folder)
    print(markdown(summary))


def main() -> int:
    """Run the command and return its exit code: 0, or 2 for a folder that holds no study."""
    try:
        tyro.cli(report, prog="eqssl.report")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
