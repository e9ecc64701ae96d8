"""Hypervolume against epochs, by hand."""

import numpy as np
import pytest

from eqssl.report import progress
from eqssl.report.progress import hypervolume, hypervolume_curve, progress_picture


def trial(number, knn, error, status="COMPLETE", epochs=9):
    metrics = {} if status == "FAILED" else {"knn": knn, "geodesic_deg": error}
    return {"number": number, "seed": 0, "metrics": metrics, "status": status, "epochs": epochs}


def test_only_complete_trials_add_volume_and_all_add_epochs():
    floor = {"knn": {"estimate": 0.1}, "geodesic_deg": {"estimate": 50.0}}
    trials = [
        trial(1, 0.3, 40.0),
        trial(0, 0.2, 30.0),
        trial(None, 0.9, 0.0),
        trial(2, 0.9, 10.0, "STOPPED", 1),
        trial(3, 0, 0, "FAILED", 2),
        trial(4, 0.05, 10.0),
    ]
    summary = {
        "objectives": {"knn": "maximize", "geodesic_deg": "minimize"},
        "trials": trials,
        "configurations": [{"name": "constant", "metrics": floor}],
    }
    epochs, volumes = hypervolume_curve(summary)
    assert epochs == [9, 18, 19, 21, 30]
    first, both = 0.1 * 20, 0.1 * 20 + 0.1 * 10  # the second is better in accuracy and worse in error
    assert [round(v, 9) for v in volumes] == [first, both, both, both, both]
    summary["configurations"] = []
    assert hypervolume_curve(summary)[1][0] == pytest.approx(0.15 * 10)  # beyond the worst of both


def test_a_search_without_progress_has_no_figure():
    trials = [trial(number, 0.3, 40.0) for number in range(9)]
    summary = {"objectives": {"knn": "maximize"}, "trials": trials, "configurations": []}
    assert progress_picture(summary) is None
    assert progress_picture(summary | {"trials": [*trials, trial(9, 0.4, 0), trial(10, 0.5, 0)]}) is not None


def test_trials_that_add_no_volume_cost_none(monkeypatch):
    measured = []
    monkeypatch.setattr(progress, "hypervolume", lambda *given: measured.append(given) or hypervolume(*given))
    values = np.random.default_rng(0).uniform(size=(3000, 2))
    trials = [trial(number, *row) for number, row in enumerate(values.tolist())]
    objectives = {"knn": "maximize", "geodesic_deg": "minimize"}
    _, volumes = hypervolume_curve({"objectives": objectives, "trials": trials, "configurations": []})
    assert sum(len(reference) == 2 for _, reference in measured) < 100  # the others are slices of these volumes
    assert np.all(np.diff(volumes) >= 0)


def test_a_race_is_followed_stage_by_stage():
    seeds = {0: [0, 1, 2, 3, 4], 1: [0], 2: [5, 6, 7]}  # the last was suggested a second time
    trials = [{**trial(n, 0.2, 0, epochs=10 * n + s), "seed": s} for n, of in seeds.items() for s in of]
    summary = {"objectives": {"knn": "maximize"}, "trials": trials, "configurations": [], "stages": [1, 3, 5]}
    epochs, _ = hypervolume_curve(summary)
    assert np.diff([0, *epochs]).tolist() == [0, 10, 25, 1, 2, 26, 27, 3, 4]
    epochs, _ = hypervolume_curve({**summary, "stages": [5]})
    assert np.diff([0, *epochs]).tolist() == [0, 1, 2, 3, 4, 10, 25, 26, 27]


def test_the_volume_of_the_front_is_that_of_all():
    names = ("knn", "r2_mean", "equivariance")
    values = np.random.default_rng(0).integers(0, 6, (40, 3)) / 5  # with ties
    trials = [
        {"number": n, "seed": 0, "status": "COMPLETE", "epochs": 1, "metrics": dict(zip(names, row, strict=True))}
        for n, row in enumerate(values.tolist())
    ]
    floor = {"name": "constant", "metrics": {name: {"estimate": 0.1} for name in names}}
    summary = {"objectives": dict.fromkeys(names, "maximize"), "trials": trials, "configurations": [floor]}
    expected = [hypervolume(values[: n + 1], [0.1] * 3) for n in range(40)]
    assert hypervolume_curve(summary)[1] == pytest.approx(expected)
