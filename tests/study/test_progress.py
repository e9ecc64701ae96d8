import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from eqssl.config import RunConfig, replace
from eqssl.study import progress as module
from eqssl.study.progress import StudyProgress
from eqssl.study.search.space import Configuration, Trial
from eqssl.study.store.records import TrialRecord

TRIAL = Trial(Configuration.suggested({"recon.weight": 0.5}, 0), 1)

SUGGESTIONS = SimpleNamespace(total=3, ended=1, work=lambda: 22, base=RunConfig(), objectives=["knn"])


def run(console, status="COMPLETE", **values) -> str:
    with StudyProgress(console, SUGGESTIONS, lambda: "none comes") as progress:
        progress.trial_started(TRIAL)
        for epoch in range(1, 11):
            progress.epoch_ended(TRIAL, {"epoch": float(epoch), "loss": 0.5})
        progress.trial_ended(TRIAL, record(TRIAL, status, **values))
    return console.file.getvalue()


def record(trial, status="COMPLETE", **values) -> TrialRecord:
    return TrialRecord(
        trial_id=trial.id,
        configuration=trial.configuration.name,
        number=0,
        params={},
        seed=trial.seed,
        status=status,
        metrics={"knn": 0.75},
        **values,
    )


def test_plain_lines_without_terminal_codes():
    text = run(Console(file=io.StringIO(), width=140))
    assert text == "[2/3] weight 0.5 / seed 1: knn 0.750 (0.0 s); about 0 s left\n"


def test_a_failure_says_why():
    text = run(Console(file=io.StringIO(), width=140), "FAILED", error="FloatingPointError: [bold]nan[/bold]")
    assert "FAILED: FloatingPointError: [bold]nan[/bold]" in text


@pytest.mark.parametrize("width", [60, 140])
def test_a_bar_on_a_terminal(width):
    text = run(Console(file=io.StringIO(), force_terminal=True, width=width))
    assert "\x1b[" in text
    assert "2/3" in text


def test_a_failed_attempt_is_told_when_it_happens():
    console = Console(file=io.StringIO(), width=60)
    with StudyProgress(console, SUGGESTIONS, lambda: "none comes") as progress:
        progress.trial_retried(TRIAL, "RuntimeError: out of memory [0]")
    assert console.file.getvalue() == "weight 0.5 / seed 1: RuntimeError: out of memory [0]; tried again\n"


@pytest.fixture
def clock(monkeypatch):
    """Return a list with the time, in seconds."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_every_minute_a_line_says_what_runs_how_far_how_long_and_what_is_waited_for(clock):
    console = Console(file=io.StringIO(), width=140)
    away = []
    longer = SimpleNamespace(**vars(SUGGESTIONS) | {"base": replace(RunConfig(), {"train.epochs": 12})})
    with StudyProgress(console, longer, lambda: "none comes", lambda: "".join(away)) as progress:
        for seed in range(5):
            progress.trial_started(Trial(TRIAL.configuration, seed))
        clock[0] += 20
        progress.epoch_ended(TRIAL, {"epoch": 1.0, "loss": 0.5})
        clock[0] += 39
        progress.time_passed(5, 0)
        assert console.file.getvalue() == ""
        clock[0] += 1
        progress.time_passed(5, 0)
        waited, began = "weight 0.5 / seed 1: epoch 2 of 12 for 40 s", "weight 0.5 / seed 0: epoch 1 of 12 for 60 s"
        third = "weight 0.5 / seed 2: epoch 1 of 12 for 60 s"
        assert console.file.getvalue() == f"[1/3] after 60 s: 5 running ({began}; {waited}; {third}; 2 others)\n"
        away.append("7 entries waiting for http://tracking")
        clock[0] += 60
        progress.time_passed(0, 3)
        line = console.file.getvalue().splitlines()[1]
        assert line.endswith("3 waiting for a node: none comes, 7 entries waiting for http://tracking")


def test_workers_with_other_versions_are_named_once(monkeypatch):
    monkeypatch.setattr(module, "worker_environment", lambda: {"torch": "2.13", "ray": "2.60"})
    console = Console(file=io.StringIO(), width=140)
    text = run(console, environment={"torch": "2.13", "ray": "2.60"})
    assert "warning" not in text
    text = run(console, environment={"torch": "2.15", "ray": "2.60"})
    assert text.count("warning: weight 0.5 / seed 1 ran with other versions") == 1
    assert "the study's own process: torch 2.15 (here 2.13)\n" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_trials_that_wait_are_told_of_and_long_trainings_too(monkeypatch, terminal):
    console = Console(file=io.StringIO(), width=60, force_terminal=terminal)
    with StudyProgress(console, SUGGESTIONS, lambda: "none comes") as progress:
        progress.time_passed(2, 6)
        assert "running" not in console.file.getvalue()
        monkeypatch.setattr(module, "QUIET_S", 0.0)
        progress.time_passed(2, 6)
        assert "[1/3] after 0 s: 2 running, 6 waiting for a node: none comes\n" in console.file.getvalue()
        progress.time_passed(2, 0)
        assert ("2 running\n" in console.file.getvalue()) is not terminal  # where a bar shows it


def test_the_time_left_goes_by_the_pace_of_epochs_without_the_start(clock):
    console = Console(file=io.StringIO(), width=140)
    epochs, trials = RunConfig().train.epochs, [Trial(TRIAL.configuration, seed) for seed in (1, 2)]
    two = SimpleNamespace(**vars(SUGGESTIONS) | {"total": 2, "ended": 0, "work": lambda: 2 * (epochs + 1)})
    with StudyProgress(console, two, lambda: "") as progress:
        for trial in trials:
            progress.trial_started(trial)
        clock[0] += 60  # imports, data
        for epoch in range(1, 6):
            clock[0] += 10
            progress.epoch_ended(trials[0], {"epoch": float(epoch)})
    assert progress._time_left() == f"about {module.duration(10 * (2 * (epochs + 1) - 5))} left"


def test_the_time_left_does_not_go_by_rows_that_are_not_trained(clock):
    base, epochs = RunConfig(), RunConfig().train.epochs
    untrained = [Trial(Configuration("random", {"train.epochs": 0}), seed) for seed in range(3)]
    trained = [Trial(TRIAL.configuration, seed) for seed in (1, 2)]
    work = 3 + 2 * (epochs + 1)
    five = SimpleNamespace(**vars(SUGGESTIONS) | {"total": 5, "ended": 0, "work": lambda: work, "base": base})
    with StudyProgress(Console(file=io.StringIO()), five, lambda: "") as progress:
        for trial in untrained:
            progress.trial_started(trial)
            clock[0] += 1
            progress.trial_ended(trial, record(trial))
            assert progress._time_left() == ""
        for trial in trained:
            progress.trial_started(trial)
        for trial in trained:
            clock[0] += 1
            progress.epoch_ended(trial, {"epoch": 1.0})
            assert progress._time_left() == ""  # both end at about the same time
        clock[0] += 39
        progress.epoch_ended(trained[0], {"epoch": 2.0})
    assert progress._time_left() == f"about {module.duration((work - 3 - 3) * 40 / 2)} left"
