"""The report of a study, from its summary alone: report.html, its figures as PNG, its tables for papers."""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from eqssl.files import read, write_atomically
from eqssl.metrics import register_stored
from eqssl.report import figures, selection
from eqssl.report.front import front_picture
from eqssl.report.importance import importance_picture, study_importances
from eqssl.report.progress import progress_picture
from eqssl.report.render import Table, csv_text, latex, markdown
from eqssl.report.responses import response_pictures
from eqssl.report.selection import Summary
from eqssl.report.tables import caption, report_tables


def write_report(summary: Summary, folder: Path) -> list[Path]:
    """Write report.html, the figures, tables.md and the tables as CSV and LaTeX; return the files.

    Args:
        summary: content of summary.json.
        folder: of the study; reconstructions are read from its trials.
    """
    register_stored(summary.get("metrics", {}))
    importances = study_importances(summary)
    tables = report_tables(summary, importances)
    with matplotlib.rc_context(figures.STYLE):
        pictures = {picture: picture.png() for picture in study_pictures(summary, folder, importances)}
    files = {folder / f"{picture.name}.png": png for picture, png in pictures.items()}
    files |= {folder / "tables" / f"{table.name}.csv": csv_text(table).encode() for table in tables}
    files |= {folder / "tables" / f"{table.name}.tex": latex(table).encode() for table in tables}
    files[folder / "tables.md"] = markdown(tables, caption(summary)).encode()
    files[folder / "report.html"] = page(summary, tables, pictures).encode()
    for path, data in files.items():
        write_atomically(path, partial(Path.write_bytes, data=data))
    return list(files)


def page(summary: Summary, tables: Sequence[Table], pictures: Mapping[figures.Picture, bytes]) -> str:
    """Return report.html, which needs no other file.

    Args:
        summary: content of summary.json.
        tables: from `report_tables`.
        pictures: figures and their PNGs.
    """
    environment = Environment(loader=PackageLoader("eqssl", "report"), autoescape=True, undefined=StrictUndefined)
    images = {picture: base64.b64encode(png).decode() for picture, png in pictures.items()}
    template = environment.get_template("page.html.j2")
    return template.render(summary=summary, tables=tables, images=images, caption=caption(summary))


def study_pictures(summary: Summary, folder: Path | None, importances: pd.DataFrame) -> list[figures.Picture]:
    """Return all figures that the summary, the study's folder and the result of `study_importances` have data for."""
    pictures = [front_picture(summary)]
    if pictures[0] and selection.searched(summary):
        pictures.append(progress_picture(summary))
    pictures += [*response_pictures(summary), figures.heatmap_picture(summary)]
    if len(importances):
        pictures.append(importance_picture(importances))
    if folder and (images := reconstructions(summary, folder)):
        pictures.append(figures.reconstruction_picture(images))
    return [picture for picture in pictures if picture]


def reconstructions(summary: Summary, folder: Path) -> dict[str, NDArray[np.uint8]]:
    """Return configuration -> images of its first seed, uint8 (3, n, C, H, W), for those that have saved them.

    Of one option the lowest, middle and highest value; of several the choice and the best by each objective.
    """
    searched = [c["name"] for c in selection.searched(summary)]
    shown = [searched[0], searched[(len(searched) - 1) // 2], searched[-1]] if searched else []
    if len(summary["space"]) > 1:
        chosen = [summary["chosen"]["configuration"]] if summary["chosen"] else []
        best = [summary["best"].get(metric) for metric in summary["objectives"]]
        shown = [*chosen, *(name for name in best if name)]
    found = {}
    for name in dict.fromkeys(shown):
        trial = next(t["trial_id"] for t in summary["trials"] if t["configuration"] == name)
        if images := read(folder / "trials" / trial / "reconstructions.npy"):
            found[name] = np.load(io.BytesIO(images))
    return found
