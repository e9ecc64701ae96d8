"""Variances by the sample of held-out units, from the contributions of units to a metric."""

import numpy as np
import pytest

from eqssl.study.contributions import SamplingVariances, equally_weighted

IDS = np.arange(200)
TRIALS = {"base": {0: "b0", 1: "b1"}, "weight 1": {0: "w0", 1: "w1", 2: "w2"}, "pixels": {0: "p0"}}


@pytest.fixture
def made():
    """Return variances, the trials that were loaded, and the values of each configuration."""
    rng = np.random.default_rng(0)
    of_units = {name: rng.normal(size=200) for name in "bwp"}
    values = {trial: of_units[trial[0]] for of in TRIALS.values() for trial in of.values()}
    loaded = []

    def load(trial_id):
        loaded.append(trial_id)
        metrics = {"knn": (IDS, values[trial_id])}
        return metrics | ({"r2_mean": (IDS, values[trial_id])} if trial_id[0] == "w" else {})

    return SamplingVariances(load, TRIALS), loaded, of_units


def test_the_variance_of_a_mean_is_that_of_its_units(made):
    variances, _, of_units = made
    assert variances.of("knn", "base") == pytest.approx(of_units["b"].var(ddof=1) / 200)
    assert np.isnan(variances.of("knn", "missing")) and variances.metrics("missing") == []


def test_the_variance_of_a_difference_is_paired_over_common_seeds_and_metrics(made):
    variances, loaded, of_units = made
    assert not variances.known
    found = variances.of("knn", "weight 1", "base")
    assert found == pytest.approx((of_units["w"] - of_units["b"]).var(ddof=1) / 200)
    assert np.isnan(variances.of("r2_mean", "weight 1", "base")) and set(variances.known) == {"knn", "r2_mean"}
    assert variances.of("knn", "weight 1", "weight 1") == 0
    assert sorted(loaded) == sorted({*TRIALS["base"].values(), *TRIALS["weight 1"].values()})  # each once


def test_a_row_without_an_encoder_is_the_same_for_every_seed(made):
    variances, _, of_units = made
    expected = (of_units["w"] - of_units["p"]).var(ddof=1) / 200
    assert variances.of("knn", "weight 1", "pixels") == pytest.approx(expected)


def test_units_that_only_one_has_are_left_out():
    both = {"a": {"knn": (IDS, np.arange(200.0))}, "b": {"knn": (IDS[:49:-1], np.arange(199.0, 49.0, -1))}}
    for first, second in ("ab", "ba"):
        variances = SamplingVariances(both.__getitem__, {"a": {0: "a"}, "b": {0: "b"}})
        assert variances.of("knn", first, second) == 0


def test_weights_are_those_of_a_ratio_of_sums():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=100), rng.uniform(1, 3, 100)
    found = equally_weighted(values, weights)
    mean = np.average(values, weights=weights)
    assert found.mean() == pytest.approx(mean, abs=1e-6)
    delta = (weights**2 * (values - mean) ** 2).sum() / weights.sum() ** 2
    assert found.var() / 100 == pytest.approx(delta, rel=1e-4)
