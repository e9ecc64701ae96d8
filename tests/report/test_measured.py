"""The tables and sentences of docs/findings.md are those of the stored studies."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
from scipy.stats import false_discovery_control, ttest_rel

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "studies" / "measured"
STUDIES = sorted(folder.name for folder in MEASURED.iterdir() if folder.is_dir())
COLUMNS = {
    "linear": "linear",
    "accuracy": "linear",
    "kNN": "knn",
    "R² mean": "r2_mean",
    "R² mean (MLP)": "mlp_r2_mean",
    "pose R²": "r2/pose",
    "pose R² (MLP)": "mlp_r2/pose",
    "angle R²": "r2/angle_deg",
    "dx R²": "r2/dx",
    "dense R²": "dense/r2",
    "equivariance": "equivariance",
    "invariance (inv)": "inv/invariance",
    "use of the other view": "recon/use_other",
}
HALF_A_DIGIT = 5.1e-4


@cache
def stored(study: str) -> dict:
    return json.loads((MEASURED / study / "summary.json").read_text())


def text_of(study: str) -> str:
    """Return the text of docs/findings.md from the study's marker to the next heading."""
    text = (ROOT / "docs" / "findings.md").read_text()
    assert f"<!-- {study} -->" in text, f"docs/findings.md has no table of {study}"
    return re.split(r"^#|^<!--", text.partition(f"<!-- {study} -->")[2], maxsplit=1, flags=re.MULTILINE)[0]


def rows_of(study: str) -> list[list[str]]:
    """Return the rows of the study's first table, the heading first."""
    (block, *_) = re.findall(r"(?:^\|.*\n)+", text_of(study), re.MULTILINE)
    heading, _, *rows = block.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (heading, *rows)]


@pytest.mark.parametrize("study", STUDIES)
def test_every_number_of_a_table_is_the_stored_one(study):
    heading, *rows = rows_of(study)
    configurations = {c["name"]: c for c in stored(study)["configurations"]}
    assert {row[0] for row in rows} == configurations.keys() - {"constant"}
    for row in rows:
        of = configurations[row[0]]
        assert row[1] == str(len(of["seeds"]))
        for title, cell in zip(heading[2:], row[2:], strict=True):
            bounds = of["metrics"].get(COLUMNS[title])
            if bounds is None:
                assert cell == ""
                continue
            estimate, _, half = cell.partition(" ± ")
            assert float(estimate) == pytest.approx(bounds["estimate"], abs=HALF_A_DIGIT)
            if bounds["low"] is not None:
                assert float(half) == pytest.approx((bounds["high"] - bounds["low"]) / 2, abs=HALF_A_DIGIT)


@pytest.mark.parametrize("study", STUDIES)
def test_the_sentence_is_the_stored_one(study):
    assert stored(study)["sentence"] in " ".join(text_of(study).split())


@pytest.mark.parametrize("study", STUDIES)
def test_every_trial_is_stored_and_came_to_its_end(study):
    trials = stored(study)["trials"]
    assert {trial["status"] for trial in trials} == {"COMPLETE"}
    assert len({trial["trial_id"] for trial in trials}) == len(trials) > 20


def controls_of(row: str) -> list[str]:
    return next(c["controls"] for c in stored("baselines")["configurations"] if c["name"] == row)


def paired(row: str, control: str, metric: str) -> tuple[float, float, float]:
    """Return mean, 95 % half width and p of the paired difference of two rows of `baselines` over seeds."""

    def values(name: str) -> list[float]:
        # Without a split, all features are the invariant part.
        of = {t["seed"]: t["metrics"] for t in stored("baselines")["trials"] if t["configuration"] == name}
        return [of[seed].get(metric, of[seed].get(metric.removeprefix("inv/"))) for seed in sorted(of)]

    test = ttest_rel(values(row), values(control))
    interval = test.confidence_interval(0.95)
    return (interval.low + interval.high) / 2, (interval.high - interval.low) / 2, test.pvalue


def test_the_differences_of_the_methods_are_those_of_the_trials():
    heading, *rows = rows_of("differences")
    pairs = [tuple(row[0].split(" - ")) for row in rows]
    reconstructions = [
        c["name"] for c in stored("baselines")["configurations"] if c["name"].endswith("+ reconstruction")
    ]
    assert {pair for pair in pairs if pair[0] in reconstructions} == {
        (row, control) for row in reconstructions for control in controls_of(row)
    }
    tests = {(pair, name): paired(*pair, COLUMNS[name]) for pair in pairs for name in heading[1:]}
    survive = false_discovery_control([p for _, _, p in tests.values()]) < 0.05
    significant = dict(zip(tests, survive, strict=True))
    for pair, row in zip(pairs, rows, strict=True):
        for name, cell in zip(heading[1:], row[1:], strict=True):
            estimate, _, half = cell.strip("*").partition(" ± ")
            assert float(estimate) == pytest.approx(tests[pair, name][0], abs=HALF_A_DIGIT)
            assert float(half) == pytest.approx(tests[pair, name][1], abs=HALF_A_DIGIT)
            assert cell.startswith("**") == significant[pair, name]
