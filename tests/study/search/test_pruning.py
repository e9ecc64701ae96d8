"""Successive halving: rungs, who goes on, and that only the same seed is compared."""

from contextlib import nullcontext

import pytest

from eqssl.config import TrainConfig
from eqssl.study.search.pruning import Halving, check_rungs, evaluated_every, rungs_of
from eqssl.study.store.records import TrialRecord

NINE = TrainConfig(epochs=9, warmup_epochs=0.5)
TWO = {"knn": "maximize", "geodesic_deg": "minimize"}


def at(trial: str, seed: int, epoch: int, metrics: dict[str, float] | None = None) -> TrialRecord:
    """Return the record of a trial that runs, after an epoch."""
    history, same = {str(epoch): metrics or {}}, {"configuration": "", "number": 0, "params": {}, "status": "STOPPED"}
    return TrialRecord(trial_id=trial, seed=seed, epochs=epoch, history=history, **same)


@pytest.mark.parametrize(
    ("epochs", "warmup", "rungs"),
    [(1, 0, []), (2, 0, [1]), (3, 0, [1]), (9, 0.5, [1, 3]), (9, 1, [3]), (10, 1, [3]), (90, 5, [10, 30])],
)
def test_rungs_are_a_ninth_and_a_third_of_the_epochs_after_the_warm_up(epochs, warmup, rungs):
    assert rungs_of(TrainConfig(epochs=epochs, warmup_epochs=warmup)) == rungs


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"epochs": 3}, "--pruner is halving; allowed with --train.epochs 3 and --train.warmup-epochs 1: none"),
        ({"epochs": 18, "eval_every": 4}, "--train.eval-every is 4; allowed .* compares after epoch 2: 0 or a divisor"),
        ({"epochs": 9, "eval_every": 3}, None),
        ({"epochs": 18, "eval_every": 1}, None),
    ],
)
def test_a_training_without_a_rung_or_without_its_evaluation_is_refused(values, wrong):
    with pytest.raises(ValueError, match=wrong) if wrong else nullcontext():
        check_rungs(TrainConfig(**values))


@pytest.mark.parametrize(("epochs", "given", "every"), [(9, 0, 3), (9, 1, 1), (1, 0, 0)])
def test_trials_are_evaluated_as_often_as_asked_or_else_at_the_rungs(epochs, given, every):
    assert evaluated_every(TrainConfig(epochs=epochs, eval_every=given)) == every


def test_the_best_third_goes_on():
    halving = Halving(NINE, {"knn": "maximize"}, seeds=2)
    went_on = []
    for place, knn in enumerate((0.5, 0.6, 0.4, 0.45, 0.7, 0.1)):
        halving.add(at(str(place), 0, 1, {"knn": knn}))
        went_on.append(halving.goes_on(at(str(place), 0, 1)))
    # The first has nobody beside it; .6 beats it; .4 and .45 are not among the best one and two; .7 leads; .1 is last.
    assert went_on == [True, True, False, False, True, False]


def test_what_is_best_in_either_metric_is_on_the_front():
    halving = Halving(NINE, TWO, seeds=2)
    for name, knn, error in (("a", 0.9, 50.0), ("b", 0.1, 10.0), ("c", 0.1, 60.0), ("d", 0.1, 61.0), ("e", 0.1, 62.0)):
        halving.add(at(name, 0, 3, {"knn": knn, "geodesic_deg": error}))
    assert [halving.goes_on(at(name, 0, 3)) for name in "abcde"] == [True, True, False, False, False]


def test_other_epochs_and_other_seeds_are_no_comparison():
    halving = Halving(NINE, {"knn": "maximize"}, seeds=2)
    halving.add(at("good", 0, 1, {"knn": 0.9}))
    halving.add(at("bad", 1, 1, {"knn": 0.1}))
    halving.add(at("bad", 1, 2, {"knn": 0.1}))
    assert halving.goes_on(at("bad", 1, 1)) and halving.goes_on(at("bad", 1, 2))
    halving.add(at("bad", 0, 1, {"knn": 0.1}))
    assert not halving.goes_on(at("bad", 0, 1))


def test_the_further_seeds_of_survivors_are_never_ended():
    halving = Halving(NINE, {"knn": "maximize"}, seeds=1)
    for name, knn in (("good", 0.9), ("bad", 0.1)):
        halving.add(at(name, 1, 1, {"knn": knn}))
    assert halving.goes_on(at("bad", 1, 1))


def test_a_missing_metric_is_the_worst():
    halving = Halving(NINE, {"knn": "maximize"}, seeds=2)
    halving.add(at("a", 0, 1, {}))
    halving.add(at("b", 0, 1, {"knn": 0.1}))
    assert halving.goes_on(at("b", 0, 1)) and not halving.goes_on(at("a", 0, 1))
