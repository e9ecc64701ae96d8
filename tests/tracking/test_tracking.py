import dataclasses
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from eqssl.config import RunConfig, replace
from eqssl.files import write_json
from eqssl.study.search.space import Configuration, Trial
from eqssl.study.store.records import ENDED, EPOCHS, TrialRecord
from eqssl.tracking.connection import connect
from eqssl.tracking.run import track_run
from eqssl.tracking.study import StudyTracker

BASE = RunConfig()
OTHER_CACHE = replace(BASE, {"data.cache": "elsewhere"})
TRIAL = Trial(Configuration.suggested({"recon.weight": 0.5}, 0), 1)
RECORD = TrialRecord(
    trial_id=TRIAL.id,
    configuration=TRIAL.configuration.name,
    number=0,
    params={"recon.weight": 0.5},
    seed=1,
    status="COMPLETE",
    epochs=3,
    metrics={"knn": 0.75},
)


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def start(uri, name, folder, *, varied=("recon.weight",), base=BASE, records=()) -> StudyTracker:
    tracker = StudyTracker(uri, name, list(varied), ["knn"], folder)
    tracker.ready()
    tracker.begin(name, base, records)
    return tracker


def runs(uri, name) -> dict:
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    return {run.data.tags.get("trial_id", "study"): run for run in found}


def steps(uri, run) -> list[int]:
    return [metric.step for metric in MlflowClient(uri).get_metric_history(run.info.run_id, "loss")]


def train_epochs(tracker, first, last) -> None:
    tracker.trial_started(TRIAL)
    for epoch in range(first, last + 1):
        tracker.epoch_ended(TRIAL, {"epoch": float(epoch), "loss": 1.0 / epoch})


def test_a_damaged_picture_does_not_lose_the_end_of_a_trial(uri, tmp_path, caplog):
    damaged = tmp_path / "trials" / TRIAL.id / "reconstructions.npy"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"\x93NUMPY")
    tracker = start(uri, "damaged", tmp_path)
    train_epochs(tracker, 1, 1)
    tracker.trial_ended(TRIAL, RECORD)
    tracker.close("FINISHED", [])
    assert runs(uri, "damaged")[TRIAL.id].data.tags["outcome"] == "COMPLETE" and tracker.dropped == 0
    assert "reconstructions.npy is damaged" in caplog.text


def test_a_study_is_a_parent_and_a_run_for_every_trial(uri, tmp_path):
    tracker = start(uri, "plain", tmp_path)
    train_epochs(tracker, 1, 3)
    tracker.trial_ended(TRIAL, RECORD)
    (tmp_path / "summary.json").write_text("{}")
    summary = {
        "sentence": "weight 0.5: equivariance gained.",
        "chosen": {"configuration": TRIAL.configuration.name},
        "configurations": [
            {"name": name, "params": params, "metrics": {metric: {"estimate": value} for metric in ("knn", "rank")}}
            for name, params, value in (("base", {}, 0.5), (TRIAL.configuration.name, RECORD.params, 0.75))
        ],
    }
    tracker.close("FINISHED", [tmp_path / "summary.json"], summary=summary)
    found = runs(uri, "plain")
    assert found["study"].data.params == {"recon.weight": "0.5"}
    assert found["study"].data.tags["configuration"] == TRIAL.configuration.name
    assert re.fullmatch(r"plain, solids, vicreg, \d{4}-\d\d-\d\d \d\d:\d\d", found["study"].info.run_name)
    assert found["study"].data.tags["mlflow.note.content"] == "weight 0.5: equivariance gained."
    assert found.keys() == {"study", TRIAL.id}
    child = found[TRIAL.id]
    assert child.data.params == {"recon.weight": "0.5"} and child.data.tags["seed"] == "1"
    assert child.data.metrics["Objective/knn"] == 0.75
    assert steps(uri, child) == [1, 2, 3]
    assert child.info.status == found["study"].info.status == "FINISHED"
    assert found["study"].data.metrics == {"Objective/knn": 0.75, "tracking/dropped": 0.0}


def test_options_that_do_not_vary_are_tags_of_the_parent_and_in_its_configuration(uri, tmp_path):
    tracker = start(uri, "options", tmp_path)
    tracker.close("FINISHED", [])
    parent = runs(uri, "options")["study"]
    assert parent.data.params == {}
    assert parent.data.tags["train.epochs"] == "10"
    assert not {"data.cache", "data.path", "recon.weight"} & parent.data.tags.keys()  # unset, or varied
    path = MlflowClient(uri).download_artifacts(parent.info.run_id, "config.yaml", str(tmp_path))
    assert yaml.safe_load(Path(path).read_text()) == dataclasses.asdict(BASE)


def test_a_stopped_study_may_choose_another_configuration_when_it_goes_on(uri, tmp_path):
    configurations = [
        {"name": name, "params": {"recon.weight": weight}, "metrics": {"knn": {"estimate": weight / 10}}}
        for name, weight in (("weight 1", 1.0), ("weight 2", 2.0))
    ]
    for status, name in (("KILLED", "weight 1"), ("FINISHED", "weight 2")):
        tracker = start(uri, "chosen", tmp_path)
        summary = {"chosen": {"configuration": name}, "configurations": configurations}
        tracker.close(status, [], summary=summary)
        assert tracker.dropped == 0
    data = runs(uri, "chosen")["study"].data
    assert data.tags["configuration"] == "weight 2" and data.params == {"recon.weight": "2.0"}
    assert data.metrics["Objective/knn"] == 0.2


def test_a_study_without_a_search_shows_its_subject(uri, tmp_path):
    tracker = start(uri, "subject", tmp_path, varied=["recon.attention"])
    row = {"name": "concat", "params": {"recon.attention": "concat"}, "metrics": {"knn": {"estimate": 0.5}}}
    answer = {"chosen": None, "answer": {"configuration": "concat"}, "configurations": [row]}
    tracker.close("FINISHED", [], summary=answer)
    data = runs(uri, "subject")["study"].data
    assert data.params == {"recon.attention": "concat"} and data.metrics["Objective/knn"] == 0.5


def test_a_run_lasts_as_long_as_its_trial_however_late_it_is_logged(uri, tmp_path, monkeypatch):
    log_batch = MlflowClient.log_batch
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *of, **named: time.sleep(0.5) or log_batch(*of, **named))
    tracker = start(uri, "late", tmp_path)
    before_ms = time.time() * 1000
    train_epochs(tracker, 1, 3)
    tracker.trial_ended(TRIAL, RECORD)
    after_ms = time.time() * 1000
    tracker.close("FINISHED", [])
    info = runs(uri, "late")[TRIAL.id].info
    assert before_ms - 1 <= info.start_time <= info.end_time <= after_ms


def test_an_objective_has_its_curve_and_end_under_one_name_that_sorts_first(uri, tmp_path):
    tracker = start(uri, "sorted", tmp_path)
    tracker.trial_started(TRIAL)
    for epoch in (1, 2, 3):
        tracker.epoch_ended(TRIAL, {"epoch": float(epoch), "loss": 1 / epoch, "auroc/flip": 0.5, "knn": epoch / 4})
    tracker.trial_ended(TRIAL, dataclasses.replace(RECORD, wall_s=9.0))
    tracker.close("FINISHED", [])
    child = runs(uri, "sorted")[TRIAL.id]
    assert sorted(child.data.metrics) == ["Objective/knn", "auroc/flip", "epoch", "loss", "overhead_s", "wall_s"]
    history = MlflowClient(uri).get_metric_history(child.info.run_id, "Objective/knn")
    assert [(entry.step, entry.value) for entry in history] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert child.data.metrics["wall_s"] == 9


def test_a_resumed_study_finds_its_runs_and_repeats_no_step(uri, tmp_path):
    stopped = start(uri, "resumed", tmp_path)
    train_epochs(stopped, 1, 2)
    stopped.close("KILLED", [])
    assert {run.info.status for run in runs(uri, "resumed").values()} == {"KILLED"}

    resumed = start(uri, "resumed", tmp_path, base=OTHER_CACHE)
    train_epochs(resumed, 2, 3)
    resumed.trial_ended(TRIAL, RECORD)
    resumed.close("FINISHED", [])
    assert resumed.dropped == 0
    found = runs(uri, "resumed")
    assert len(found) == 2
    assert steps(uri, found[TRIAL.id]) == [1, 2, 3]
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_only_what_a_trial_has_a_value_of_is_among_its_parameters(uri, tmp_path):
    tracker = start(uri, "values", tmp_path, varied=["augment.blur", "augment.crop", "recon.weight"])
    trained = Trial(Configuration("trained", {"augment.crop": 0.3, "encoder.equi_fraction": 0.25}), 0)
    for trial in (trained, Trial(Configuration("pixels", None), 0)):
        tracker.trial_started(trial)
    tracker.close("FINISHED", [])
    found = {run.data.tags.get("configuration"): run.data for run in runs(uri, "values").values()}
    assert found["trained"].params == {"augment.crop": "0.3", "recon.weight": "1.0"}
    assert found["trained"].tags["encoder.equi_fraction"] == "0.25" and found["pixels"].params == {}


def test_what_ended_unlogged_before_a_kill_is_logged_on_resume(uri, tmp_path):
    write_json(tmp_path / "trials" / TRIAL.id / EPOCHS, [{"epoch": 3.0, ENDED: 1_700_000_009_000}])
    record = dataclasses.replace(RECORD, wall_s=9.0)
    tracker = start(uri, "unlogged", tmp_path, records=[record])
    tracker.close("FINISHED", [])
    run = runs(uri, "unlogged")[TRIAL.id]
    assert run.data.metrics["Objective/knn"] == 0.75
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_000, 1_700_000_009_000)


@pytest.mark.parametrize("status", ["COMPLETE", "STOPPED", "FAILED"])
def test_a_run_that_has_its_outcome_is_left_as_it_is_on_resume(uri, tmp_path, status):
    name, record = f"ended {status}", dataclasses.replace(RECORD, status=status)
    first = start(uri, name, tmp_path)
    first.trial_started(TRIAL)
    first.trial_ended(TRIAL, record)
    first.close("KILLED", [])
    before = runs(uri, name)[TRIAL.id].info
    start(uri, name, tmp_path, records=[record]).close("FINISHED", [])
    after = runs(uri, name)[TRIAL.id].info
    assert (after.status, after.end_time) == (before.status, before.end_time)


def test_a_trial_that_had_failed_and_is_tried_again_has_its_new_outcome(uri, tmp_path):
    failed = dataclasses.replace(RECORD, status="FAILED", metrics={}, epochs=0, error="CUDA error (3 attempts)")
    tracker = start(uri, "given up", tmp_path)
    tracker.trial_started(TRIAL)
    tracker.trial_ended(TRIAL, failed)
    tracker.close("FINISHED", [])
    assert runs(uri, "given up")[TRIAL.id].info.status == "FAILED"

    resumed = start(uri, "given up", tmp_path)
    train_epochs(resumed, 1, 3)
    resumed.trial_ended(TRIAL, RECORD)
    resumed.close("FINISHED", [])
    run = runs(uri, "given up")[TRIAL.id]
    assert run.info.status == "FINISHED" and run.data.tags["error"] == "" and resumed.dropped == 0
    assert run.data.metrics["Objective/knn"] == 0.75 and steps(uri, run) == [1, 2, 3]


def test_an_experiment_that_was_deleted_is_refused(uri):
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("deleted"))
    with pytest.raises(ValueError, match=r"--tracking-uri is .*: its experiment deleted was deleted: restore it"):
        connect(uri, "deleted")


def test_a_run_that_was_closed_before_its_outcome_was_logged_gets_it_on_resume(uri, tmp_path):
    record = dataclasses.replace(RECORD, status="STOPPED")
    killed = start(uri, "cut off", tmp_path)
    train_epochs(killed, 1, 1)
    killed.close("KILLED", [])
    start(uri, "cut off", tmp_path, records=[record]).close("FINISHED", [])
    run = runs(uri, "cut off")[TRIAL.id]
    assert (run.info.status, run.data.tags["outcome"]) == ("KILLED", "STOPPED")
    assert run.data.metrics["Objective/knn"] == 0.75


@pytest.mark.parametrize("begun", [True, False])
def test_epochs_that_waited_for_the_server_when_the_study_was_killed_are_logged_on_resume(uri, tmp_path, begun):
    name = f"waited {begun}"
    if begun:
        killed = start(uri, name, tmp_path)
        train_epochs(killed, 1, 1)
        killed.close("KILLED", [])
    epochs = [{"epoch": float(epoch), "loss": 1.0 / epoch, ENDED: 1000 + epoch} for epoch in (1, 2, 3)]
    write_json(tmp_path / "trials" / TRIAL.id / EPOCHS, epochs)
    resumed = start(uri, name, tmp_path)
    train_epochs(resumed, 3, 4)
    resumed.close("FINISHED", [])
    run = runs(uri, name)[TRIAL.id]
    assert sorted(steps(uri, run)) == [1, 2, 3, 4]
    assert ENDED not in run.data.metrics


def test_a_server_that_goes_away_loses_nothing(uri, tmp_path, monkeypatch):
    tracker = start(uri, "away", tmp_path)
    calls = []
    log_batch = MlflowClient.log_batch

    def fail_twice(self, *arguments, **named):
        calls.append(None)
        if len(calls) in (2, 3):
            raise ConnectionError("gone")
        return log_batch(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", fail_twice)
    begun = time.monotonic()
    train_epochs(tracker, 1, 3)
    assert time.monotonic() - begun < 0.1  # whoever trains never waits
    tracker.trial_ended(TRIAL, RECORD)
    tracker.close("FINISHED", [])
    assert tracker.dropped == 0
    assert steps(uri, runs(uri, "away")[TRIAL.id]) == [1, 2, 3]


def test_any_number_of_entries_waits_and_a_resume_logs_what_a_stop_left(uri, tmp_path, monkeypatch):
    def away(*arguments, **named):
        raise ConnectionError("gone")

    tracker, epochs = start(uri, "many", tmp_path), 10_500
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_batch", away)
        patched.setattr("eqssl.tracking.study.STOP_S", 0.1)
        train_epochs(tracker, 1, epochs)
        tracker.trial_ended(TRIAL, RECORD)
        assert tracker.waiting >= epochs and tracker.dropped == 0
        tracker.close("KILLED", [], patience_s=1, stopped=lambda: True)
    assert tracker.dropped == epochs + 3  # the start, the end and the study's end too

    metrics = [{"epoch": float(epoch), "loss": 1.0 / epoch, ENDED: 1000 + epoch} for epoch in range(1, epochs + 1)]
    write_json(tmp_path / "trials" / TRIAL.id / EPOCHS, metrics)
    resumed = start(uri, "many", tmp_path, records=[RECORD])
    resumed.close("FINISHED", [])
    run = runs(uri, "many")[TRIAL.id]
    assert resumed.dropped == 0 and run.info.status == "FINISHED"
    assert sorted(steps(uri, run)) == list(range(1, epochs + 1))


def test_a_server_that_is_slower_than_the_patience_gets_all(uri, tmp_path, monkeypatch):
    log_batch = MlflowClient.log_batch

    def slow(*arguments, **named):
        time.sleep(0.2)
        return log_batch(*arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", slow)
    tracker = start(uri, "slow", tmp_path)
    train_epochs(tracker, 1, 10)
    tracker.trial_ended(TRIAL, RECORD)
    tracker.close("FINISHED", [], patience_s=0.1)
    assert tracker.dropped == 0 and steps(uri, runs(uri, "slow")[TRIAL.id]) == list(range(1, 11))


def test_a_resume_asks_for_all_runs_at_once(uri, tmp_path, monkeypatch):
    trials = [Trial(TRIAL.configuration, seed) for seed in range(6)]
    records = [dataclasses.replace(RECORD, trial_id=trial.id, seed=trial.seed) for trial in trials]
    first = start(uri, "asked", tmp_path, records=records)
    first.close("FINISHED", [])
    requests = []
    for name in ("search_runs", "get_run", "get_metric_history", "log_batch"):
        method = getattr(MlflowClient, name)
        counted = lambda *given, _of=method, _name=name, **named: requests.append(_name) or _of(*given, **named)  # noqa: E731
        monkeypatch.setattr(MlflowClient, name, counted)
    start(uri, "asked", tmp_path, records=records).close("FINISHED", [])
    assert sorted(requests) == ["log_batch", "search_runs", "search_runs"]  # the study's run and its end; all trials
    assert {run.info.status for run in runs(uri, "asked").values()} == {"FINISHED"}


def test_what_the_server_refuses_is_counted_and_stops_nothing(uri, tmp_path):
    tracker = start(uri, "refused", tmp_path)
    tracker.epoch_ended(TRIAL, {"epoch": 1.0, "loss?": 1.0})
    tracker.epoch_ended(TRIAL, {"epoch": 2.0, "loss": 1.0})
    tracker.close("FINISHED", [])
    assert tracker.dropped == 1
    assert runs(uri, "refused")["study"].data.metrics == {"tracking/dropped": 1.0}
    assert steps(uri, runs(uri, "refused")[TRIAL.id]) == [2]


@pytest.mark.parametrize("bad", ["http://127.0.0.1:9", "sqlite:////dev/null/mlflow.db", "ftp://somewhere"])
def test_tracking_that_cannot_be_used_is_a_quick_and_clear_error(bad):
    begun = time.monotonic()
    with pytest.raises(ValueError, match="--tracking-uri"):
        connect(bad, "x")
    assert time.monotonic() - begun < 20


WITHOUT = """
import sys
from pathlib import Path
from eqssl.config import RunConfig
from eqssl.study.search.space import Configuration, Trial
from eqssl.tracking.run import track_run
from eqssl.tracking.study import StudyTracker

uri, trial = sys.argv[1], Trial(Configuration("base", {}), 0)
tracker = StudyTracker(uri, "study", [], ["knn"], Path("."))
tracker.ready()
tracker.begin("id", RunConfig(), [])
tracker.trial_started(trial)
tracker.epoch_ended(trial, {"epoch": 1.0})
tracker.close("FINISHED", [], summary={"sentence": "all is well"})
print(tracker.missing, tracker.dropped, tracker.waiting, repr(tracker.behind()))
with track_run(uri, "train", RunConfig()) as log:
    log({"epoch": 1.0})
"""


@pytest.mark.parametrize("error", ["ImportError", "AttributeError", "SystemError"])
def test_without_mlflow_nothing_is_tracked_which_is_said_once(error, tmp_path):
    (tmp_path / "mlflow.py").write_text(f"raise {error}('broken\\nby another package')")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    command = [sys.executable, "-c", WITHOUT, f"sqlite:///{tmp_path}/mlflow.db"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    why = f"MLflow cannot be imported ({error}: broken)"
    assert done.stdout == f"nothing is tracked, since {why} 0 0 ''\n"
    assert done.stderr == f"the run is not tracked: {why}\n"


def test_two_studies_that_begin_at_once_share_a_new_database(tmp_path):
    new = f"sqlite:///{tmp_path}/mlflow.db"
    with ThreadPoolExecutor() as pool:
        ids = list(pool.map(connect, [new, new], ["one", "two"]))
    found = [MlflowClient(new).get_experiment_by_name(name).experiment_id for name in ("one", "two")]
    assert found == [experiment for _, experiment in ids]


def test_studies_that_begin_at_once_share_an_experiment(uri):
    with ThreadPoolExecutor(4) as pool:
        ids = {experiment for _, experiment in pool.map(connect, [uri] * 4, ["meanwhile"] * 4)}
    assert ids == {MlflowClient(uri).get_experiment_by_name("meanwhile").experiment_id}


def test_a_single_run_is_logged_with_its_whole_configuration(uri):
    with track_run(uri, "single", RunConfig()) as log:
        log({"epoch": 1.0, "loss": 0.5})
    with pytest.raises(KeyError), track_run(uri, "single", RunConfig()):
        raise KeyError
    client = MlflowClient(uri)
    done, failed = sorted(
        client.search_runs([client.get_experiment_by_name("single").experiment_id]), key=lambda run: run.info.start_time
    )
    assert (done.info.status, failed.info.status) == ("FINISHED", "FAILED")
    assert done.data.metrics["loss"] == 0.5
    assert done.data.params["recon.weight"] == "1.0" and done.info.run_name.startswith("solids, vicreg, 20")


def test_a_single_run_goes_on_wherever_its_data_are_cached(uri):
    with pytest.raises(KeyError), track_run(uri, "again", BASE):
        raise KeyError
    with track_run(uri, "again", OTHER_CACHE, resume=True):
        pass
    (run,) = runs(uri, "again").values()
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("name", ["100%25 done", "done?"])
def test_a_working_folder_may_have_any_name(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    client, experiment = connect("sqlite:///mlflow.db", "study")
    run = client.create_run(experiment)
    assert client.get_run(run.info.run_id).info.experiment_id == experiment
    assert [path.name for path in folder.glob("mlflow.db*")] == ["mlflow.db"] and list(tmp_path.iterdir()) == [folder]
