"""What Tune's events become, without Ray: progress, attempts, records."""

import asyncio
import errno
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from eqssl.study.execution.nodes import FailingNodes
from eqssl.study.execution.pool import ERROR, MAX_ATTEMPTS, _Events, save_all
from eqssl.study.execution.setup import StudySetup
from eqssl.study.execution.trial import RECORD, record_of
from eqssl.study.listener import Listener
from eqssl.study.search.space import Configuration, Trial

ROOT = Path(__file__).parents[3]
TRIAL = Trial(Configuration.suggested({"recon.weight": 1.0}, 0), 0)


class TuneTrial:
    """A trial of Tune, which counts its failures."""

    trial_id = "tune"

    def __init__(self, folder):
        self.max_failures, self.num_failures = MAX_ATTEMPTS - 1, 0
        self.error_file = str(folder / "error.txt")

    def fails(self, events, error):
        """Fail as in Tune; return whether it is tried again."""
        self.num_failures += 1
        own = (
            str(error) if isinstance(error, RayActorError) else f"Traceback\n  line 1\n{type(error).__name__}: {error}"
        )
        with Path(self.error_file).open("a") as file:
            file.write(f"Failure # {self.num_failures} (occurred at 2030-01-01_00-00-00)\n{own}\n")
        again = self.num_failures <= self.max_failures
        (events.on_trial_recover if again else events.on_trial_error)(0, [self], self)
        return again


class Heard(Listener):
    def __init__(self):
        self.told = []

    def epoch_ended(self, trial, metrics):
        self.told.append(metrics["epoch"])

    def trial_retried(self, trial, error):
        self.told.append(error)

    def trial_ended(self, trial, record):
        self.told.append(record)


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def events(heard, tmp_path):
    searcher = SimpleNamespace(trials={"tune": TRIAL})
    return _Events(searcher, StudySetup(folder=str(tmp_path)), [heard], FailingNodes({"CPU": 1.0}))


def epoch(events, trial, number, **values):
    record = record_of(TRIAL, "STOPPED", epochs=number, metrics={"epoch": float(number)}, **values)
    result = {RECORD: record, "config": {}, "training_iteration": number, "node_ip": "10.0.0.6"}
    events.on_trial_result(0, [trial], trial, result)
    assert result == {RECORD: ""}  # Tune keeps a trial's last result for good


def test_the_third_attempt_without_progress_is_the_last(events, heard, tmp_path):
    trial = TuneTrial(tmp_path)
    epoch(events, trial, 1, history={"1": {"knn": 0.5}})
    assert [trial.fails(events, RuntimeError("out of memory")) for _ in range(3)] == [True, True, False]
    assert heard.told[:3] == [1.0, "RuntimeError: out of memory", "RuntimeError: out of memory"]
    record = heard.told[-1]
    assert (record.status, record.error) == ("FAILED", "RuntimeError: out of memory (3 attempts)")
    assert record.history == {"1": {"knn": 0.5}} and events.unfinished() == []
    assert "line 1" in (tmp_path / "trials" / TRIAL.id / ERROR).read_text()


def test_a_process_that_dies_is_named_so_even_before_it_has_begun(events, heard, tmp_path):
    trial = TuneTrial(tmp_path)
    assert [trial.fails(events, ActorDiedError()) for _ in range(3)] == [True, True, False]
    assert heard.told[-1].error == "its process died (3 attempts)" and heard.told[-1].history == {}


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (
            RayActorError(error_msg="The actor died because its node has died. Node Id: 1\n\tip: 10.0.0.7"),
            "its node died",
        ),
        (RuntimeError("first\nThe actor died"), "The actor died"),
        (RuntimeError(""), "RuntimeError: "),
    ],
)
def test_the_last_line_of_an_error_is_shown(events, heard, tmp_path, error, shown):
    trial = TuneTrial(tmp_path)
    trial.fails(events, error)
    assert heard.told == [shown.strip() + " (on 10.0.0.7)" * ("node" in shown)]


def test_an_import_that_fails_on_a_bad_node_is_shown_with_the_node_and_given_up_after_three(events, heard, tmp_path):
    trial, missing = TuneTrial(tmp_path), ModuleNotFoundError("No module named 'timm'")
    text = "ray::A.__init__() (pid=7, ip=10.0.0.7, actor_id=1)\nModuleNotFoundError: No module named 'timm'"
    error = ActorDiedError(RayTaskError("A.__init__", text, missing, ip="10.0.0.7", pid=7, actor_id="1"))
    assert [trial.fails(events, error) for _ in range(3)] == [True, True, False]
    assert heard.told[0] == "ModuleNotFoundError: No module named 'timm' (on 10.0.0.7)"
    assert heard.told[-1].error == "ModuleNotFoundError: No module named 'timm' (on 10.0.0.7) (3 attempts)"


def test_an_epoch_that_is_new_lets_attempts_be_counted_anew(events, tmp_path):
    trial = TuneTrial(tmp_path)
    for number in (1, 2):
        epoch(events, trial, number)
        assert [trial.fails(events, ActorDiedError()) for _ in range(2)] == [True, True]
    epoch(events, trial, 2)  # as read from the checkpoint again
    assert not trial.fails(events, ActorDiedError())


def test_a_trial_that_the_scheduler_has_ended_is_stopped_with_its_last_epoch(events, heard, tmp_path):
    trial = TuneTrial(tmp_path)
    events.on_trial_start(0, [trial], trial)
    epoch(events, trial, 1, wall_s=3.0, resumed_s=2.0)
    assert [record.epochs for record in events.unfinished()] == [1]
    events.on_trial_complete(0, [trial], trial)
    assert (heard.told[-1].status, heard.told[-1].epochs, heard.told[-1].overhead_s) == ("STOPPED", 1, 0.0)
    complete = record_of(TRIAL, "COMPLETE", epochs=2)
    events.on_trial_result(0, [trial], trial, {RECORD: complete, "node_ip": "10.0.0.6"})  # no epoch's
    events.on_trial_complete(0, [trial], trial)
    assert replace(heard.told[-1], overhead_s=0.0) == complete and len(heard.told) == 3


def test_the_history_is_put_together_from_the_reports(events, heard, tmp_path):
    trial = TuneTrial(tmp_path)
    events.on_trial_start(0, [trial], trial)
    for number in (1, 2, 2, 3):  # once more after an attempt that failed
        epoch(events, trial, number, history={str(number): {"knn": number / 10}})
    events.on_trial_complete(0, [trial], trial)
    assert heard.told[-1].history == {"1": {"knn": 0.1}, "2": {"knn": 0.2}, "3": {"knn": 0.3}}


def test_trials_that_have_ended_cost_a_step_nothing(events, monkeypatch):
    class Counted:
        asked, status = 0, "TERMINATED"

        def is_finished(self):
            Counted.asked += 1
            return self.status == "TERMINATED"

    passed = []
    monkeypatch.setattr(events, "_listeners", [SimpleNamespace(time_passed=lambda *counts: passed.append(counts))])
    trials = [Counted() for _ in range(1000)]
    for trial, status in zip(trials[-3:], ("RUNNING", "RUNNING", "PENDING"), strict=True):
        trial.status = status
    for _ in range(10):
        events.on_step_end(0, trials)
    assert passed == [(2, 1)] * 10 and Counted.asked == 1000 + 9 * 3
    trials[-1].status = "RUNNING"
    events.on_step_end(0, [*trials, trials[-1]])
    assert passed[-1] == (4, 0)


def test_a_trial_without_a_written_record_has_not_ended(events, heard, monkeypatch, tmp_path, caplog):
    class Stopped(Listener):
        def trial_ended(self, trial, record):
            raise OSError(errno.ENOSPC, "No space left on device")

    trial = TuneTrial(tmp_path)
    epoch(events, trial, 1)
    monkeypatch.setattr(events, "_listeners", [Stopped(), heard])
    events.on_trial_complete(0, [trial], trial)
    assert heard.told == [1.0] and len(events.unfinished()) == 1
    assert "cannot be written: [Errno 28] No space left" in caplog.text


@pytest.mark.slow
def test_a_wait_for_trials_ends_with_tune_or_after_its_time():
    import ray

    class Silent:
        """Trials that never answer."""

        async def stop(self):
            await asyncio.Event().wait()

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        notice, ended = ray.remote(Silent).options(num_cpus=0).remote(), threading.Event()
        begun = time.monotonic()
        save_all(notice, ended, most_s=1.0)
        assert 1.0 <= time.monotonic() - begun < 60
        waiting = threading.Thread(target=save_all, args=(notice, ended, 3600.0))
        waiting.start()
        ended.set()
        waiting.join(60)
        assert not waiting.is_alive()
    finally:
        ray.shutdown()


BROKEN_TRACKERS = """
from eqssl.study.execution.pool import _hide_broken_trackers
_hide_broken_trackers()
from ray.air._internal.usage import _count_callbacks  # what Tune calls before the first trial
_count_callbacks([])
print("fine")
"""


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["mlflow", "wandb"])
def test_a_tracker_that_raises_when_imported_does_not_end_tune(tmp_path, broken):
    (tmp_path / f"{broken}.py").write_text("raise TypeError('Descriptors cannot be created directly.')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-c", BROKEN_TRACKERS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr
