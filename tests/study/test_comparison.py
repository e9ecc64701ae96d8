"""Tuning: the best setting of a candidate, and the rows that it is compared with."""

import json
from contextlib import nullcontext

import pytest

from eqssl.config import ReconConfig, RunConfig
from eqssl.stats import ACCURACY_MARGIN
from eqssl.study import Candidate, Setting, Study, StudyOptions, tune
from eqssl.study.comparison import _best_setting, _settings, check_options, mean_metrics, rows_on_test
from eqssl.study.options import settle

METRICS = {"linear": 0.5, "r2_mean": 0.1, "train_s": 1.0}


def best(floor, **metrics) -> str:
    """Return the row of the best setting; floor: least accuracy, None where accuracy decides."""
    rows = {row: {"method.name": row, "recon.weight": 1.0} for row in metrics}
    base = None if floor is None else Setting({}, accuracy=floor + ACCURACY_MARGIN, epoch_s=1.0)
    metrics = {row: of | {"train_s": 1.0} for row, of in metrics.items()}
    candidate = Candidate({}, "recon.weight", (1.0,))
    return _best_setting(candidate, rows, metrics, base).overrides["method.name"]


@pytest.mark.parametrize(("floor", "expected"), [(0.78, "b"), (0.4, "c"), (0.9, "a"), (None, "a")])
def test_the_best_setting_is_accurate_enough_or_else_the_most_accurate(floor, expected):
    values = {"a": (0.8, 0.3), "b": (0.79, 0.5), "c": (0.5, 0.9)}
    assert best(floor, **{row: {"linear": of[0], "r2_mean": of[1]} for row, of in values.items()}) == expected


@pytest.mark.parametrize("floor", [-0.01, None])
def test_data_without_labels_go_by_r2(floor):
    assert best(floor, a={"r2_mean": 0.1}, b={"r2_mean": 0.2}) == "b"


@pytest.mark.parametrize("floor", [0.1, None])
def test_data_of_which_nothing_is_known_go_by_accuracy(floor):
    assert best(floor, a={"linear": 0.2}, b={"linear": 0.3}, c={"linear": 0.1}) == "b"


@pytest.mark.parametrize("values", [(0.5, 1.0), (0.99995, 0.9999999, 0.99999991), (4.5 * 0.3, 4.5)])
def test_every_value_of_a_candidate_is_a_row(values):
    rows = _settings("sie", Candidate({"method.name": "sie"}, "train.lr", values), {})
    assert [row["train.lr"] for row in rows.values()] == list(values)
    assert max(map(len, rows)) <= len("sie, train.lr 0.99999991")


def test_a_setting_has_the_mean_of_its_seeds_unless_one_failed_or_collapsed():
    ends = {
        "a": [("COMPLETE", [], 0.5), ("COMPLETE", [], 0.7)], "b": [("COMPLETE", ["inv"], 0.5), ("COMPLETE", [], 0.5)],
        "c": [("COMPLETE", [], 0.5), ("FAILED", [], 0.5)], "d": [("STOPPED", [], 0.5)],
    }  # fmt: skip
    trials = [
        {"configuration": name, "metrics": {"linear": linear}, "status": status, "collapsed": collapsed}
        for name, of_name in ends.items()
        for status, collapsed, linear in of_name
    ]
    assert mean_metrics(trials) == {"a": {"linear": pytest.approx(0.6)}}


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"configs": 3}, "--configs is 3; allowed in toy, which searches no space: None"),
        ({"seed_schedule": "halving"}, "--seed-schedule is halving; .*: fixed"),
        ({"warm_start": "results/toy"}, "--warm-start is "),
        ({"objectives": ("inv/knn", "r2_mean")}, "--objectives is "),
        ({"run": RunConfig(recon=ReconConfig(weight=3.0))}, "--recon.weight is 3.0; allowed in toy, which sets it: 1"),
        ({"seeds": 3}, None),
    ],
)
def test_options_of_a_search_are_refused_where_there_is_none(given, wrong, tmp_path):
    options = StudyOptions(output=str(tmp_path), **given)
    with pytest.raises(ValueError, match=wrong) if wrong else nullcontext():
        study = Study(name="toy", question="?", space={}, configs=0)
        check_options(study, settle(study, options)[1], own=["recon.weight"])


@pytest.fixture
def tuned(monkeypatch, tmp_path):
    """Return a function that tunes two values whose trials have given ends, and the options of its studies."""
    run = []

    def tuned(ends, earlier=None):
        def run_study(study, options):
            run.append(options)
            same = {"metrics": METRICS, "status": "COMPLETE", "collapsed": [], "error": None}
            return {"trials": [same | {"configuration": row} | ends[row] for row in study.rows], "data": {}}

        monkeypatch.setattr("eqssl.study.comparison.run_study", run_study)
        study = Study(name="toy", question="?", space={}, configs=0)
        candidate = Candidate({}, "recon.weight", (1.0, 5.0), builds_on="base" if earlier else None)
        options = StudyOptions(seeds=5, configs=10, output=str(tmp_path))
        return tune(study, options, {"a": candidate}, earlier or {}, later="last")[0]

    return tuned, run


def test_a_setting_has_two_seeds_whatever_number_is_asked_for(tuned):
    tune_it, run = tuned
    tune_it({f"a, recon.weight {value}": {"metrics": METRICS} for value in (1, 5)})
    assert [(options.seeds, options.configs) for options in run] == [(2, None)]


@pytest.mark.parametrize(("accuracy", "accurate", "weight"), [(0.5, True, 5), (0.9, False, 1), (None, None, 1)])
def test_what_was_chosen_is_kept_with_the_reason(tuned, tmp_path, accuracy, accurate, weight):
    earlier = {"base": Setting({"train.lr": 0.1}, accuracy, 1.0)} if accuracy else None
    settings = {1: (0.6, 0.1), 5: (0.55, 0.3)}
    ends = {
        f"a, recon.weight {w}": {"metrics": {"linear": accuracy, "r2_mean": r2, "train_s": 2.0 * w}}
        for w, (accuracy, r2) in settings.items()
    }
    tuned[0](ends, earlier)
    (kept,) = json.loads((tmp_path / "toy" / "choices.json").read_text()).values()
    assert kept["overrides"]["recon.weight"] == weight
    assert kept["accurate"] is accurate and kept["accuracy"] == settings[weight][0]
    assert kept["epoch_s"] == 2.0  # of 2 and 10: the longer one shared the machine


@pytest.mark.parametrize(("best", "at_edge"), [(1.0, True), (5.0, False), (25.0, True)])
def test_a_best_value_at_the_edge_of_those_tried_is_reported(best, at_edge, tmp_path, monkeypatch, caplog):
    def run_study(study, options):
        trials = [
            {"configuration": row, "metrics": METRICS | {"linear": 0.5 + (of["recon.weight"] == best)}}
            | {"status": "COMPLETE", "collapsed": [], "error": None}
            for row, of in study.rows.items()
        ]
        return {"trials": trials, "data": {}}

    monkeypatch.setattr("eqssl.study.comparison.run_study", run_study)
    study = Study(name="toy", question="?", space={}, configs=0)
    candidates = {"a": Candidate({}, "recon.weight", (1.0, 5.0, 25.0))}
    chosen, _ = tune(study, StudyOptions(output=str(tmp_path)), candidates, {}, later="last")
    assert chosen["a"].overrides["recon.weight"] == best and chosen["a"].at_edge == at_edge
    expected = f"a: --recon.weight {best:g} is at the edge of the values tried; a better one may lie beyond"
    assert caplog.messages == [expected] * at_edge


def test_what_a_later_stage_was_built_on_holds_though_a_trial_tried_again_is_better(tuned, tmp_path, caplog):
    better = {"metrics": METRICS | {"linear": 0.6, "r2_mean": 0.3}}
    failed = {"status": "FAILED", "error": "its process died (3 attempts)"}
    ends = {"a, recon.weight 1": {"metrics": METRICS}, "a, recon.weight 5": failed}
    assert tuned[0](ends)["a"].overrides == {"recon.weight": 1.0}
    again = tuned[0](ends | {"a, recon.weight 5": better})  # nothing is built on the choice yet
    assert again["a"].overrides == {"recon.weight": 5.0}
    assert tuned[0](dict.fromkeys(ends, failed)) == {}
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "study.json").write_text("{}")
    caplog.clear()
    assert tuned[0](ends) == {} and caplog.messages[0].startswith("a is left out: a, recon.weight 5: its process died")
    assert tuned[0](dict.fromkeys(ends, better)) == {} and caplog.messages[1] == "a is left out: last was begun without"


def test_a_candidate_that_is_left_out_is_named_with_what_happened(tuned, caplog):
    failed = {"status": "FAILED", "error": "ValueError: no patches"}
    ends = {"a, recon.weight 1": failed, "a, recon.weight 5": {"collapsed": ["inv", "all"]}}
    assert tuned[0](ends) == {}
    assert caplog.messages == [
        "a is left out: a, recon.weight 1: ValueError: no patches; a, recon.weight 5: collapsed: inv, all"
    ]


def test_a_method_is_trained_for_as_long_as_it_takes_with_reconstruction():
    alone = {"byol": Setting({"method.name": "byol", "encoder.equi_fraction": 0.0, "recon.weight": 0.0}, 0.5, 2.0)}
    tuned = {"byol + reconstruction": Setting({"method.name": "byol", "recon.weight": 5.0}, 0.5, 2.3)}
    names = "byol + reconstruction", "its settings all failed"
    candidates = {name: Candidate({"method.name": "byol"}, "recon.weight", (1.0, 5.0), "byol") for name in names}
    rows, controls = rows_on_test(alone, candidates, tuned, epochs=6)
    assert rows["byol, equal time"]["train.epochs"] == 7
    assert rows["byol, no-recon"] == {"method.name": "byol", "recon.weight": 0.0}
    assert rows["byol, autoencode"] == rows["byol + reconstruction"] | {"recon.attention": "autoencode"}
    assert rows["byol, concat"] == rows["byol + reconstruction"] | {"recon.attention": "concat"}
    own = "byol", "byol, no-recon", "byol, autoencode"
    compared = (*own, "byol, concat", "byol, equal time", "byol + reconstruction")
    assert controls == dict.fromkeys(compared, own)
    without = rows_on_test(alone, candidates, {}, epochs=6)
    assert without[1] == dict.fromkeys(("byol", "byol, no-recon"), own[:2])
    quick = {"byol + reconstruction": Setting({"method.name": "byol", "recon.weight": 5.0}, 0.5, 1.9)}
    assert without[0].keys() == rows_on_test(alone, candidates, quick, epochs=6)[0].keys() - {
        "byol, autoencode", "byol, concat", "byol + reconstruction"
    }  # fmt: skip
