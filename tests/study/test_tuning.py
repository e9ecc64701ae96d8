"""Tuning: which setting of an entrant is the best, and what it is compared with."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from eqssl.config import replace
from eqssl.study import Entrant, Setting, Study, StudyOptions, relative_times, tune
from eqssl.study.tuning import best_row, check_options, rows_on_test, usable


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


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"trials": 3}, "--trials is 3; allowed in toy, which searches no space: None"),
        ({"race": True}, "--race is True; .*: False"),
        ({"warm_start": "results/toy"}, "--warm-start is "),
        ({"seeds": 3}, None),
    ],
)
def test_options_of_a_search_are_refused_where_there_is_none(given, wrong, tmp_path):
    options = StudyOptions(output=str(tmp_path), **given)
    with pytest.raises(ValueError, match=wrong) if wrong else nullcontext():
        check_options(Study(name="toy", question="?", space={}), options)


def test_a_setting_has_one_seed_however_many_trials_are_asked_for(monkeypatch):
    run = []

    def run_study(study, options):
        run.append(options)
        metrics = {"knn": 0.5, "r2_mean": 0.1}
        done = [{"configuration": row, "metrics": metrics, "status": "COMPLETE", "collapsed": []} for row in study.rows]
        return {"trials": done, "data": {}}

    monkeypatch.setattr("eqssl.study.tuning.run_study", run_study)
    study = Study(name="toy", question="?", space={}, configurations=0)
    tune(study, StudyOptions(seeds=5, trials=10), {"a": Entrant({}, "train.lr", (1e-3, 2e-3))}, {})
    assert [(options.seeds, options.trials) for options in run] == [(1, None)]


def test_a_method_is_trained_for_as_long_as_it_takes_with_reconstruction():
    alone = {"byol": Setting({"method.name": "byol", "encoder.split": 0.0, "recon.weight": 0.0}, 0.5)}
    tuned = {"byol + reconstruction": Setting({"method.name": "byol", "recon.weight": 5.0}, 0.5)}
    names = "byol + reconstruction", "its settings all failed"
    who = {name: Entrant({"method.name": "byol"}, "recon.weight", (1.0, 5.0), "byol") for name in names}
    rows, controls = rows_on_test(alone, who, tuned, {"byol": 1.15}, epochs=6)
    assert rows["byol, equal time"]["train.epochs"] == 7
    assert rows["byol, split-0"] == {"method.name": "byol", "recon.weight": 0.0}
    names = "byol", "byol, equal time", "byol, split-0", "byol + reconstruction"
    assert controls == dict.fromkeys(names, ("byol", "byol, split-0"))


def test_only_what_was_timed_is_not_timed_again(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("eqssl.study.cluster.ray_running", lambda config: nullcontext())
    monkeypatch.setattr("eqssl.study.cluster.room", lambda options, nodes: SimpleNamespace(worker={"CPU": 1}))
    monkeypatch.setattr("eqssl.study.cluster.start_in_worker", lambda *given: asked.append(None) or {"a": len(asked)})
    monkeypatch.setattr("ray.get", lambda reference: reference)
    options = StudyOptions(output=str(tmp_path))
    first = {"a": ({"recon.weight": 1.0}, {"recon.weight": 0.0})}
    other = {"a": ({"recon.weight": 5.0}, {"recon.weight": 0.0})}
    assert [relative_times(pairs, options, "times.json")["a"] for pairs in (first, first, other, other)] == [1, 1, 2, 2]
    longer = StudyOptions(output=str(tmp_path), run=replace(options.run, {"train.batch_size": 8}))
    assert relative_times(other, longer, "times.json")["a"] == 3
