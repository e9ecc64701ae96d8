"""`eqssl report FOLDER`: a study's report, figures and tables, while it runs or again."""

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro


def report(folder: Annotated[str, tyro.conf.Positional], from_predictions: bool = False) -> None:
    """Write the report of a study, finished or running, and print its tables as Markdown.

    Args:
        folder: OUTPUT/STUDY, on a disk or in a bucket.
        from_predictions: Compute every probe's metrics again from its predictions for each held-out example, which a
            study with --evaluate.level full saves.
    """
    from eqssl.files import as_path, check_readable
    from eqssl.study.live import current_summary, summary_of_predictions

    path = as_path(folder, "FOLDER")
    check_readable(path, "FOLDER")
    summary = summary_of_predictions(path) if from_predictions else current_summary(path)
    from eqssl.report.report import write_report  # imports matplotlib, which a wrong folder need not wait for

    write_report(summary, path)
    print((path / "tables.md").read_text(encoding="utf-8"), end="")
    print(f"{summary['sentence']}\npage: {path / 'report.html'}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for a folder that holds no study."""
    try:
        tyro.cli(report, args=arguments, prog="eqssl report")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
