"""Workers that outlive a trial: what becomes of the trials that come after one another."""

import json
import os

import pytest

from eqssl.config import TrainConfig, replace
from eqssl.data import load_data
from eqssl.distributed import rank
from eqssl.evaluation.encoders import Pixels
from eqssl.evaluation.protocol import evaluate
from eqssl.methods import METHODS, register_method
from eqssl.methods.vicreg import VICReg
from eqssl.metrics import metric_of
from eqssl.study import Study, StudyOptions, choice, run_study
from eqssl.study.store.records import EPOCHS
from eqssl.training.loop import train

ROWS = {  # the first five trials
    "cold": {"recon.weight": 0.5},
    "fails": {"recon.weight": 3e38},
    "short": {"train.epochs": 2, "train.warmup_epochs": TrainConfig.warmup_epochs},
    "pixels": None,
    "uneven": {"method.name": "uneven"},
}


@pytest.fixture(scope="module")
def nested(tmp_path_factory, base):
    """Return run, name -> trial, and the trials' folder, of a study with two workers a trial: the rows, then some that
    are ended early.
    """
    import ray

    folder = tmp_path_factory.mktemp("nested")
    run = replace(base, {"train.epochs": 3, "train.warmup_epochs": 0.5, "train.precision": "fp32"})
    marker, here = folder / "failed", os.getcwd()

    class Uneven(VICReg):
        def forward(self, pair):
            if os.getcwd() != here:
                raise ValueError(f"in {os.getcwd()}, where a relative --data.path is another")
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
        pruner="halving",
        output=str(folder),
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
    )
    os.environ["OMP_NUM_THREADS"] = "1"
    ray.init(num_cpus=2, log_to_driver=False)
    trials = run_study(study, options)["trials"]
    yield run, {trial["configuration"]: trial for trial in trials}, folder / "nested" / "trials"
    del METHODS["uneven"]
    ray.shutdown()


@pytest.mark.slow
def test_workers_go_on_with_the_next_trial_after_one_that_failed_or_was_ended_early(nested):
    _, trials, _ = nested
    assert {name: trials[name]["status"] for name in ROWS} == dict.fromkeys(ROWS, "COMPLETE") | {"fails": "FAILED"}
    searched = [trial for name, trial in trials.items() if name not in ROWS]
    assert {trial["status"] for trial in searched} == {"STOPPED", "COMPLETE"}
    assert not trials["cold"]["warm"] and all(
        t["warm"] for t in (trials["fails"], trials["short"], trials["pixels"], *searched)
    )


@pytest.mark.slow
def test_workers_start_again_after_an_error_of_one_alone(nested):
    run, trials, _ = nested
    assert not trials["uneven"]["warm"] and trials["uneven"]["epochs"] == run.train.epochs


@pytest.mark.slow
def test_what_they_train_is_what_one_process_trains(nested):
    run, trials, _ = nested
    alone = train(replace(run, ROWS["short"]))
    assert trials["short"]["metrics"]["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-5)


@pytest.mark.slow
def test_they_evaluate_what_needs_no_training_as_one_process_does(nested):
    run, trials, _ = nested
    alone = evaluate(Pixels(), load_data(run.data), config=run.evaluate)
    assert trials["pixels"]["metrics"] == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
def test_earlier_trials_leave_nothing_behind(nested):
    _, trials, folder = nested
    cold, warm = trials["cold"], trials["weight 0.5"]
    assert warm["warm"]
    # Which of the searched trials are ended early depends on the CPU's rounding.
    same = json.loads((folder / cold["trial_id"] / EPOCHS).read_text())[warm["epochs"] - 1]
    figures = [
        {name: value for name, value in m.items() if metric_of(name).level != "cost" and name != "ended_ms"}
        for m in (warm["metrics"], same)
    ]
    assert figures[1].keys() <= figures[0].keys() and "loss" in figures[1]
    assert {name: figures[0][name] for name in figures[1]} == figures[1]
    assert warm["status"] == "STOPPED" or (warm["status"] == "COMPLETE" and figures[0] == figures[1])


@pytest.mark.slow
def test_only_workers_that_start_cost_a_trial_time(nested):
    _, trials, _ = nested
    warm = [trial["overhead_s"] for trial in trials.values() if trial["warm"]]
    assert len(warm) == 7 and max(warm) < 0.25 * trials["cold"]["overhead_s"]
