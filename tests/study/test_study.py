"""Whole studies on one real Ray, with a real MLflow: what they run, write, log and survive."""

import dataclasses
import io
import json
import math
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from rich.console import Console

from eqssl.config import replace
from eqssl.data import SOURCES, load_data, register_source
from eqssl.methods import METHODS, register_method
from eqssl.methods.vicreg import VICReg
from eqssl.models.backbones import ENCODERS, register_encoder
from eqssl.models.export import load_encoder
from eqssl.signals import Interrupted
from eqssl.study import Study, StudyOptions, choice, log_uniform, run_study
from eqssl.training.loop import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def ray_cluster():
    import ray

    ray.init(num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def tracking(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base, tracking):
    """Return the folder and the summary of a study with a failing weight, and a row whose weights decay to nothing."""
    output = tmp_path_factory.mktemp("results")
    rows = {"constant": None, "pixels": None, "base": {"encoder.equi_fraction": 0.0, "recon.weight": 0.0}}
    rows["decayed"] = {"train.weight_decay": 7900.0, "recon.weight": 0.0}  # by nearly all in a step at the first rate
    study = Study(name="toy", question="?", space={"recon.weight": choice(1.0, 3e38)}, rows=rows, base=base)
    options = StudyOptions(run=base, seeds=2, output=str(output), tracking_uri=tracking)
    return output / "toy", run_study(study, options), study, options


def test_every_trial_is_in_the_summary(finished):
    folder, summary, _, _ = finished
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    trials = {(t["configuration"], t["seed"]): t for t in summary["trials"]}
    assert trials.keys() == {("constant", 0), ("pixels", 0)} | {
        (name, seed) for name in ("base", "decayed", "weight 1", "weight 3e+38") for seed in (0, 1)
    }
    assert all(t["epochs"] == 2 and t["wall_s"] > 0 for t in trials.values() if t["configuration"] == "weight 1")


def test_a_loss_that_is_not_finite_fails_its_trial_and_no_other(finished):
    _, summary, _, _ = finished
    failed = [t for t in summary["trials"] if t["status"] == "FAILED"]
    assert {t["configuration"] for t in failed} == {"weight 3e+38"}
    assert all("not finite" in t["error"] for t in failed)
    assert summary["chosen"]["configuration"] == "weight 1"


def test_a_trial_whose_features_lie_at_one_point_is_marked(finished):
    folder, summary, _, _ = finished
    trained = {t["configuration"]: t for t in summary["trials"] if t["epochs"] and t["status"] == "COMPLETE"}
    assert {name: trial["collapsed"] for name, trial in trained.items()} == {
        "base": [], "decayed": ["all", "inv", "equi"], "weight 1": []
    }  # fmt: skip
    for name, trial in trained.items():
        for part in ("",) if name == "base" else ("", "inv/", "equi/"):
            least, mean = (trial["metrics"][f"{part}{figure}"] for figure in ("std_min", "std"))
            assert mean < 1e-4 if trial["collapsed"] else least > 1e-3
    # The floor is an encoder that gives one feature for all images.
    assert "Collapsed, to a line or a point: constant; decayed." in (folder / "tables.md").read_text()


def test_a_trial_is_the_plain_training_run(finished, base):
    _, summary, _, _ = finished
    torch.set_num_threads(1)
    alone = train(replace(base, {"recon.weight": 1.0, "train.seed": 1}))
    trial = next(t for t in summary["trials"] if (t["configuration"], t["seed"]) == ("weight 1", 1))
    timeless = {name: value for name, value in alone.metrics.items() if not name.endswith("_s")}
    assert {name: trial["metrics"][name] for name in timeless} == timeless


def test_processes_are_reused_with_little_overhead(finished):
    _, summary, _, _ = finished
    assert summary["overhead_s"]["warm_trials"] >= 6 - 2
    assert summary["overhead_s"]["median_warm"] < 0.5


def test_best_encoder_loads(finished, base):
    folder, _, _, _ = finished
    encoder = load_encoder(folder / "best_encoder")
    images = torch.rand(2, 3, encoder.image_size, encoder.image_size)
    assert torch.isfinite(encoder(images)).all()


def test_tracking_has_one_run_a_trial_under_the_study(finished, tracking):
    _, summary, _, _ = finished
    client = MlflowClient(tracking)
    runs = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    parent = [run for run in runs if run.data.tags["kind"] == "study"]
    children = {run.data.tags["trial_id"]: run for run in runs if run.data.tags["kind"] == "trial"}
    assert len(parent) == 1
    assert len(children) == len(runs) - 1 == len(summary["trials"])
    for trial in summary["trials"]:
        run = children[trial["trial_id"]]
        assert run.info.status == {"COMPLETE": "FINISHED", "FAILED": "FAILED"}[trial["status"]]
        assert run.data.tags["mlflow.parentRunId"] == parent[0].info.run_id
        without_encoder = trial["configuration"] in ("constant", "pixels")
        assert run.data.params.keys() == (set() if without_encoder else {"recon.weight"})
        assert run.data.tags["seed"] == str(trial["seed"])
    assert parent[0].data.params == {"recon.weight": str(summary["chosen"]["params"]["recon.weight"])}
    assert parent[0].data.tags["configuration"] == summary["chosen"]["configuration"]
    assert float(parent[0].data.tags["augment.rotation"]) == 0  # what the default is for pairs of one object
    done = children[summary["chosen"]["trial_id"]]
    history = client.get_metric_history(done.info.run_id, "loss")
    assert [metric.step for metric in history] == [1, 2]
    (r2,) = (t["metrics"]["r2_mean"] for t in summary["trials"] if t["trial_id"] == summary["chosen"]["trial_id"])
    assert done.data.metrics["Objective/r2_mean"] == pytest.approx(r2)
    assert {"Objective/linear", "Objective/r2_mean"} < parent[0].data.metrics.keys()
    assert [a.path for a in client.list_artifacts(done.info.run_id)] == ["reconstructions.png"]
    assert "report.html" in {a.path for a in client.list_artifacts(parent[0].info.run_id)}


def test_resuming_a_finished_study_trains_nothing(finished):
    folder, summary, study, options = finished
    before = {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/*")}
    again = run_study(study, dataclasses.replace(options, resume=True))
    assert {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/*")} == before
    assert again["trials"] == summary["trials"]
    assert again["ledger"]["attempts"] == 2
    beyond_s = again["ledger"]["wall_s"] - summary["wall_s"] - again["wall_s"]
    assert 0 <= beyond_s < 30  # a heartbeat may have come while the results were written
    assert again["ledger"]["total"] == summary["ledger"]["total"]


def test_the_ledger_has_every_trial(finished):
    _, summary, _, _ = finished
    costs = summary["ledger"]
    assert [costs[status]["trials"] for status in ("complete", "failed", "total")] == [8, 2, 10]
    assert (costs["device"], costs["devices_per_trial"], costs["total"]["resumed_s"]) == ("CPU", 1, 0.0)
    held_s = sum(trial["wall_s"] + trial["overhead_s"] for trial in summary["trials"])
    assert costs["total"]["device_hours"] == pytest.approx(held_s / 3600)
    assert held_s / 2 < costs["wall_s"]


def test_a_forecast_above_the_limit_is_refused_before_training(tmp_path, base, tracking):
    run = replace(base, {"train.epochs": 1_000_000})
    study = Study(name="toy", question="?", space={"recon.weight": log_uniform(0.1, 1.0)}, rows={}, base=run)
    options = StudyOptions(run=run, output=str(tmp_path), tracking_uri=tracking, max_hours=1.0)
    with pytest.raises(ValueError, match=r"--max-hours is 1, and the forecast is \S+ hours"):
        run_study(study, options)
    assert not list(Path(tmp_path).iterdir())


def test_a_process_that_is_killed_costs_an_epoch_and_no_trial(tmp_path, base, tracking):
    """For several workers see test_workers.py and tests/cluster/test_faults.py."""
    marker = str(tmp_path / "killed")

    class Mortal(VICReg):
        def __init__(self, sizes):
            super().__init__(sizes)

        def forward(self, pair):
            if self.progress >= 0.5 and not os.path.exists(marker):
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(pair)

    register_method("mortal", Mortal)
    run = replace(base, {"method.name": "mortal", "train.precision": "fp32"})
    study = Study(name="mortal", question="?", space={}, rows={}, base=run, smoke={})
    options = StudyOptions(run=run, seeds=1, output=str(tmp_path), tracking_uri=tracking)
    (trial,) = run_study(study, dataclasses.replace(options, smoke=True))["trials"]  # without a forecast's steps
    assert os.path.exists(marker) and trial["status"] == "COMPLETE", trial["error"]
    unharmed = train(run).metrics
    assert trial["metrics"]["loss"] == pytest.approx(unharmed["loss"], rel=1e-5)
    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name(study.name).experiment_id
    (tracked,) = client.search_runs([experiment], "tags.kind = 'trial'")
    assert [metric.step for metric in client.get_metric_history(tracked.info.run_id, "loss")] == [1, 2]


def test_a_stop_after_the_last_trial_leaves_a_complete_study_and_the_next_one_does_not_start(
    tmp_path, base, tracking, monkeypatch
):
    from eqssl.study.results import write_results

    def write(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return write_results(*arguments)

    monkeypatch.setattr("eqssl.study.results.write_results", write)
    space = {"recon.view": choice("second", "both")}
    study = Study(name="late", question="?", space=space, rows={"pixels": None}, smoke={})
    options = StudyOptions(run=base, seeds=1, configs=1, output=str(tmp_path), tracking_uri=tracking, smoke=True)
    said = Console(file=io.StringIO(), width=200)
    assert run_study(study, options, console=said)["status"] == "complete"
    with pytest.raises(Interrupted, match="SIGTERM"):
        run_study(dataclasses.replace(study, name="next"), options)
    assert not (tmp_path / "next").exists()
    assert json.loads((tmp_path / "late" / "summary.json").read_text())["status"] == "complete"
    text = said.file.getvalue()
    assert "warning: 1 of the 2 configurations of grid are left out; all of them take --configs 2\n" in text
    assert f"results: {tmp_path}" in text


def test_a_stop_while_a_worker_checks_the_data_does_not_wait_for_it(tmp_path, base, tracking, monkeypatch):
    own, late = os.getpid(), tmp_path / "late"

    def check(*arguments):
        time.sleep(3)
        os.kill(own, signal.SIGTERM)
        time.sleep(15)
        late.touch()

    monkeypatch.setattr("eqssl.study.flow.try_run", check)
    study = Study(name="early", question="?", space={}, rows={}, base=base, smoke={})
    with pytest.raises(Interrupted, match="SIGTERM"):
        run_study(study, StudyOptions(run=base, seeds=1, output=str(tmp_path), tracking_uri=tracking, smoke=True))
    assert not late.exists()


def test_an_error_while_results_are_written_ends_the_run_in_mlflow_too(tmp_path, base, tracking, monkeypatch):
    def write(*arguments):
        raise RuntimeError("no results")

    monkeypatch.setattr("eqssl.study.results.write_results", write)
    study = Study(name="broken", question="?", space={}, rows={}, base=base, smoke={})
    with pytest.raises(RuntimeError, match="no results"):
        run_study(study, StudyOptions(run=base, seeds=1, output=str(tmp_path), tracking_uri=tracking, smoke=True))
    client = MlflowClient(tracking)
    runs = client.search_runs([client.get_experiment_by_name("broken").experiment_id])
    assert {run.data.tags["kind"]: run.info.status for run in runs} == {"study": "FAILED", "trial": "FINISHED"}


def test_a_study_of_which_nothing_completes_has_failed_and_code_gets_the_smoke_run(tmp_path, base, tracking):
    objectives = ("knn", "r2_mean:maximize")
    study = Study(name="nothing", question="?", space={"recon.weight": choice(3e38)}, rows={"pixels": None}, base=base)
    study = dataclasses.replace(study, smoke={"train.epochs": 1})
    options = StudyOptions(run=base, configs=1, seeds=1, output=str(tmp_path), tracking_uri=tracking, smoke=True)
    summary = run_study(study, dataclasses.replace(options, objectives=objectives))
    assert summary["status"] == "failed" and summary["study"] == "nothing_smoke"
    assert list(summary["objectives"]) == ["knn", "r2_mean"] and summary["options"]["train.epochs"] == 1
    client = MlflowClient(tracking)
    runs = client.search_runs([client.get_experiment_by_name("nothing_smoke").experiment_id])
    assert [run.info.status for run in runs if run.data.tags["kind"] == "study"] == ["FAILED"]


def test_a_source_an_encoder_and_a_method_of_ones_own_reach_the_trials(tmp_path, base, tracking, monkeypatch):
    cache, objects = base.data.cache, base.data.objects

    def loader(config):
        from eqssl.config import DataConfig

        return dataclasses.replace(load_data(DataConfig(cache=cache, objects=objects)), name="mine")

    class Own(VICReg):
        pass

    def encoder(channels, image_size):
        return torch.nn.Conv2d(channels, 16, 8, 8)

    for known, name in ((SOURCES, "mine"), (ENCODERS, "mine"), (METHODS, "own")):
        monkeypatch.setitem(known, name, None)  # taken away again at the end
    register_source("mine", loader)
    register_encoder("mine", encoder)
    register_method("own", Own)
    own = {"data.source": "mine", "encoder.name": "mine", "method.name": "own", "train.epochs": 1}
    run = replace(base, own)
    study = Study(name="own", question="?", space={}, rows={}, base=run)
    summary = run_study(study, StudyOptions(run=run, seeds=1, output=str(tmp_path), tracking_uri=tracking))
    assert summary["data"]["name"] == "mine"
    (trial,) = summary["trials"]
    assert trial["status"] == "COMPLETE"
    assert load_encoder(tmp_path / "own" / "trials" / trial["trial_id"] / "encoder").dim == 16


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("train.batch_size", 4096, "batch-size"),
        ("data.source", "paintings", "data.source"),
        ("method.name", "simsalabim", "method.name"),
        ("encoder.name", "resnet_huge", "encoder.name"),
    ],
)
def test_what_only_a_worker_can_find_is_refused_before_training(tmp_path, base, tracking, option, value, message):
    run = replace(base, {option: value})
    study = Study(name="toy", question="?", space={"recon.weight": log_uniform(0.1, 1.0)}, rows={}, base=run)
    with pytest.raises(ValueError, match=message):
        run_study(study, StudyOptions(run=run, output=str(tmp_path), tracking_uri=tracking))
    assert not list(Path(tmp_path).iterdir())


def test_an_objective_that_no_evaluation_gives_is_refused_before_training(tmp_path, base, tracking):
    space, objectives = {"recon.weight": log_uniform(0.1, 1.0)}, {"inv/knn": "maximize", "r2/rotation": "maximize"}
    study = Study(name="toy", question="?", space=space, rows={}, base=base, objectives=objectives)
    with pytest.raises(ValueError, match=r"--objectives has r2/rotation; allowed .* r2/pose"):
        run_study(study, StudyOptions(run=base, output=str(tmp_path), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"))
    assert not list(Path(tmp_path).iterdir())  # no database of MLflow either


def test_unreachable_tracking_is_refused_before_training(tmp_path, base):
    study = Study(name="toy", question="?", space={}, rows={}, base=base)
    with pytest.raises(ValueError, match="tracking-uri"):
        run_study(study, StudyOptions(run=base, output=str(tmp_path), tracking_uri="http://127.0.0.1:9"))
    assert not list(Path(tmp_path).iterdir())


def test_a_metric_that_is_not_finite_never_reaches_the_summary(finished):
    _, summary, _, _ = finished
    assert all(math.isfinite(value) for trial in summary["trials"] for value in trial["metrics"].values())
