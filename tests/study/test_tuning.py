"""Tuning: which setting of an entrant is the best."""

import pytest

from eqssl.study.tuning import best_row


def figures(**rows):
    return {row: {"knn": knn, "r2_mean": r2} for row, (knn, r2) in rows.items()}


@pytest.mark.parametrize(("floor", "best"), [(0.78, "b"), (0.4, "c"), (0.9, "a")])
def test_the_best_setting_is_accurate_enough_or_else_the_most_accurate(floor, best):
    assert best_row(figures(a=(0.8, 0.3), b=(0.79, 0.5), c=(0.5, 0.9)), floor) == best


@pytest.mark.parametrize("floor", [-0.01, float("inf")])
def test_data_without_labels_go_by_r2(floor):
    assert best_row({"a": {"r2_mean": 0.1}, "b": {"r2_mean": 0.2}}, floor) == "b"
