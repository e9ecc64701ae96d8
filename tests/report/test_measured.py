"""What the README says of the studies of methods is what their stored results hold."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

from eqssl.config import BASE_METHODS
from eqssl.evaluation.statistics import ACCURACY_MARGIN
from eqssl.study.definition import REFERENCES
from eqssl.study.tuning import best_row, usable

ROOT = Path(__file__).parents[2]
STORED = {
    "On Fashion-MNIST": "baselines_fashion_mnist",
    "On a vision transformer": "baselines_vit",
    "On rendered solids": "baselines_solids",
}
FIGURES = {"kNN": "knn", "linear": "linear", "R² mean": "r2_mean", "equivariance": "equivariance",
           "invariance (inv)": "inv/invariance"}  # fmt: skip
FACTORS = {"R²": "r2", "equivariance": "equivariance"}
HALF_A_DIGIT = 5.1e-4


@cache
def stored(study: str) -> dict:
    return json.loads((ROOT / "studies/measured" / study / "summary.json").read_text())


def summary(section: str) -> dict:
    return stored(STORED[section])


@cache
def configurations(section: str) -> dict:
    return {configuration["name"]: configuration for configuration in summary(section)["configurations"]}


def text_of(section: str) -> str:
    text = (ROOT / "README.md").read_text().partition(f"### {section}\n")[2]
    return re.split(r"^##", text, maxsplit=1, flags=re.MULTILINE)[0]


def tables(section: str) -> list[list[list[str]]]:
    """Return the section's tables of the README: rows of cells, the heading first."""
    found = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text_of(section), re.MULTILINE)]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in (t[0], *t[2:])] for t in found]


def rows(heading: str) -> list[tuple[str, list[str], list[str]]]:
    """Return section, the table's heading and a row, of all tables whose heading starts so."""
    found = [(section, table) for section in STORED for table in tables(section)]
    return [(section, table[0], row) for section, table in found for row in table[1:] if table[0][0] == heading]


def bounds_of(configuration: dict, figure: str) -> dict:
    """Return the figure's interval; without a split the invariant part is all features."""
    metrics = configuration["metrics"]
    return metrics.get(figure) or metrics[figure.removeprefix("inv/")]


def same(cell: str, bounds: dict) -> bool:
    """Return whether a cell says an estimate, or an estimate and its half width."""
    said = [float(number) for number in cell.split("±")]
    held = [bounds["estimate"], bounds["high"] - bounds["estimate"]] if len(said) > 1 else [bounds["estimate"]]
    return said == pytest.approx(held, abs=HALF_A_DIGIT)


@pytest.mark.parametrize(("section", "heading", "row"), rows(""))
def test_a_row_of_the_methods(section, heading, row):
    name, *cells = row
    configuration = configurations(section)[re.sub(r" \(.*\)|, weight .*", "", name)]
    weight = re.search(r"weight ([\d.]+)", name)
    assert not weight or any(value == pytest.approx(float(weight[1])) for value in configuration["params"].values())
    epochs = re.search(r"(\d+) epochs", name)
    assert not epochs or int(epochs[1]) == configuration["params"]["train.epochs"]
    for column, cell in zip(heading[1:], cells, strict=True):
        figure = FIGURES[column.removeprefix("Δ ")]
        if cell:
            held = configuration["gains"][figure] if column.startswith("Δ") else bounds_of(configuration, figure)
            assert same(cell, held), column


@pytest.mark.parametrize(("section", "heading", "row"), rows("gain over the better control"))
def test_a_row_of_gains_by_factor(section, heading, row):
    figure, _, name = row[0].partition(": ")
    gains = configurations(section)[name]["gains"]
    for factor, cell in zip(heading[1:], row[1:], strict=True):
        assert same(cell, gains[f"{FACTORS[figure]}/{factor}"]), factor


@pytest.mark.parametrize(("section", "heading", "row"), rows("best by"))
def test_the_winner_of_a_column(section, heading, row):
    figure, name, value, tied = row
    best = configurations(section)[summary(section)["best"][FIGURES[figure]]]
    assert name == best["name"] not in REFERENCES and same(value, bounds_of(best, FIGURES[figure]))
    told = {c["name"] for c in configurations(section).values() if _is_tied(c, FIGURES[figure])}
    assert set(filter(None, tied.split("; "))) == told - {name}


def _is_tied(configuration: dict, figure: str) -> bool:
    behind = configuration["behind"].get(figure)
    return behind is not None and behind["low"] <= 0 <= behind["high"]


@pytest.mark.parametrize("section", STORED)
def test_a_section_has_all_tables(section):
    headings = [table[0][0] for table in tables(section)]
    assert headings[:3] == ["", "gain over the better control", "best by"]
    assert {"sie, all", "sie, one", "augself", "equimod", "simclr + reconstruction"} < entrants(section)
    for figure in FACTORS:
        told = [row[0].partition(": ") for row in tables(section)[1][1:]]
        assert {name for of, _, name in told if of == figure} == entrants(section)


@pytest.mark.parametrize("section", STORED)
def test_settings_that_were_taken_for_their_accuracy_are_named(section):
    alone, tuning, last = (stored(STORED[section] + stage)["trials"] for stage in ("_alone", "_tuning", ""))
    accuracy = {t["configuration"]: t["metrics"]["knn"] for t in alone}
    params = {t["configuration"]: t["params"] for t in (*tuning, *last)}
    tuned, by_accuracy = usable(tuning), set()
    for name in entrants(section):
        metrics = {row: figures for row, figures in tuned.items() if row.rpartition(", ")[0] == name}
        floor = max(knn for row, knn in accuracy.items() if row.startswith(f"{base_of(name)},")) - ACCURACY_MARGIN
        row = best_row(metrics, floor)
        assert params[name] == params[row]
        if metrics[row]["knn"] < floor:
            by_accuracy.add(name)
    told = re.search(r"the most accurate was taken, of:\s(.*?)\.\s", text_of(section), re.DOTALL)
    assert by_accuracy == (set(re.split(r";\s", told[1].replace("\n", " "))) if told else set())


def entrants(section: str) -> set[str]:
    """Return what builds on the methods."""
    return {n for n in configurations(section) if n.partition(",")[0] not in (*BASE_METHODS, *REFERENCES)}


def base_of(entrant: str) -> str:
    base, _, added = entrant.partition(" + ")
    return base if added else {"sie": "vicreg"}.get(entrant.partition(",")[0], "simclr")
