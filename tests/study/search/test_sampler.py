"""The search: Optuna is told the truth, learns, and its journal says the same."""

import dataclasses
import os
from statistics import mean

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from eqssl.files import write_json
from eqssl.study.definition import Study
from eqssl.study.search.sampler import Search, write_journal
from eqssl.study.search.space import choice, log_uniform, uniform
from eqssl.study.store.records import ENDED, EPOCHS, TrialRecord

SPACE = {
    "recon.attention": choice("target-queries", "concat"),
    "recon.weight": log_uniform(0.1, 10.0),
    "augment.crop": uniform(0.0, 1.0).when("recon.attention", "concat"),
}
BOTH = {"knn": "maximize", "r2_mean": "maximize"}
ONE = {"knn": "maximize"}
STUDY = Study(name="toy", question="?", space=SPACE, objectives=BOTH)


def record(number=0, status="COMPLETE", params=None, **values) -> TrialRecord:
    metrics = values.pop("metrics", {"knn": 0.5, "r2_mean": 0.2})
    return TrialRecord(
        trial_id=f"t{number}", configuration=f"c{number}", number=number, params=params or {}, seed=0, status=status,
        metrics=metrics, **values,
    )  # fmt: skip


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "nsga2", "nsga3"])
def test_a_parameter_exists_only_where_its_condition_holds(sampler):
    search = Search(SPACE, BOTH, sampler=sampler)
    for number in range(16):
        params = search.suggest()
        assert ("augment.crop" in params) == (params["recon.attention"] == "concat")
        search.tell(number, [record(number, metrics={"knn": params["recon.weight"], "r2_mean": 0.1})])
    assert {t.state for t in search.optuna.trials} == {TrialState.COMPLETE}


@pytest.mark.parametrize(
    ("ended", "state"),
    [
        ({}, TrialState.COMPLETE),
        ({"status": "FAILED"}, TrialState.FAIL),
        ({"collapsed": ["inv"]}, TrialState.FAIL),
        ({"metrics": {"knn": 0.5}}, TrialState.FAIL),
        ({"status": "STOPPED", "history": {"1": {"knn": 0.3, "r2_mean": 0.1}}}, TrialState.PRUNED),
    ],
)
def test_optuna_is_told_how_it_ended(ended, state):
    search = Search(SPACE, BOTH)
    search.suggest()
    search.tell(0, [record(**ended)])
    assert search.optuna.trials[0].state == state
    if state == TrialState.PRUNED:
        assert search.optuna.trials[0].user_attrs == {"seed 0, epoch 1": {"knn": 0.3, "r2_mean": 0.1}}


def test_a_single_objective_has_its_intermediate_values():
    search = Search(SPACE, ONE)
    search.suggest()
    search.tell(0, [record(status="STOPPED", history={"1": {"knn": 0.3}, "2": {}, "3": {"knn": 0.4}})])
    assert search.optuna.trials[0].intermediate_values == {1: 0.3, 3: 0.4}


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_goes_by_what_it_was_told(sampler):
    space = {"augment.crop": uniform(0.0, 1.0)}
    search = Search(space, ONE, sampler=sampler)
    misses = []
    for number in range(30):
        misses.append(abs(search.suggest()["augment.crop"] - 0.8))
        search.tell(number, [record(number, metrics={"knn": -misses[-1]})])
    assert mean(misses[15:]) < 0.6 * mean(misses[:10])


def test_a_warm_start_saves_the_random_points():
    space = {"augment.crop": uniform(0.0, 1.0)}
    search = Search(space, ONE, sampler="tpe", seed=1)
    places = [i / 20 for i in range(21)]
    others = [({"recon.weight": 1.0}, {"knn": 9.0}), ({"augment.crop": 0.9}, {"r2_mean": 9.0})]
    search.warm_start([({"augment.crop": p}, {"knn": -abs(p - 0.3)}) for p in places] + others)
    assert len(search.optuna.trials) == 21  # of another space and without the objective: passed over
    misses = []
    for number in range(5):
        misses.append(abs(search.suggest()["augment.crop"] - 0.3))
        search.tell(number, [record(number, metrics={"knn": -misses[-1]})])
    assert mean(misses) < 0.15  # random points: .29


@pytest.mark.parametrize("sampler", ["nsga2", "nsga3"])
def test_a_warm_start_gives_a_genetic_sampler_its_parents(sampler):
    families = ("crop", "rotation", "brightness", "contrast", "blur")
    search = Search({f"augment.{family}": uniform(0.0, 1.0) for family in families}, BOTH, sampler=sampler)
    strengths = [0.3 + (i % 2) / 10 for i in range(20)]
    values = {"knn": 0.5, "r2_mean": 0.1}
    search.warm_start([({f"augment.{family}": s for family in families}, values) for s in strengths])
    suggested = [value for _ in range(20) for value in search.suggest().values()]
    assert mean(value in (0.3, 0.4) for value in suggested) > 0.6  # those that did not mutate; without parents: none


def test_a_warm_start_passes_over_values_that_the_space_has_not():
    space = {"recon.view": choice("second", "clean"), "recon.weight": log_uniform(0.1, 10.0)}
    search = Search(space, ONE, sampler="tpe")
    found = [("second", 0.1), ("second", 10), ("first", 1.0), ("second", 100.0), ("second", 0.05)]
    search.warm_start([({"recon.view": view, "recon.weight": w}, {"knn": 0.5}) for view, w in found])
    assert [t.params["recon.weight"] for t in search.optuna.trials] == [0.1, 10]


def test_a_trial_of_the_journal_is_one_sync_of_the_disk(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(file) or fsync(file))
    write_journal(STUDY, [record(number) for number in range(20)], tmp_path / "optuna.journal")
    assert len(synced) < 20 + 10


def test_the_journal_says_what_optuna_was_told(tmp_path):
    ends = [{}, {"status": "FAILED"}, {"status": "STOPPED", "history": {"1": {"knn": 0.3, "r2_mean": 0.1}}}]
    points = [{"recon.attention": "concat", "recon.weight": 1.0, "augment.crop": 0.5}, *2 * [{"recon.weight": 3.0}]]
    records = [record(n, params=p, **end) for n, (p, end) in enumerate(zip(points, ends, strict=True))]
    path = tmp_path / "optuna.journal"
    for _ in range(2):  # it is made anew every time
        write_journal(STUDY, [*records, record(None)], path)
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(path))))
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED]
    assert study.trials[0].params == points[0] and study.trials[0].values == [0.5, 0.2]
    assert study.best_trials[0].number == 0
    assert study.study_name == "toy" and study.metric_names == ["knn", "r2_mean"]


def test_a_trial_of_the_journal_has_the_seeds_and_the_times_of_its_trials(tmp_path):
    now_ms = 1_700_000_000_000
    for trial, ends in {"t0": [now_ms, now_ms + 2000], "late": [now_ms + 9000]}.items():
        write_json(tmp_path / "trials" / trial / EPOCHS, [{"epoch": 1.0, ENDED: ms} for ms in ends])
    first = record(0, wall_s=3.5)
    second = dataclasses.replace(first, trial_id="late", seed=1, status="FAILED", wall_s=1.0)
    write_journal(STUDY, [first, second, record(1)], tmp_path / "optuna.journal")
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "optuna.journal")))
    both, without = optuna.load_study(study_name="toy", storage=storage).trials
    assert both.user_attrs == {"configuration": "c0", "seeds": {"0": "COMPLETE", "1": "FAILED"}}
    times = [both.datetime_start.timestamp(), both.datetime_complete.timestamp()]
    assert times == [now_ms / 1000 - 1.5, now_ms / 1000 + 9]
    assert without.state == TrialState.COMPLETE and without.datetime_start <= without.datetime_complete
