"""Coverage by simulation, power, Pareto front and verdict on tables whose truth is known."""

import time

import numpy as np
import pytest
from scipy import special, stats

from eqssl import stats as statistics
from eqssl.stats import (
    Estimate,
    difference_estimates,
    front_probability,
    mean_estimates,
    minimum_detectable_difference,
    on_front,
    power,
    sampling_variance,
    significant,
    verdict,
)
from eqssl.study.contributions import equally_weighted

CONFIGURATIONS, TABLES = 10, 300
PAIRS = [(row, (row + 1) % CONFIGURATIONS) for row in range(CONFIGURATIONS)]


def table(rng, means, seeds, seed_std=0.0, std=1.0):
    means = np.asarray(means, dtype=float)
    noise = rng.normal(size=(len(means), seeds)) * np.broadcast_to(std, len(means))[:, None]
    return means[:, None] + noise + rng.normal(size=seeds) * seed_std


def spread(rng, kind):
    """Draw the standard deviations of a table's configurations."""
    if kind == "equal":
        return np.ones(CONFIGURATIONS)
    if kind == "one noisy":
        return np.where(np.arange(CONFIGURATIONS) == rng.integers(CONFIGURATIONS), 10.0, 1.0)
    return np.sqrt(4 / rng.chisquare(4, CONFIGURATIONS))


def covered(estimates, truth=0.0):
    values, errors, dof = np.array([(e.value, e.error, e.dof) for e in estimates]).T
    return np.abs(values - truth) < errors * special.stdtrit(dof, 0.975)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("kind", ["equal", "inverse chi-square", "one noisy"])
def test_differences_cover_the_truth(kind, seeds):
    rng = np.random.default_rng(10 * seeds)
    average, of_noisy = [], []
    for _ in range(TABLES):
        std = spread(rng, kind)
        inside = covered(difference_estimates(table(rng, np.zeros(CONFIGURATIONS), seeds, 20, std), PAIRS))
        average.append(inside.mean())
        of_noisy.extend(inside[[max(std[row], std[other]) == 10 for row, other in PAIRS]])
    assert 0.935 < np.mean(average) < 0.975  # 94 to 97 %, with .005 for the simulation's own noise
    if kind == "one noisy":
        assert np.mean(of_noisy) > {2: 0.75, 3: 0.83, 5: 0.9}[seeds]


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("kind", ["equal", "inverse chi-square", "one noisy"])
def test_means_cover_the_truth_with_and_without_a_seed_effect(kind, seeds):
    rng = np.random.default_rng(seeds)
    for seed_std in (0, 1):
        average = [
            covered(mean_estimates(table(rng, np.zeros(CONFIGURATIONS), seeds, seed_std, spread(rng, kind)))).mean()
            for _ in range(TABLES)
        ]
        assert 0.935 < np.mean(average) < 0.98


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_differences_cover_the_truth_with_small_held_out_sets(seeds):
    rng = np.random.default_rng(seeds)
    average, without = [], []
    for _ in range(TABLES // 2):
        # Effects of a unit, of a unit on a configuration, and on a trial; the first cancels, the last is seeds' noise.
        units = 10 * rng.normal(size=300) + 15 * rng.normal(size=(CONFIGURATIONS, 1, 300))
        values = table(rng, np.zeros(CONFIGURATIONS), seeds, 1)[..., None] + units
        values = values + 8 * rng.normal(size=(CONFIGURATIONS, seeds, 300))
        sampling = [sampling_variance(values[row] - values[other]) for row, other in PAIRS]
        average.append(covered(difference_estimates(values.mean(2), PAIRS, sampling)).mean())
        without.append(covered(difference_estimates(values.mean(2), PAIRS)).mean())
    assert 0.935 < np.mean(average) < 0.975
    assert np.mean(without) < np.mean(average) - 0.03


def test_missing_trials_leave_the_intervals_right():
    rng = np.random.default_rng(2)
    inside = []
    for _ in range(TABLES):
        values = table(rng, np.zeros(CONFIGURATIONS), 4, 5, spread(rng, "inverse chi-square"))
        values[0, 1] = values[2, 3] = values[5, 2] = values[7, 1:] = np.nan  # the last has a single trial
        inside.append(covered(difference_estimates(values, PAIRS)).mean())
    assert 0.935 < np.mean(inside) < 0.975


def test_a_quiet_comparison_keeps_its_width_beside_a_noisy_configuration():
    rng = np.random.default_rng(3)
    errors = [
        [e.error for e in difference_estimates(table(rng, np.zeros(6), 5, 3, [1, 1, 1, 1, 1, 10]), [(0, 1), (5, 1)])]
        for _ in range(200)
    ]
    quiet, noisy = np.median(errors, axis=0)
    assert quiet == pytest.approx(np.sqrt(2 / 5), rel=0.3)
    assert noisy == pytest.approx(np.sqrt(101 / 5), rel=0.3)


def test_difference_of_two_configurations_is_the_paired_t_test():
    values = table(np.random.default_rng(0), [0, 1], 6, seed_std=5)
    (ours,) = difference_estimates(values, [(1, 0)])
    theirs = stats.ttest_rel(values[1], values[0])
    interval = theirs.confidence_interval(0.95)
    assert ours.bounds() == pytest.approx((interval.low, interval.high))
    assert ours.p_value() == pytest.approx(theirs.pvalue)


def test_mean_of_one_configuration_is_the_t_test():
    (ours,) = mean_estimates([[1.0, 2.0, 4.0, np.nan]])
    theirs = stats.ttest_1samp([1, 2, 4], 0).confidence_interval(0.9)
    assert ours.bounds(0.9) == pytest.approx((theirs.low, theirs.high))


def test_prior_is_that_of_the_variances():
    """Known d0 and variance, from many configurations; equal variances have infinite d0."""
    rng = np.random.default_rng(4)
    of_five_seeds = 9 * 4 / rng.chisquare(4, 20000) * rng.chisquare(4, 20000) / 4
    prior = statistics._fit_prior(of_five_seeds, np.full(20000, 4), 80000)
    assert (prior.dof, prior.variance) == (pytest.approx(4, rel=0.1), pytest.approx(9, rel=0.05))
    of_equal = rng.chisquare(3, 1000) / 3
    found = [statistics._fit_prior(of_equal[start : start + 5], np.full(5, 3), 15).dof for start in range(0, 1000, 5)]
    assert np.mean(np.isinf(found)) > 0.4


def test_values_without_any_noise():
    constant = [[1.0, 1.0], [1.0, 1.0], [2.0, 2.0]]
    same, different = difference_estimates(constant, [(0, 1), (2, 0)])
    assert (same.value, same.error, same.p_value()) == (0, 0, 1)
    assert (different.value, different.error, different.p_value()) == (1, 0, 0)
    assert [mean.bounds()[1] for mean in mean_estimates(constant)] == [1, 1, 2]
    assert power(different, true=1, bound=0) == 1 and minimum_detectable_difference(different) == 0
    partly = table(np.random.default_rng(5), np.zeros(6), 3)
    partly[0] = partly[1]
    assert difference_estimates(partly, [(0, 1)])[0].error > 0


@pytest.mark.parametrize("values", [[[1.0], [2.0]], [[1.0, 2.0], [np.nan, np.nan]], [[1.0, np.nan], [np.nan, 2.0]]])
def test_with_too_few_trials_errors_and_probabilities_are_unknown(values):
    (difference,) = difference_estimates(values, [(1, 0)])
    assert np.isnan([difference.error, difference.dof, *difference.bounds()]).all()
    assert np.isnan(front_probability(np.array(values)[..., None])).all()


def test_a_mean_needs_two_seeds_somewhere():
    means = mean_estimates([[1.0, np.nan], [np.nan, 2.0]])
    assert [mean.value for mean in means] == [1, 2]
    assert np.isnan([[mean.error, mean.dof, *mean.bounds()] for mean in means]).all()


def test_a_metric_that_no_configuration_has_has_no_estimates():
    assert mean_estimates(np.empty((0, 3))) == difference_estimates(np.empty((0, 3)), []) == []


def test_a_pair_without_common_seeds_is_unknown():
    values = table(np.random.default_rng(6), np.zeros(4), 4)
    values[0, :2] = values[1, 2:] = np.nan
    unknown, known = difference_estimates(values, [(0, 1), (2, 1)])
    assert np.isnan([unknown.value, unknown.error, unknown.dof]).all()
    assert np.isnan(unknown.bounds()).all()
    assert np.isfinite([known.value, known.error, known.dof]).all()


def test_many_configurations_are_quick():
    """As in a race, where most have one seed."""
    values = table(np.random.default_rng(7), np.zeros(1000), 2)
    race = np.where([True, False], values, np.where(np.arange(1000)[:, None] < 200, values, np.nan))
    start = time.process_time()
    for trials in (values, race):
        found = difference_estimates(trials, [(row, 0) for row in range(1000)])
        assert np.isfinite([estimate.error for estimate in found]).all()
        assert np.isfinite([estimate.error for estimate in mean_estimates(trials)]).all()
    front_probability(np.stack([race, values[::-1]], axis=2), draws=100)
    assert time.process_time() - start < 4


@pytest.mark.parametrize("weighted", [False, True])
def test_sampling_variance_is_that_of_units_alone(weighted):
    rng = np.random.default_rng(8)
    weights = rng.uniform(0.2, 2, 400) if weighted else np.ones(400)
    shares = weights / weights.sum()
    found = []
    for _ in range(300):
        shared = 5 * rng.normal(size=400)
        candidate = shared + 2 * rng.normal(size=400) + 3 * rng.normal(size=(3, 400)) + rng.normal(size=(3, 1))
        control = shared + 3 * rng.normal(size=(3, 400))
        both = ([equally_weighted(row, weights) for row in of_seeds] for of_seeds in (candidate, control))
        found.append(sampling_variance(np.subtract(*both)))
    assert np.mean(found) == pytest.approx(4 * (shares**2).sum(), rel=0.05)


def test_sampling_variance_is_never_negative():
    rng = np.random.default_rng(9)
    found = [sampling_variance(rng.normal(size=(2, 300))) for _ in range(100)]
    assert min(found) == 0
    assert sampling_variance(np.ones((2, 300))) == pytest.approx(0, abs=1e-12)
    assert np.isnan(sampling_variance([[1.0], [2.0]])) and np.isnan(sampling_variance(np.full((2, 9), np.nan)))


def test_sampling_variance_is_over_the_seeds_that_are_there_and_the_units_that_these_have():
    values = np.random.default_rng(18).normal(size=(2, 300))
    with_gaps = np.full((3, 302), np.nan)
    with_gaps[:2, :300], with_gaps[0, 300:] = values, 5.0
    assert sampling_variance(with_gaps) == pytest.approx(sampling_variance(values), rel=1e-12)


def test_sampling_variance_widens_an_interval_towards_the_normal():
    values = table(np.random.default_rng(10), [0, 0], 2, std=1e-9)
    (narrow,) = difference_estimates(values, [(1, 0)])
    (wide,) = difference_estimates(values, [(1, 0)], [0.04])
    assert narrow.dof == pytest.approx(1)
    assert difference_estimates(values, [(1, 0)], [np.nan]) == [narrow]
    assert wide.error == pytest.approx(0.2)
    assert wide.bounds()[1] - wide.value == pytest.approx(0.2 * stats.norm.ppf(0.975), rel=1e-4)


@pytest.mark.parametrize("dof", [1, 3, 50])
def test_the_minimum_detectable_difference_is_found_four_times_in_five(dof):
    rng = np.random.default_rng(11)
    estimate = Estimate(0.0, 0.3, dof)
    true = minimum_detectable_difference(estimate)
    errors = 0.3 * np.sqrt(rng.chisquare(dof, 20000) / dof)
    found = rng.normal(true, 0.3, 20000) - stats.t.ppf(0.975, dof) * errors > 0
    assert found.mean() == pytest.approx(0.8, abs=0.01)
    assert power(estimate, true, 0.0) == pytest.approx(0.8, abs=1e-4)


def test_power_at_the_bound_is_the_level_and_far_from_it_certain():
    estimate = Estimate(0.0, 0.01, 4)
    assert power(estimate, true=0.2, bound=0.2) == pytest.approx(0.025)
    assert power(estimate, true=99, bound=0) == pytest.approx(1)
    assert power(estimate, true=-99, bound=0) == pytest.approx(0)


@pytest.mark.parametrize(
    ("dof", "shift"), [(0.74111621, -9.18534495), (0.98386968, -7.90943335), (0.5, 1e14), (1e6, 3)]
)
def test_power_is_finite_with_any_degrees_of_freedom(dof, shift):
    assert 0 <= power(Estimate(0.0, 1.0, dof), shift, 0.0) <= 1


def test_benjamini_hochberg_by_hand():
    """The example of Benjamini and Hochberg (1995), section 4: four of fifteen at 5 %."""
    p_values = [
        *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459),
        *(0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0),
    ]
    differences = {place: Estimate(stats.norm.isf(p / 2), 1.0, np.inf) for place, p in enumerate(p_values)}
    assert [of.p_value() for of in differences.values()] == pytest.approx(p_values)
    assert significant(differences) == {0, 1, 2, 3}
    assert significant({}) == set()


def test_false_discoveries_are_rare():
    """With no true difference, a table has a claim in at most 5 % of cases."""
    rng = np.random.default_rng(12)
    claims = []
    for _ in range(TABLES):
        estimates = difference_estimates(table(rng, np.zeros(8), 3), [(row, 0) for row in range(1, 8)])
        claims.append(bool(significant(dict(enumerate(estimates)))))
    assert np.mean(claims) < 0.06


def test_front_by_hand():
    points = [[1, 1], [2, 0], [0, 2], [1, 0], [2, 0]]
    assert on_front(points).tolist() == [True, True, True, False, True]
    assert on_front([[1, 1], [np.nan, 0], [0, 0]]).tolist() == [True, True, False]


def test_front_is_that_of_all_pairs():
    points = np.random.default_rng(13).integers(0, 6, size=(60, 3))
    dominated = [any((other >= point).all() and (other > point).any() for other in points) for point in points]
    assert on_front(points).tolist() == [not found for found in dominated]


def test_front_probability():
    rng = np.random.default_rng(14)
    means = np.array([[0, 10], [10, 0], [-10, -10], [5, 5]])
    certain = front_probability(means[:, None] + 0.5 * rng.normal(size=(4, 3, 2)))
    assert certain == pytest.approx([1, 1, 0, 1], abs=0.02)
    # Two configurations with the same means in one objective: each is the better one half of the time.
    noise = rng.normal(size=(1, 4, 1))
    noise -= noise.mean()
    equal = front_probability(np.concatenate([noise, -noise]))
    assert equal == pytest.approx([0.5, 0.5], abs=0.03)


def test_front_probability_is_the_same_in_pieces(monkeypatch):
    values = np.random.default_rng(0).normal(size=(20, 3, 2))
    whole = front_probability(values)
    monkeypatch.setattr("eqssl.stats.MAX_DRAWN", 20 * 700)
    assert front_probability(values) == pytest.approx(whole, abs=0.04)


def test_front_probability_has_the_sampling_of_images_in_it():
    means = np.array([[1.0], [0.0]])
    values = means[:, None] + 0.01 * np.random.default_rng(15).normal(size=(2, 5, 1))
    assert front_probability(values)[1] < 0.01
    expected = stats.norm.sf(1 / np.sqrt(2))
    assert front_probability(values, sampling=np.ones((2, 1)))[1] == pytest.approx(expected, abs=0.03)


def test_front_probability_leaves_out_a_trial_that_misses_one_objective():
    values = np.random.default_rng(16).normal(size=(3, 4, 2))
    one, both = values.copy(), values.copy()
    one[1, 2, 0] = np.nan
    both[1, 2] = np.nan
    np.testing.assert_array_equal(front_probability(one), front_probability(both))


def judged(dof=10, **changes):
    values = {"r2_mean": (0.1, 0.01), "equivariance": (0.1, 0.01), "accuracy": (0.0, 0.002), "invariance": (0.0, 0.004)}
    return verdict({metric: Estimate(*pair, dof) for metric, pair in (values | changes).items()})


def test_verdict_is_yes_no_or_inconclusive():
    answer, chance = judged()
    assert answer == "yes" and chance > 0.95
    assert judged(accuracy=(-0.004, 0.002))[0] == "yes"  # within the margin of .01
    assert judged(accuracy=(-0.009, 0.002))[0] == "inconclusive"
    assert judged(accuracy=(-0.02, 0.002))[0] == "no"
    assert judged(equivariance=(-0.1, 0.01))[0] == "no"
    assert judged(invariance=(float("nan"), float("nan")))[0] == "inconclusive"


def test_verdict_tells_when_it_could_not_have_found_a_yes():
    answer, chance = judged(accuracy=(0.0, 0.03))
    assert answer == "inconclusive" and chance < 0.1
    _, single = judged(accuracy=(0.0, 0.0036))
    assert single == pytest.approx(power(Estimate(0.0, 0.0036, 10), 0.0, -0.01), abs=0.01)


def test_the_best_of_many_needs_a_smaller_p_value():
    difference = {"goal": Estimate(3.0, 1.0, 20.0)}  # p = .007
    assert significant(difference) == significant(difference, candidates=7) == {"goal"}
    assert significant(difference, candidates=8) == set()
