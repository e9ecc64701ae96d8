"""Importances against functions whose effects are known."""

import numpy as np
import pytest

from eqssl.report.importance import (
    bootstrapped_ped_anova,
    encoded,
    fitted_forest,
    h_statistics,
    importances,
    oob_predictions,
    permutation_importance,
    study_importances,
)
from eqssl.study.results import summarise
from tests.report import made_up
from tests.report.conftest import STUDY, weight_records

SPACE = {
    "large": {"low": 0.1, "high": 10.0, "log": True},
    "small": {"values": ["a", "b", "c"]},
    "none": {"low": 0.0, "high": 1.0, "log": False},
}


def points(count):
    rng = np.random.default_rng(0)
    params = [
        {"large": 10 ** rng.uniform(-1, 1), "small": "abc"[rng.integers(3)], "none": rng.uniform()}
        for _ in range(count)
    ]
    values = [2 * np.log10(p["large"]) + (p["small"] == "b") for p in params]
    return params, np.array(values) + rng.normal(0, 0.05, count)


def test_both_estimators_find_the_order_and_what_does_nothing():
    found = importances("knn", *points(120), SPACE, maximize=True)
    assert found.forest["large"] > found.forest["small"] > 0.1
    assert abs(found.forest["none"]) < 0.02 and found.oob_r2 > 0.9
    share, low, high = found.ped_anova["large"]
    assert low <= share <= high and share == max(estimate[0] for estimate in found.ped_anova.values())
    assert found.ped_anova["none"][0] < 0.1
    assert sum(estimate[0] for estimate in found.ped_anova.values()) == pytest.approx(1)


def test_ped_anova_asks_for_the_best_so_the_direction_matters():
    params, _ = points(200)
    # Above the median only the first option tells, below it only the third.
    values = [np.log10(p["large"]) if p["large"] > 1 else 5 * (p["none"] - 1) for p in params]
    best = bootstrapped_ped_anova(params, values, SPACE, maximize=True, resamples=20)
    worst = bootstrapped_ped_anova(params, values, SPACE, maximize=False, resamples=20)
    assert best["large"][0] > 0.8 and worst["none"][0] > best["none"][0] + 0.2


def test_more_configurations_narrow_the_interval():
    def width(count):
        params, values = points(count)
        _, low, high = bootstrapped_ped_anova(params, values, SPACE, maximize=True, resamples=50)["large"]
        return high - low

    assert width(300) < width(20)


def test_a_product_is_found_as_an_interaction_and_a_sum_is_none():
    rng = np.random.default_rng(0)
    inputs = rng.uniform(-1, 1, (300, 3))
    product, _ = fitted_forest(inputs, inputs[:, 0] * inputs[:, 1])
    pair, h, share = h_statistics(product, inputs, [0, 1, 2])[0]
    assert pair == (0, 1) and h > 0.8 and share > 0.3
    total, _ = fitted_forest(inputs, inputs[:, 0] + inputs[:, 1])
    assert h_statistics(total, inputs, [0, 1, 2])[0][2] < 0.02


def test_out_of_bag_says_nothing_where_there_is_nothing():
    rng = np.random.default_rng(0)
    inputs, noise = rng.uniform(size=(100, 2)), rng.normal(size=100)
    forest, oob = fitted_forest(inputs, noise)
    assert 0.3 < oob.mean() < 0.45
    error = np.mean((noise - oob_predictions(forest, inputs, oob)) ** 2)
    assert error > 0.9 * noise.var() > np.mean((noise - forest.predict(inputs)) ** 2)
    assert permutation_importance(forest, inputs, noise, oob).max() < 0.15


def test_an_option_that_some_lack_is_judged_by_those_that_have_it():
    params, values = points(120)
    for point, rest in zip(params, points(120)[0], strict=True):
        if rest["none"] < 0.5:
            del point["large"]
    assert encoded(params, SPACE)[:, 0].min() == -1e3
    values = np.array([2 * np.log10(p["large"]) if "large" in p else 0.0 for p in params])
    found = importances("knn", params, values, SPACE, maximize=True)
    assert max(found.forest, key=found.forest.get) == "large"
    assert found.ped_anova["large"][0] == max(estimate[0] for estimate in found.ped_anova.values())


def test_studies_of_one_option_or_few_configurations_have_no_importances(joint_summary):
    assert study_importances(summarise(STUDY, weight_records(), made_up.ABOUT)) == []
    few = summarise(made_up.STUDY, made_up.records(40), made_up.ABOUT)
    assert study_importances(few) == []
    found = {i.objective: i for i in study_importances(joint_summary)}
    assert set(found) == {"linear", "r2_mean"} and found["linear"].configurations >= 10
    assert set(found["r2_mean"].interactions[0].options) == {"recon.weight", "recon.view"}
