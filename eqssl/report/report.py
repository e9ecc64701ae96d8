"""The report of a study, from its summary alone: report.html, its figures as PNG, its tables for papers."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eqssl.files import read, write_atomically
from eqssl.report import page, render
from eqssl.report.figures import Picture, png, reconstruction_figure
from eqssl.report.fronts import competing, front_figure, twins_of
from eqssl.report.heatmap import heatmap_figure, heatmap_rows
from eqssl.report.importance import Importances, importance_figure, study_importances
from eqssl.report.progress import progress_figure
from eqssl.report.responses import dose_response, factor_response, means_and_bounds, option_responses
from eqssl.report.tables import Table, caption, columns_of, in_order, report_tables

REFERENCES = ("base", "no-recon", "autoencode", "pixels", "random", "supervised", "supervised-factors", "recon-only")
BANDS = REFERENCES[:2]
FIRST = ("results", "gains", "separation")  # tables before the figures
SHOWN = 3  # configurations along a range whose reconstructions are shown: lowest, middle, highest

FRONT = (
    "Each point is a configuration's mean over seeds. Edged: on the front of the means. Squares: reference rows with "
    "an encoder, which take part; thick on the front. Those are named, and what may be on it, where there is room."
)
JOINED = " Triangles: auto-encoding controls, each joined to its configuration."
SURE = " Crosses: 95 % intervals. Colour: probability of being on the front, by parametric draws of the means."
PROGRESS = (
    "Volume in the space of the objectives that complete trials dominate, beyond a constant predictor; every trial of "
    "the search counts with its epochs, those that were stopped too."
)
DOSE = (
    "Points: means over seeds, bars and shaded bands: 95 %; lines: reference rows. Autoencode: the same configuration, "
    "its target reconstructed from its own tokens alone."
)
FACTOR = "Line: mean over seeds, band: 95 %; dashed: the best control."
OPTIONS = (
    "Grey: a point a configuration (mean over seeds), all other options varied as well. Blue: means of at least 8 "
    "neighbours, or of all with the same value; band and bars: 95 % of that mean over configurations, within the "
    "frame. Where one option is varied at a time: every configuration with the interval of its mean."
)
IMPORTANCE = (
    "PED-ANOVA: what sets the best tenth of the configurations apart; bars: percentiles 2.5 and 97.5 over bootstrap "
    "resamples of the configurations. Random forest: how much of its out-of-bag R² is lost when an option's values are "
    "permuted; it says little where that R² is low."
)
INTERACTION = (
    "Friedman's H: share (square root) of a pair's joint effect that is more than the sum of the two; beside it the "
    "variance of that part over the variance of all predictions."
)


def write_report(summary: dict[str, Any], folder: Path) -> list[Path]:
    """Write report.html, the figures, tables.md and the tables as CSV and LaTeX; return the files.

    Args:
        summary: what summary.json holds.
        folder: of the study; reconstructions are read from its trials.
    """
    found = study_importances(summary)
    tables = report_tables(summary, found)
    pictures = [(picture, png(picture.figure)) for picture in study_pictures(summary, folder, found)]
    files = {folder / f"{picture.name}.png": data for picture, data in pictures}
    files |= {folder / "tables" / f"{table.name}.csv": render.csv_text(table).encode() for table in tables}
    files |= {folder / "tables" / f"{table.name}.tex": render.latex(table).encode() for table in tables}
    files[folder / "tables.md"] = render.markdown(tables, caption(summary)).encode()
    files[folder / "report.html"] = report_html(summary, tables, pictures).encode()
    for path, data in files.items():
        write_atomically(path, lambda temporary, data=data: temporary.write_bytes(data))
    return list(files)


def study_pictures(summary: dict[str, Any], folder: Path, found: Sequence[Importances]) -> list[Picture]:
    """Return all figures that the summary gives reason to draw.

    Args:
        summary: what summary.json holds.
        folder: of the study.
        found: importances of the options, one an objective.
    """
    pictures = []
    searched = [c for c in in_order(summary["configurations"]) if c["number"] is not None and c["seeds"]]
    space, objectives = summary["space"], list(summary["objectives"])
    competitors = competing(summary)
    if len(objectives) > 1 and competitors:
        sure = SURE if any(c["front_probability"] is not None for c in competitors) else ""
        pictures.append(
            Picture("front", "Front", FRONT + JOINED * bool(twins_of(competitors)) + sure, front_figure(summary))
        )
    if len(objectives) > 1 and searched and competitors:
        pictures.append(Picture("progress", "What was found for what was trained", PROGRESS, progress_figure(summary)))
    if len(space) == 1 and len(searched) > 1 and "low" in next(iter(space.values())):
        pictures += _range_pictures(summary, searched, next(iter(space)))
    elif space and len(searched) > 1:
        figure = option_responses(searched, space, objectives)
        pictures.append(Picture("responses", "Response to every option", OPTIONS, figure))
    rows, words = heatmap_rows(summary)
    if rows:
        title = "R² per factor and part of the features"
        pictures.append(Picture("heatmap", title, f"Means over seeds on one scale; {words}.", heatmap_figure(rows)))
    if found:
        pictures.append(Picture("importances", "Importances of the options", IMPORTANCE, importance_figure(found)))
    images = _reconstructions(summary, searched, folder)
    if images:
        text = "First views, targets and reconstructions of a configuration's first seed."
        pictures.append(Picture("reconstructions", "Reconstructions", text, reconstruction_figure(images)))
    return pictures


def _range_pictures(summary: dict[str, Any], searched: list[dict[str, Any]], option: str) -> list[Picture]:
    doses, log = [c["params"][option] for c in searched], summary["space"][option]["log"]
    given = set.intersection(*(set(c["metrics"]) for c in searched))
    shown = {metric: name for metric, name in columns_of(summary).items() if metric in given}
    panels = {name: (doses, means_and_bounds(searched, metric)) for metric, name in shown.items()}
    references = {name: _references(summary, metric) for metric, name in shown.items()}
    rows = {c["name"]: c["metrics"] for c in summary["configurations"]}
    factors, of_factors = {}, sorted(metric for metric in given if metric.startswith("r2/"))
    for metric in of_factors:
        control = rows.get(summary["best_control"][metric], {}).get(metric, {}).get("estimate")
        factors[metric.removeprefix("r2/")] = means_and_bounds(searched, metric), control
    twins = _twins(summary, option, shown)
    factor_twins = _twins(summary, option, {metric: metric.removeprefix("r2/") for metric in of_factors})
    name = option.replace(".", "_")
    made = []
    if panels:
        figure = dose_response(panels, references, twins=twins, bands=BANDS, option=option, log=log)
        made.append(Picture(f"response_{name}", f"Response to {option}", DOSE, figure))
    if factors:
        figure = factor_response(doses, factors, twins=factor_twins, option=option, log=log)
        made.append(Picture(f"factors_{name}", f"R² per factor against {option}", FACTOR, figure))
    return made


def _twins(summary: dict[str, Any], option: str, shown: Mapping[str, str]) -> dict[str, tuple[list[float], np.ndarray]]:
    """Return name of a metric -> doses and means of the auto-encoding controls, of those with their own.

    Args:
        summary: what summary.json holds.
        option: what is varied.
        shown: metric -> name.
    """
    names = twins_of(summary["configurations"])
    twins = [c for c in summary["configurations"] if c["name"] in names and option in c["params"]]
    twins.sort(key=lambda c: c["params"][option])
    found = {}
    for metric, name in shown.items():
        if having := [c for c in twins if metric in c["metrics"]]:
            found[name] = [c["params"][option] for c in having], means_and_bounds(having, metric)
    return found


def _references(summary: dict[str, Any], metric: str) -> dict[str, np.ndarray]:
    """Return reference row -> (mean, low, high) of a metric, for those that have it."""
    rows = {c["name"]: c for c in summary["configurations"] if metric in c["metrics"]}
    held = [name for name in REFERENCES if name in rows]
    return dict(zip(held, means_and_bounds([rows[name] for name in held], metric), strict=True))


def _reconstructions(summary: dict[str, Any], searched: list[dict[str, Any]], folder: Path) -> dict[str, np.ndarray]:
    """Return configuration -> images of its first seed: a few along a range, or the best by each objective."""
    places = sorted({round(i * (len(searched) - 1) / (SHOWN - 1)) for i in range(SHOWN)}) if searched else []
    shown = [searched[place]["name"] for place in places]
    if len(summary["space"]) > 1:
        chosen = summary["chosen"]["configuration"] if summary["chosen"] else None
        shown = list(dict.fromkeys(filter(None, [chosen, *map(summary["best"].get, summary["objectives"])])))
    found = {}
    for configuration in shown:
        trials = (t["trial_id"] for t in summary["trials"] if t["configuration"] == configuration)
        if images := read(folder / "trials" / next(trials) / "reconstructions.npy"):
            found[configuration] = np.load(io.BytesIO(images))
    return found


def report_html(summary: dict[str, Any], tables: Sequence[Table], pictures: Sequence[tuple[Picture, bytes]]) -> str:
    """Return the page.

    Args:
        summary: what summary.json holds.
        tables: from `report_tables`, the main one first.
        pictures: figures and their PNGs.
    """
    shown = {picture.name: page.image(picture.name, data, picture.caption) for picture, data in pictures}
    written = {table.name: page.scrolled(render.html_table(table), text=table.name == "winners") for table in tables}
    last = "gains" if "gains" in written else "results"  # the caption explains both
    notes = {last: page.note(caption(summary)), "interactions": page.note(INTERACTION)}
    sections = [(table.title, written[table.name] + notes.get(table.name, "")) for table in tables]
    drawn = [(picture.title, shown[picture.name]) for picture, _ in pictures]
    failed = [t for t in summary["trials"] if t["status"] == "FAILED"]
    if failed:
        lines = page.bullets(f"{t['configuration']}, seed {t['seed']}: {t['error']}" for t in failed)
        sections.append(("Failed trials", lines))
    about = {"study": summary["study"], "data": _listed(summary["data"]), "rule of choice": summary["rule"]}
    about |= {"concurrency": summary["concurrency"], "wall time, s": f"{summary['wall_s']:.0f}"}
    sections.append(("Environment", page.facts(about | summary["environment"])))
    sections.append(("Options", page.facts(summary["options"])))
    first = sum(name in written for name in FIRST)
    sections = [*sections[:first], *drawn, *sections[first:]]
    return page.page(summary["question"], summary["sentence"], f"Status: {summary['status']}.", sections)


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
