"""The report of a study, from its summary: report.html, its figures as PNG, SVG and PDF, its tables for papers."""

import base64
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from eqssl.config import RunConfig, flatten
from eqssl.files import write_atomically
from eqssl.images import read_arrays
from eqssl.metrics import register_stored
from eqssl.report import figures, selection
from eqssl.report.attention import attention_picture
from eqssl.report.front import front_picture
from eqssl.report.importance import importance_picture, study_importances
from eqssl.report.progress import learning_picture, progress_picture
from eqssl.report.render import Table, csv_text, latex, markdown
from eqssl.report.responses import response_pictures
from eqssl.report.selection import Summary
from eqssl.report.tables import caption, report_tables

# In the order of the page; `response_OPTION` belongs to `response`. All other tables follow.
SECTIONS = (
    *("front", "forest", "results", "gains", "response", "responses", "factors", "separation", "heatmap"),
    *("learning", "reconstructions", "attention", "retrieved", "importances", "progress"),
)


def write_report(summary: Summary, folder: Path) -> list[Path]:
    """Write report.html, the figures, tables.md and the tables as CSV and LaTeX; return the files.

    Args:
        summary: content of summary.json.
        folder: the study's; reconstructions, attention and learning curves are read from a few of its trials.
    """
    register_stored(summary.get("metrics", {}))
    importances = study_importances(summary)
    tables = report_tables(summary, importances)
    with matplotlib.rc_context(figures.STYLE):
        pictures = study_pictures(summary, folder, importances)
        saved = {(picture, suffix): picture.save(suffix) for picture in pictures for suffix in figures.NO_DATE}
    files = {folder / f"{picture.name}.{suffix}": data for (picture, suffix), data in saved.items()}
    files |= {folder / "tables" / f"{table.name}.csv": csv_text(table).encode() for table in tables}
    files |= {folder / "tables" / f"{table.name}.tex": latex(table).encode() for table in tables}
    files[folder / "tables.md"] = markdown(tables, caption(summary)).encode()
    images = {picture: saved[picture, "png"] for picture in pictures}
    files[folder / "report.html"] = page(summary, tables, images).encode()
    for path, data in files.items():
        write_atomically(path, partial(Path.write_bytes, data=data))
    return list(files)


def page(summary: Summary, tables: Sequence[Table], pictures: Mapping[figures.Picture, bytes]) -> str:
    """Return the content of report.html, which needs no other file.

    Args:
        summary: content of summary.json.
        tables: from `report_tables`.
        pictures: figures and their PNGs.
    """
    sections: list[figures.Picture | Table] = sorted([*pictures, *tables], key=_place)
    defaults = flatten(RunConfig())
    changed = {option: value for option, value in summary["options"].items() if value != defaults.get(option)}
    environment = Environment(loader=PackageLoader("eqssl", "report"), autoescape=True, undefined=StrictUndefined)
    images = {picture: base64.b64encode(png).decode() for picture, png in pictures.items()}
    template = environment.get_template("page.html.j2")
    return template.render(summary=summary, sections=sections, images=images, caption=caption(summary), changed=changed)


def _place(section: figures.Picture | Table) -> int:
    """Return the place of a figure or table on the page."""
    name = section.name.partition("_")[0] if isinstance(section, figures.Picture) else section.name
    return SECTIONS.index(name) if name in SECTIONS else len(SECTIONS)


def study_pictures(summary: Summary, folder: Path | None, importances: pd.DataFrame) -> list[figures.Picture]:
    """Return all figures that the summary, the study's folder and the result of `study_importances` have data for."""
    pictures = [front_picture(summary), figures.forest_picture(summary)]
    pictures += [*response_pictures(summary), figures.heatmap_picture(summary), learning_picture(summary, folder)]
    if len(importances):
        pictures.append(importance_picture(importances))
    if pictures[0] and selection.searched(summary):
        pictures.append(progress_picture(summary))
    if folder and (images := reconstructions(summary, folder)):
        pictures.append(figures.reconstruction_picture(images))
    main = selection.main_rows(summary)
    if folder and main and (arrays := read_arrays(_file_of(summary, folder, main[0], "attention.npz"))):
        pictures.append(attention_picture(main[0], arrays))
    if folder and (images := _images(summary, folder, main, "retrieved.npy")):
        pictures.append(figures.retrieved_picture(images))
    return [picture for picture in pictures if picture]


def reconstructions(summary: Summary, folder: Path) -> dict[str, NDArray[np.uint8]]:
    """Return configuration -> images of its first seed, uint8 (3, n, C, H, W), for those that saved them.

    If one option is varied, its lowest, middle and highest value; else the main row and the best by each objective.
    """
    searched = [c["name"] for c in selection.searched(summary)]
    shown = [searched[0], searched[(len(searched) - 1) // 2], searched[-1]] if searched else []
    if len(summary["space"]) != 1:
        shown = selection.main_rows(summary)
    return _images(summary, folder, shown, "reconstructions.npy")


def _images(summary: Summary, folder: Path, names: Sequence[str], file: str) -> dict[str, NDArray[np.uint8]]:
    """Return configuration -> images in a file of its first seed, uint8 (3, n, C, S, S), for those that saved one."""
    files = {name: _file_of(summary, folder, name, file) for name in dict.fromkeys(names)}
    return {name: images for name, path in files.items() if (images := read_arrays(path)) is not None}


def _file_of(summary: Summary, folder: Path, configuration: str, name: str) -> Path:
    """Return the path of a file of a configuration's first seed."""
    trial = next(t["trial_id"] for t in summary["trials"] if t["configuration"] == configuration)
    return folder / "trials" / str(trial) / name
