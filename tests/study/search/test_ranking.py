"""Ranks, crowding and hypervolume against Optuna's and against brute force."""

import numpy as np
import pytest

from eqssl.report.progress import hypervolume
from eqssl.study.search.pruning import best_first, crowding_distance


def test_one_metric_is_sorted_and_ties_keep_their_order():
    assert best_first([[0.1], [0.3], [0.2], [0.3]]) == [1, 3, 2, 0]
    assert best_first([]) == []


def test_fronts_come_one_after_the_other():
    front, second = [(1, 4), (2, 3), (4, 1)], [(0, 3), (3, 0)]
    order = best_first([*second, *front])
    assert set(order[:3]) == {2, 3, 4} and set(order[3:]) == {0, 1}
    assert order[2] == 3  # the one between the ends of its front


def test_order_by_rank_is_that_of_optuna():
    optuna_rank = pytest.importorskip("optuna.study._multi_objective")._fast_non_domination_rank
    values = np.random.default_rng(0).random((40, 3))
    ranks = optuna_rank(-values)  # which minimises
    ordered = [ranks[i] for i in best_first(values)]
    assert ordered == sorted(ordered)


def test_the_ends_of_a_front_are_alone():
    distance = crowding_distance([(0, 4), (1, 3), (3, 1), (4, 0)])
    assert np.isinf(distance[[0, 3]]).all()
    assert distance[1] == pytest.approx(3 / 4 + 3 / 4)


@pytest.mark.parametrize("metrics", [1, 2, 3])
def test_hypervolume_is_the_share_of_random_points_that_are_dominated(metrics):
    rng = np.random.default_rng(metrics)
    values = rng.random((12, metrics))
    points = rng.random((200_000, metrics))
    share = (values[None] >= points[:, None]).all(2).any(1).mean()
    assert hypervolume(values, np.zeros(metrics)) == pytest.approx(share, abs=0.005)
    assert hypervolume(values, np.ones(metrics)) == 0
