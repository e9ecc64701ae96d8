"""Workers that outlive a trial: what becomes of the trials that come after one another."""

import os

import pytest

from eqssl.config import replace
from eqssl.distributed import rank
from eqssl.methods import METHODS, register_method
from eqssl.methods.vicreg import VICReg
from eqssl.study import Study, StudyOptions, choice, run_study
from eqssl.study.results import COSTS
from eqssl.training import train

ROWS = {  # the first three trials
    "cold": {"recon.weight": 0.5},
    "fails": {"recon.weight": 3e38},
    "uneven": {"method.name": "uneven"},
}


@pytest.fixture(scope="module")
def nested(tmp_path_factory, base):
    """Return run and trials of a study with two workers a trial: the row, then one that fails and some ended early."""
    import ray

    folder = tmp_path_factory.mktemp("nested")
    run = replace(base, {"train.epochs": 3, "train.warmup_epochs": 0.5, "train.precision": "fp32"})
    marker = folder / "failed"

    class Uneven(VICReg):
        def forward(self, pair):
            if rank() == 1 and not marker.exists():
                marker.touch()
                raise ValueError("of one worker alone")
            return super().forward(pair)

    register_method("uneven", Uneven)
    weights = choice(1.0, 0.1, 10.0, 0.5)
    study = Study(name="nested", question="?", space={"recon.weight": weights}, rows=ROWS, base=run)
    options = StudyOptions(
        run=run,
        seeds=1,
        workers_per_trial=2,
        stopping="halving",
        output=str(folder),
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
    )
    os.environ["OMP_NUM_THREADS"] = "1"
    ray.init(num_cpus=2, log_to_driver=False)
    trials = run_study(study, options)["trials"]
    yield run, sorted(trials, key=lambda trial: (trial["number"] is not None, trial["configuration"]))
    del METHODS["uneven"]
    ray.shutdown()


@pytest.mark.slow
def test_workers_go_on_with_the_next_trial_after_one_that_failed_or_was_ended_early(nested):
    _, (cold, *others) = nested
    fails, uneven, *searched = others
    assert [cold["status"], fails["status"], uneven["status"]] == ["COMPLETE", "FAILED", "COMPLETE"]
    assert {t["status"] for t in searched} == {"STOPPED", "COMPLETE"}
    assert [t["warm"] for t in (cold, fails, *searched)] == [False] + 5 * [True]


@pytest.mark.slow
def test_workers_start_again_after_an_error_of_one_alone(nested):
    run, (_, _, uneven, *_) = nested
    assert not uneven["warm"] and uneven["epochs"] == run.train.epochs


@pytest.mark.slow
def test_what_they_train_is_what_one_process_trains(nested):
    run, (cold, *_) = nested
    alone = train(replace(run, cold["params"]))
    assert cold["metrics"]["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-4)  # three epochs in float32


@pytest.mark.slow
def test_earlier_trials_leave_nothing_behind(nested):
    _, (cold, _, _, *others) = nested
    (warm,) = (t for t in others if t["params"] == cold["params"])
    assert warm["warm"] and warm["status"] == "COMPLETE"
    figures = [{name: value for name, value in t["metrics"].items() if name not in COSTS} for t in (warm, cold)]
    assert figures[0] == figures[1]


@pytest.mark.slow
def test_only_the_first_trial_waits_for_workers(nested):
    _, (cold, fails, _, *searched) = nested
    assert max(t["overhead_s"] for t in (fails, *searched)) < 0.25 * cold["overhead_s"]
