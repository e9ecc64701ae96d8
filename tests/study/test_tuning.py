"""Tuning: which setting of an entrant is the best."""

import pytest

from eqssl.study.tuning import best_row, usable


def figures(**rows):
    return {row: {"knn": knn, "r2_mean": r2} for row, (knn, r2) in rows.items()}


@pytest.mark.parametrize(("floor", "best"), [(0.78, "b"), (0.4, "c"), (0.9, "a")])
def test_the_best_setting_is_accurate_enough_or_else_the_most_accurate(floor, best):
    assert best_row(figures(a=(0.8, 0.3), b=(0.79, 0.5), c=(0.5, 0.9)), floor) == best


@pytest.mark.parametrize("floor", [-0.01, float("inf")])
def test_data_without_labels_go_by_r2(floor):
    assert best_row({"a": {"r2_mean": 0.1}, "b": {"r2_mean": 0.2}}, floor) == "b"


def test_what_failed_or_collapsed_is_no_setting_to_take():
    trials = [
        {"configuration": name, "metrics": {"knn": 0.5}, "status": status, "collapsed": collapsed}
        for name, status, collapsed in (
            ("a", "COMPLETE", []), ("b", "COMPLETE", ["inv"]), ("c", "FAILED", []), ("d", "STOPPED", []),
        )
    ]  # fmt: skip
    assert usable(trials) == {"a": {"knn": 0.5}}
