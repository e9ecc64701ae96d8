"""`python -m eqssl.report FOLDER`: a study's report, figures and tables, while it runs or again."""

import sys
from pathlib import Path
from typing import Annotated

import tyro


def report(folder: Annotated[Path, tyro.conf.Positional]) -> None:
    """Write the report of a study, finished or running, and print its tables as Markdown.

    Args:
        folder: OUTPUT/STUDY.
    """
    from eqssl.report.live import current_summary
    from eqssl.report.report import write_report

    write_report(current_summary(folder), folder)
    print((folder / "tables.md").read_text(), end="")


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
