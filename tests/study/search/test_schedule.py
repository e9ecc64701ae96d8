import dataclasses

import pytest
from optuna.trial import TrialState

from eqssl.study import Study, StudyOptions, choice, log_uniform, uniform
from eqssl.study.options import settle
from eqssl.study.search.schedule import Suggestions
from eqssl.study.search.space import Configuration
from eqssl.study.store.records import TrialRecord

STUDY = Study(
    name="toy",
    question="?",
    space={"recon.weight": log_uniform(0.1, 10.0)},
    objectives={"knn": "maximize", "r2_mean": "maximize"},
    rows={"base": {}, "pixels": None},
)


def make(configs=5, seeds=2, sampler="grid", study=STUDY, schedule="fixed") -> Suggestions:
    options = StudyOptions(configs=configs, seeds=seeds, sampler=sampler, seed_schedule=schedule)
    return Suggestions(*settle(study, options))


def ended(trial, status="COMPLETE", **metrics) -> TrialRecord:
    configuration = trial.configuration
    return TrialRecord(
        trial_id=trial.id,
        configuration=configuration.name,
        number=configuration.number,
        params=configuration.overrides or {},
        seed=trial.seed,
        status=status,
        metrics=metrics,
    )


def scored(trial) -> TrialRecord:
    """Return a record whose metrics rise with every option."""
    score = sum((trial.configuration.overrides or {}).values())
    return ended(trial, knn=score, r2_mean=score)


def run(suggestions) -> list:
    """Run a search one trial at a time."""
    trials = []
    while (trial := suggestions.next()) is not None:
        trials.append(trial)
        suggestions.trial_ended(trial, scored(trial))
    assert suggestions.finished
    return trials


def configurations(trials) -> list[Configuration]:
    """Return those of the search."""
    return [trial.configuration for trial in trials if trial.configuration.number is not None]


def drain(suggestions) -> list:
    trials = []
    while (trial := suggestions.next()) is not None:
        trials.append(trial)
    return trials


def test_rows_come_first_then_the_grid_with_all_seeds():
    suggestions = make()
    trials = drain(suggestions)
    assert [t.name for t in trials[:3]] == ["base / seed 0", "base / seed 1", "pixels / seed 0"]
    searched = [(t.configuration.overrides["recon.weight"], t.seed) for t in trials[3:]]
    assert sorted(searched) == [(w, s) for w in (0.1, 0.3162, 1.0, 3.162, 10.0) for s in (0, 1)]
    assert suggestions.total == len(trials) == 13


def test_every_configuration_has_all_seeds():
    assert len(drain(make(configs=3, seeds=2))) == 3 + 6


def test_what_is_left_of_a_design_is_counted():
    study = Study(name="toy", question="?", space={"recon.view": choice("first", "second", "clean")}, rows={})
    cut = make(configs=2, seeds=2, study=study)
    assert (cut.design, cut.left_out, len(drain(cut))) == (3, 1, 4)
    for whole in (make(configs=4, seeds=2, study=study), make(configs=2, sampler="tpe", study=study)):
        assert whole.left_out == 0
    for configs in (0, 1):  # nothing is varied
        study = Study(name="toy", question="?", space={}, rows={}, configs=configs)
        assert make(configs=None, study=study).left_out == 0


def test_nothing_varied_gives_a_replicate_study():
    study = Study(name="toy", question="?", space={}, rows={})
    trials = drain(make(configs=1, seeds=4, study=study))
    assert [t.seed for t in trials] == [0, 1, 2, 3]
    assert {t.configuration.name for t in trials} == {"configuration"}


def test_optuna_is_told_the_mean_over_seeds_once_all_have_ended():
    suggestions = make()
    first, second = drain(suggestions)[3:5]
    suggestions.trial_ended(first, ended(first, knn=0.4, r2_mean=0.1))
    assert suggestions.search.optuna.trials[0].state == TrialState.RUNNING
    suggestions.trial_ended(second, ended(second, knn=0.6, r2_mean=0.3))
    told = suggestions.search.optuna.trials[0]
    assert told.state == TrialState.COMPLETE
    assert told.values == pytest.approx([0.5, 0.2])


@pytest.mark.parametrize("bad", [{"status": "FAILED"}, {"knn": 0.5}])
def test_a_failed_seed_or_a_missing_objective_is_told_as_failure(bad):
    suggestions = make()
    first, second = drain(suggestions)[3:5]
    suggestions.trial_ended(first, ended(first, knn=0.4, r2_mean=0.1))
    suggestions.trial_ended(second, ended(second, **bad))
    assert suggestions.search.optuna.trials[0].state == TrialState.FAIL


def test_nothing_stays_running_when_all_trials_have_ended():
    suggestions = make()
    for trial in drain(suggestions):
        suggestions.trial_ended(trial, ended(trial, knn=0.4, r2_mean=0.1))
    assert all(t.state == TrialState.COMPLETE for t in suggestions.search.optuna.trials)


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe", "qmc", "nsga2", "gp"])
def test_restored_study_suggests_what_the_uninterrupted_one_would(sampler):
    whole = make(sampler=sampler)
    expected = []
    for trial in iter(whole.next, None):
        expected.append(trial)
        whole.trial_ended(trial, ended(trial, knn=0.4, r2_mean=0.1))
    assert len(expected) == 13

    asked, done = expected[:6], {t.id: ended(t, knn=0.4, r2_mean=0.1) for t in expected[:5]}
    restored = make(sampler=sampler)
    restored.restore(configurations(asked), done)
    trials = []
    for trial in iter(restored.next, None):
        trials.append(trial)
        restored.trial_ended(trial, ended(trial, knn=0.4, r2_mean=0.1))
    assert [t.id for t in trials] == [t.id for t in expected[5:]]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3"])
def test_a_long_search_that_was_restored_suggests_what_the_uninterrupted_one_would(sampler):
    """Beyond the first ten suggestions, which are random, the sampler goes by what it was told."""
    space = {f"augment.{family}": uniform(0.0, 1.0) for family in ("crop", "rotation", "brightness", "contrast")}

    def new():
        return make(configs=26, seeds=1, sampler=sampler, study=dataclasses.replace(STUDY, space=space))

    whole = run(new())
    restored = new()
    restored.restore(configurations(whole[:21]), {trial.id: scored(trial) for trial in whole[:20]})
    assert [t.configuration.overrides for t in run(restored)] == [t.configuration.overrides for t in whole[20:]]


def test_configurations_that_differ_have_different_names_and_equal_ones_share_theirs():
    weights = iter((0.1, 0.100001, 0.1, 0.100002))
    suggestions = make(configs=4, seeds=1, sampler="random")
    suggestions.search.suggest = lambda params: {"recon.weight": next(weights)}
    trials = [(t.configuration.name, t.configuration.overrides["recon.weight"], t.seed) for t in drain(suggestions)[2:]]
    assert trials == [
        ("weight 0.1", 0.1, 0),
        ("weight 0.100001", 0.100001, 0),
        ("weight 0.1", 0.1, 1),
        ("weight 0.100002", 0.100002, 0),
    ]


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
@pytest.mark.parametrize("holes", [{0}, {3}, {2, 5}, {12}])
def test_a_hole_changes_no_other_configuration(sampler, holes, caplog):
    whole = run(make(configs=13, seeds=1, sampler=sampler))
    restored = make(configs=13, seeds=1, sampler=sampler)
    left = [c for c in configurations(whole) if c.number not in holes]
    done = {t.id: scored(t) for t in whole if t.configuration.number not in holes}
    restored.restore(left, done)
    trials = run(restored)
    assert [t.configuration.number for t in trials] == sorted(holes)
    if sampler != "tpe" or max(holes) < 10:  # later ones go by results, of which some came later
        assert [t.id for t in trials] == [t.id for t in whole if t.configuration.number in holes]
    told = [n for n in holes if f"configuration {n} has no record left" in caplog.text]
    assert told == ([] if sampler == "grid" else [n for n in holes if n < 12])


def test_a_restored_configuration_keeps_its_name():
    restored = make(configs=2, seeds=1, sampler="random")
    restored.restore([Configuration("weight 0.3", {"recon.weight": 0.30000001}, 1)], {})
    suggested = iter(({"recon.weight": 0.3}, {"recon.weight": 0.30000001}))
    restored.search.suggest = lambda params: next(suggested)
    assert [t.configuration.name for t in drain(restored)[2:]] == ["no. 0", "weight 0.3"]


def test_repeated_suggestion_gets_fresh_seeds():
    study = Study(name="toy", question="?", space={"recon.view": choice("first", "second")}, rows={})
    trials = drain(make(configs=6, seeds=2, sampler="random", study=study))
    assert len({t.id for t in trials}) == 12


def test_under_halving_only_the_best_get_more_seeds():
    suggestions = make(configs=26, seeds=5, sampler="random", schedule="halving")
    trials = run(suggestions)
    assert len(trials) == suggestions.total == 6 + 50  # 26 + 9 x 2 + 3 x 2
    seeds = {}
    for trial in trials[6:]:  # after five of base and one of pixels
        seeds.setdefault(trial.configuration.overrides["recon.weight"], []).append(trial.seed)
    assert [len(seeds[weight]) for weight in sorted(seeds, reverse=True)] == [5] * 3 + [3] * 6 + [1] * 17
    assert all(given == list(range(len(given))) for given in seeds.values())


def test_halving_waits_for_the_stage_to_end():
    suggestions = make(configs=5, seeds=3, sampler="random", schedule="halving")
    running = drain(suggestions)
    assert not suggestions.finished and suggestions.next() is None
    for trial in running[:-1]:
        suggestions.trial_ended(trial, ended(trial, knn=0.5, r2_mean=0.5))
    assert suggestions.next() is None
    suggestions.trial_ended(running[-1], ended(running[-1], knn=0.9, r2_mean=0.9))
    assert running[-1].configuration in {trial.configuration for trial in drain(suggestions)}


def test_halving_without_survivors_ends():
    suggestions = make(configs=9, seeds=5, sampler="random", schedule="halving")
    for trial in drain(suggestions):
        suggestions.trial_ended(trial, ended(trial, status="FAILED"))
    assert suggestions.next() is None and suggestions.finished


@pytest.mark.parametrize("cut", [3, 10, 20, 26, 33, 35])
def test_halving_that_was_killed_goes_on_as_it_would_have(cut):
    def new():
        return make(configs=14, seeds=5, sampler="tpe", schedule="halving")

    whole = run(new())
    restored = new()
    restored.restore(configurations(whole[: cut + 1]), {trial.id: scored(trial) for trial in whole[:cut]})
    assert [t.id for t in run(restored)] == [t.id for t in whole[cut:]]
