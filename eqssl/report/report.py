"""The report of a study, from its summary.json alone: figures as PNG and one self-contained report.html."""

import base64
import html
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eqssl.report.figures import dose_response, factor_response, reconstruction_figure
from eqssl.report.tables import COLUMNS, caption, in_order, table_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = ("base", "split-0", "pixels", "random", "supervised", "recon-only")
BANDS = REFERENCES[:2]
SHOWN = 3  # configurations whose reconstructions are shown: lowest, middle, highest

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; } img { max-width: 100%; } dt { font-weight: 600; }"""


def write_report(summary: dict[str, Any], folder: Path) -> list[Path]:
    """Write the figures and report.html of a study, and return the files.

    Args:
        summary: what summary.json holds.
        folder: of the study; reconstructions are read from its trials.
    """
    from eqssl.files import write_atomically

    pictures = {name: _png(figure) for name, figure in study_figures(summary, folder).items()}
    files = {folder / f"{name}.png": data for name, data in pictures.items()}
    files[folder / "report.html"] = report_html(summary, pictures).encode()
    for path, data in files.items():
        write_atomically(path, lambda temporary, data=data: temporary.write_bytes(data))
    return list(files)


def study_figures(summary: dict[str, Any], folder: Path) -> dict[str, "Figure"]:
    """Return name -> figure of all that the summary gives reason to draw."""
    figures = {}
    searched = [c for c in in_order(summary["configurations"]) if c["number"] is not None and c["seeds"]]
    for option, values in summary["space"].items():
        if "low" in values and len(searched) > 1:
            figures |= _response_figures(summary, searched, option, values["log"])
    images = _reconstructions(summary, searched, folder)
    if images:
        figures["reconstructions"] = reconstruction_figure(images)
    return figures


def _response_figures(
    summary: dict[str, Any], searched: list[dict[str, Any]], option: str, log: bool
) -> dict[str, "Figure"]:
    doses = [c["params"][option] for c in searched]
    rows = {c["name"]: c["metrics"] for c in summary["configurations"]}
    shown = [figure for figure in COLUMNS if all(figure in c["metrics"] for c in searched)]
    panels = {COLUMNS[f]: (doses, np.array([_numbers(c["metrics"][f]) for c in searched])) for f in shown}
    references = {COLUMNS[f]: {r: _numbers(rows[r][f]) for r in REFERENCES if f in rows.get(r, {})} for f in shown}
    factors = {}
    for figure in sorted(f for f in searched[0]["metrics"] if f.startswith("r2/")):
        control = rows.get(summary["better_control"][figure], {}).get(figure, {}).get("estimate")
        factors[figure.removeprefix("r2/")] = np.array([_numbers(c["metrics"][figure]) for c in searched]), control
    name = option.replace(".", "_")
    made = {}
    if panels:
        made[f"response_{name}"] = dose_response(panels, references, bands=BANDS, option=option, log=log)
    if factors:
        made[f"factors_{name}"] = factor_response(doses, factors, option=option, log=log)
    return made


def _reconstructions(summary: dict[str, Any], searched: list[dict[str, Any]], folder: Path) -> dict[str, np.ndarray]:
    """Return configuration -> images of its first seed, for a few configurations along the space."""
    places = sorted({round(i * (len(searched) - 1) / (SHOWN - 1)) for i in range(SHOWN)}) if searched else []
    found = {}
    for configuration in (searched[place]["name"] for place in places):
        trials = (t["trial_id"] for t in summary["trials"] if t["configuration"] == configuration)
        path = folder / "trials" / next(trials) / "reconstructions.npy"
        if path.exists():
            found[configuration] = np.load(path)
    return found


def _numbers(bounds: dict[str, float | None]) -> tuple[float, float, float]:
    return tuple(math.nan if bounds[key] is None else bounds[key] for key in ("estimate", "low", "high"))


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def report_html(summary: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """Return the page, with everything it shows inside it.

    Args:
        summary: what summary.json holds.
        pictures: name -> PNG.
    """
    head, rows = table_rows(summary)
    table = _row(head, "th") + "".join(_row(row, "td") for row in rows)
    images = "".join(
        f'<h2>{name}</h2><img alt="{name}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        for name, data in pictures.items()
    )
    failed = [t for t in summary["trials"] if t["status"] == "FAILED"]
    lines = [f"{trial['configuration']}, seed {trial['seed']}: {trial['error']}" for trial in failed]
    failures = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    facts = {"data": summary["data"], "rule of choice": summary["rule"], "concurrency": summary["concurrency"]}
    facts |= {"wall time, s": f"{summary['wall_s']:.0f}", "environment": summary["environment"]}
    about = "".join(f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items())
    title = html.escape(summary["question"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"<h1>{title}</h1><table>{table}</table><p>{html.escape(caption(summary))}</p>{images}"
        + (f"<h2>failed trials</h2><ul>{failures}</ul>" if failures else "")
        + f"<h2>about</h2><dl>{about}</dl></html>\n"
    )


def _row(cells: list[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
