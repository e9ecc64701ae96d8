"""Importances against functions whose effects are known."""

import numpy as np
import pytest
from optuna.storages import InMemoryStorage
from sklearn.ensemble import RandomForestRegressor

from eqssl.report.importance import importances, out_of_bag_r2, ped_anova, study_importances
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
    found = importances(*points(120), SPACE, maximize=True)
    lost = found["permutation"]
    assert lost["large"] > lost["small"] > 0.1
    assert abs(lost["none"]) < 0.02 and (found["oob_r2"] > 0.9).all()
    share, low, high = found.loc["large", ["share", "low", "high"]]
    assert low <= share <= high and share == found["share"].max()
    assert found.loc["none", "share"] < 0.1
    assert found["share"].sum() == pytest.approx(1)


def test_ped_anova_asks_for_the_best_so_the_direction_matters():
    params, _ = points(200)
    # Above the median only the first option tells, below it only the third.
    values = [np.log10(p["large"]) if p["large"] > 1 else 5 * (p["none"] - 1) for p in params]
    best = ped_anova(params, values, SPACE, maximize=True, resamples=20)["share"]
    worst = ped_anova(params, values, SPACE, maximize=False, resamples=20)["share"]
    assert best["large"] > 0.8 and worst["none"] > best["none"] + 0.2


def test_more_configurations_narrow_the_interval():
    def width(count):
        params, values = points(count)
        found = ped_anova(params, values, SPACE, maximize=True, resamples=50).loc["large"]
        return found["high"] - found["low"]

    assert width(300) < width(20)


def test_no_resample_is_copied_into_a_storage(monkeypatch):
    monkeypatch.setattr(InMemoryStorage, "create_new_trial", None)
    assert ped_anova(*points(50), SPACE, maximize=True, resamples=2)["share"].sum() == pytest.approx(1)


def test_out_of_bag_says_nothing_where_there_is_nothing():
    rng = np.random.default_rng(0)
    params = [{"a": a, "b": b} for a, b in rng.uniform(size=(100, 2))]
    space = {option: {"low": 0.0, "high": 1.0, "log": False} for option in "ab"}
    noise = rng.normal(size=100)
    found = importances(params, noise, space, maximize=True)
    assert (found["oob_r2"] < 0.1).all() and found["permutation"].max() < 0.15
    inputs = np.array([list(p.values()) for p in params])
    forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=0).fit(inputs, noise)
    assert out_of_bag_r2(forest, inputs, noise) == found["oob_r2"].iloc[0] < forest.score(inputs, noise)


def test_out_of_bag_r2_is_that_of_scikit_learn():
    params, values = points(80)
    inputs = np.array([[np.log10(p["large"]), p["none"]] for p in params])
    forest = RandomForestRegressor(200, oob_score=True, random_state=0).fit(inputs, values)
    assert out_of_bag_r2(forest, inputs, values) == pytest.approx(forest.oob_score_)


def test_an_option_that_some_lack_is_judged_by_those_that_have_it():
    params, values = points(120)
    for point, rest in zip(params, points(120)[0], strict=True):
        if rest["none"] < 0.5:
            del point["large"]
        if rest["none"] > 0.9:
            del point["small"]
    values = np.array([2 * np.log10(p["large"]) if "large" in p else 0.0 for p in params])
    found = importances(params, values, SPACE, maximize=True)
    assert found["permutation"].idxmax() == found["share"].idxmax() == "large"


def test_studies_of_one_option_or_few_configurations_have_no_importances(joint_summary):
    assert study_importances(summarise(STUDY, weight_records(), made_up.ABOUT)).empty
    few = summarise(made_up.STUDY, made_up.records(40), made_up.ABOUT)
    assert study_importances(few).empty
    found = study_importances(joint_summary)
    assert found["objective"].unique().tolist() == ["linear", "r2_mean"]
    strongest = found[found["objective"] == "r2_mean"]["permutation"].nlargest(2)
    assert list(strongest.index) == ["recon.weight", "recon.view"]
