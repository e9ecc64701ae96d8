"""Tracking by a real server of MLflow: many trials at once, and outages."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient

from eqssl.config import RunConfig
from eqssl.study.record import TrialRecord
from eqssl.study.space import Configuration, Trial
from eqssl.tracking import StudyTracker
from tests.mlflow_server import mlflow_server
from tests.storage import Proxy

pytestmark = pytest.mark.slow
PATIENCE_S = 120.0  # other work may hold this machine
TRIALS, EPOCHS = 32, 5


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as port:
        yield port


@pytest.fixture(scope="module")
def client(server) -> MlflowClient:
    return MlflowClient(f"http://127.0.0.1:{server}")


@pytest.fixture
def proxy(server):
    proxy = Proxy(server)
    yield proxy
    proxy.away()


def start(port: int, name: str, folder: Path, varied: list[str]) -> StudyTracker:
    tracker = StudyTracker(f"http://127.0.0.1:{port}", name, varied, folder)
    tracker.ready()
    tracker.begin(name, RunConfig(), [], [])
    return tracker


def suggested(number: int, **more) -> Trial:
    return Trial(Configuration.suggested({"recon.weight": 0.5 + number, **more}, number), 1)


def log_epochs(tracker: StudyTracker, trial: Trial, first: int, last: int) -> None:
    for epoch in range(first, last + 1):
        tracker.epoch_ended(trial, {"epoch": float(epoch), "loss": 1 / epoch})


def end(tracker: StudyTracker, trial: Trial, **metrics: float) -> None:
    configuration = trial.configuration
    record = TrialRecord(
        trial_id=trial.id, configuration=configuration.name, number=configuration.number,
        params=configuration.overrides or {}, seed=trial.seed, status="COMPLETE", epochs=EPOCHS, metrics=metrics,
    )  # fmt: skip
    tracker.trial_ended(trial, record)


def tracked(client: MlflowClient, name: str) -> tuple[list, list]:
    """Return the parents and the children that an experiment has."""
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    return tuple([run for run in runs if run.data.tags["kind"] == kind] for kind in ("study", "trial"))


def steps(client: MlflowClient, run, metric: str = "loss") -> list[int]:
    return [entry.step for entry in client.get_metric_history(run.info.run_id, metric)]


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_trials_that_log_at_once_lose_nothing(server, client, tmp_path, capsys):
    tracker = start(server, "crowd", tmp_path, ["recon.weight"])
    trials = [suggested(number) for number in range(TRIALS)]
    together = threading.Barrier(TRIALS)

    def run(trial: Trial) -> None:
        together.wait()
        tracker.trial_started(trial)
        log_epochs(tracker, trial, 1, EPOCHS)
        end(tracker, trial, knn=trial.configuration.number / TRIALS)

    with ThreadPoolExecutor(TRIALS) as pool:
        list(pool.map(run, trials))
    tracker.close("FINISHED", [], PATIENCE_S)
    assert tracker.dropped == 0
    assert capsys.readouterr().out == ""  # MLflow would write two lines a run into the study's progress
    (parent,), children = tracked(client, "crowd")
    by_trial = {child.data.tags["trial_id"]: child for child in children}
    assert len(children) == TRIALS and by_trial.keys() == {trial.id for trial in trials}
    for number, trial in enumerate(trials):
        child = by_trial[trial.id]
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.params == {"recon.weight": str(0.5 + number), "seed": "1"}
        assert child.data.metrics["final/knn"] == number / TRIALS
        history = client.get_metric_history(child.info.run_id, "loss")
        assert [(entry.step, entry.value) for entry in history] == [(n, 1 / n) for n in range(1, EPOCHS + 1)]


def test_a_server_that_is_away_for_a_while_costs_no_time_and_no_epoch(proxy, client, tmp_path):
    tracker, trial = start(proxy.port, "outage", tmp_path, ["recon.weight"]), suggested(0)
    tracker.trial_started(trial)
    log_epochs(tracker, trial, 1, 2)
    wait_until(lambda: [steps(client, child) for child in tracked(client, "outage")[1]] == [[1, 2]])
    proxy.away()
    calls = []
    for epoch in range(3, EPOCHS):
        begun = time.monotonic()
        log_epochs(tracker, trial, epoch, epoch)
        calls.append(time.monotonic() - begun)
        time.sleep(1)
    assert max(calls) < 0.5
    assert steps(client, tracked(client, "outage")[1][0]) == [1, 2]
    proxy.back()
    log_epochs(tracker, trial, EPOCHS, EPOCHS)
    end(tracker, trial, knn=0.5)
    tracker.close("FINISHED", [], PATIENCE_S)
    assert tracker.dropped == 0
    (parent,), (child,) = tracked(client, "outage")
    assert steps(client, child) == list(range(1, EPOCHS + 1))
    assert child.data.metrics["final/knn"] == 0.5
    assert parent.info.status == child.info.status == "FINISHED"


def test_what_the_server_took_is_not_logged_again_where_its_answer_was_lost(proxy, client, tmp_path):
    proxy.lose_answers(b"runs/create", b"runs/create", b'"loss"', b'"final/knn"')
    tracker, trial = start(proxy.port, "unanswered", tmp_path, ["recon.weight"]), suggested(0)
    tracker.trial_started(trial)
    log_epochs(tracker, trial, 1, EPOCHS)
    end(tracker, trial, knn=0.5)
    tracker.close("FINISHED", [], PATIENCE_S)
    assert proxy.unanswered == [] and tracker.dropped == 0
    _, (child,) = tracked(client, "unanswered")
    assert len(tracked(client, "unanswered")[0]) == 1
    assert steps(client, child) == list(range(1, EPOCHS + 1))
    assert steps(client, child, "final/knn") == [EPOCHS]


def test_a_server_that_stays_away_is_asked_now_and_then_and_what_is_lost_is_counted(proxy, client, tmp_path):
    tracker, trial = start(proxy.port, "gone", tmp_path, ["recon.weight"]), suggested(0)
    log_epochs(tracker, trial, 1, 1)
    wait_until(lambda: [steps(client, child) for child in tracked(client, "gone")[1]] == [[1]])
    proxy.away()
    log_epochs(tracker, trial, 2, EPOCHS)
    begun, used = time.monotonic(), time.process_time()
    tracker.close("FINISHED", [], patience_s=3)
    assert 3 < time.monotonic() - begun < 10
    assert time.process_time() - used < 1
    assert tracker.dropped == EPOCHS  # all but the first, and the end of the study
