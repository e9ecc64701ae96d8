"""What the README says of a study is what its stored results hold."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIGURES = ("knn", "linear", "r2_mean", "equivariance", "inv/invariance")
GAINS = ("knn", "r2_mean", "equivariance")


@pytest.fixture(scope="module")
def configurations():
    summary = json.loads((ROOT / "studies/measured/baselines_vit/summary.json").read_text())
    return {configuration["name"]: configuration for configuration in summary["configurations"]}


def rows() -> list[tuple[str, list[str]]]:
    """Return name and cells of the rows of the README's first table of the vision transformer."""
    section = (ROOT / "README.md").read_text().partition("### On a vision transformer")[2]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return [(re.sub(r" \(.*\)|, weight .*", "", name), values) for name, *values in cells]


@pytest.mark.parametrize(("name", "cells"), rows())
def test_a_row_of_the_readme(configurations, name, cells):
    means, gains = configurations[name]["metrics"], configurations[name]["gains"]
    for figure, cell in zip(FIGURES, cells, strict=False):
        bounds = means.get(figure) or means[figure.removeprefix("inv/")]  # without a split it is that of all features
        assert float(cell) == pytest.approx(bounds["estimate"], abs=6e-4), figure
    for figure, cell in zip(GAINS, cells[len(FIGURES) :], strict=True):
        if cell:
            gain, margin = map(float, cell.split("±"))
            bounds = gains[figure]
            assert gain == pytest.approx(bounds["estimate"], abs=6e-4)
            assert margin == pytest.approx(bounds["high"] - bounds["estimate"], abs=6e-4)
