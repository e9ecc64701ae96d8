"""Intervals, power, Pareto front and verdict on tables whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from eqssl.evaluation.statistics import (
    front_probability,
    mean_intervals,
    minimum_detectable_difference,
    on_front,
    paired_difference,
    verdict,
)


def table(rng, means, seeds, seed_std=0.0, std=1.0):
    noise = rng.normal(size=(len(means), seeds)) * std + rng.normal(size=seeds) * seed_std
    return np.asarray(means)[:, None] + noise


def test_mean_interval_by_hand():
    low, high = mean_intervals([[1.0, 2.0, 3.0], [10.0, 14.0, 12.0]])
    half = stats.t.ppf(0.975, 4) * np.sqrt((2 + 8) / 4 / 3)
    assert (low.estimate, high.estimate) == (2, 12)
    assert high.high - high.estimate == pytest.approx(half) == low.estimate - low.low


def test_paired_difference_of_two_rows_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    values = table(rng, [0, 1], 6, seed_std=5)
    theirs = stats.ttest_rel(values[1], values[0]).confidence_interval(0.95)
    ours = paired_difference(values, 1, 0)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_means_cover_the_truth_19_times_in_20():
    rng = np.random.default_rng(0)
    inside = [
        interval.low < truth < interval.high
        for _ in range(500)
        for truth, interval in zip((0, 1, 2, 3), mean_intervals(table(rng, [0, 1, 2, 3], 3)), strict=True)
    ]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_differences_cover_the_truth_and_seed_effects_cancel():
    rng = np.random.default_rng(1)
    intervals = [paired_difference(table(rng, [0, 1, 2], 3, seed_std=20), 2, 0) for _ in range(1000)]
    assert np.mean([i.low < 2 < i.high for i in intervals]) == pytest.approx(0.95, abs=0.02)
    expected = stats.t.ppf(0.975, 4) * np.sqrt(2 / 3) * stats.chi.mean(4) / 2
    assert np.mean([i.high - i.estimate for i in intervals]) == pytest.approx(expected, rel=0.05)


def test_a_missing_trial_leaves_the_interval_right():
    rng = np.random.default_rng(2)
    inside = []
    for _ in range(1000):
        values = table(rng, [0, 1, 2], 4, seed_std=5)
        values[0, 1] = values[2, 3] = np.nan
        interval = paired_difference(values, 2, 0)
        inside.append(interval.low < 2 < interval.high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("values", [[[1.0], [2.0]], [[1.0, 2.0], [np.nan, np.nan]]])
def test_too_few_trials_are_refused(values):
    with pytest.raises(ValueError, match="no spread to judge by"):
        paired_difference(values, 1, 0)


@pytest.mark.parametrize("shape", [(2, 2), (4, 3), (8, 5)])
def test_the_minimum_detectable_difference_is_found_four_times_in_five(shape):
    rng = np.random.default_rng(3)
    configurations, seeds = shape
    unit = table(rng, np.zeros(configurations), seeds)
    noise = unit - unit.mean(0) - unit.mean(1, keepdims=True) + unit.mean()
    std = np.sqrt((noise**2).sum() / ((configurations - 1) * (seeds - 1)))
    means = np.zeros(configurations)
    means[0] = minimum_detectable_difference(unit) / std
    found = [paired_difference(table(rng, means, seeds), 0, 1).above(0) for _ in range(1000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)


def test_the_minimum_detectable_difference_is_of_the_seeds_that_configurations_have():
    """In a race most have one seed; of a repeated suggestion there are more than of any other."""
    values = table(np.random.default_rng(3), np.zeros(6), 4)
    repeated = np.full((7, 8), np.nan)
    repeated[:6, :4] = values
    repeated[6, 4:] = values[0]  # seeds of its own, so that nothing is learnt from them
    assert minimum_detectable_difference(repeated) == pytest.approx(minimum_detectable_difference(values))


def test_front_by_hand():
    points = [[1, 1], [2, 0], [0, 2], [1, 0], [2, 0]]
    assert on_front(points).tolist() == [True, True, True, False, True]


def test_front_probability():
    rng = np.random.default_rng(4)
    means = np.array([[0, 10], [10, 0], [-10, -10], [5, 5]])
    certain = front_probability(means[:, None] + rng.normal(size=(4, 3, 2)))
    assert certain == pytest.approx([1, 1, 0, 1], abs=0.01)
    # Two configurations with the same means in one objective: each is the better one half of the time.
    noise = rng.normal(size=(1, 4, 1))
    noise -= noise.mean()
    equal = front_probability(np.concatenate([noise, -noise]))
    assert equal == pytest.approx([0.5, 0.5], abs=0.03)


def test_front_probability_leaves_out_a_trial_that_misses_one_objective():
    values = np.random.default_rng(5).normal(size=(3, 4, 2))
    one, both = values.copy(), values.copy()
    one[1, 2, 0] = np.nan
    both[1, 2] = np.nan
    np.testing.assert_array_equal(front_probability(one), front_probability(both))


def figures(accuracy_loss):
    rng = np.random.default_rng(6)
    rows = {
        "r2_mean": [0.4, 0.5, 0.6],
        "equivariance": [0.1, 0.1, 0.2],
        "accuracy": [0.8, 0.7, 0.8 - accuracy_loss],
        "inv/invariance": [0.9, 0.5, 0.895],
    }
    return {name: table(rng, means, 5, std=0.001) for name, means in rows.items()}


def test_verdict_is_over_the_better_control_and_within_the_margins():
    found = verdict(figures(accuracy_loss=0.005), candidate=2, controls=[0, 1])
    assert found.holds
    assert found.differences["r2_mean"].estimate == pytest.approx(0.1, abs=0.003)
    assert found.differences["accuracy"].estimate == pytest.approx(-0.005, abs=0.003)
    lost = verdict(figures(accuracy_loss=0.0102), candidate=2, controls=[0, 1])
    assert not lost.holds and lost.differences["r2_mean"].above(0)
