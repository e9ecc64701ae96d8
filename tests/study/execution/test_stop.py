import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from eqssl import signals as module
from eqssl.signals import Interrupted
from eqssl.study.execution.stop import StopSignals, hold_sigterm


@pytest.fixture
def tune_runs():
    """Stand in for Tune, which takes SIGUSR1 while it runs."""
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    yield heard
    signal.signal(signal.SIGUSR1, before)


def wait_for(heard):
    deadline = time.monotonic() + 20
    while not heard:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_stops_tune_and_the_second_everything_if_it_is_no_repetition(tune_runs, number, monkeypatch):
    with StopSignals() as signals:
        signal.raise_signal(number)
        signal.raise_signal(number)  # as GNU timeout does
        wait_for(tune_runs)
        assert (signals.interruption.number, tune_runs) == (number, [signal.SIGUSR1])
        monkeypatch.setattr(module, "REPEAT_S", 0.0)
        with pytest.raises(Interrupted) as second:
            signal.raise_signal(number)
    assert second.value.number == number


def test_without_tune_the_first_signal_interrupts():
    with pytest.raises(Interrupted, match="SIGTERM"), StopSignals():
        signal.raise_signal(signal.SIGTERM)


def test_after_a_signal_to_a_complete_study_the_next_one_does_not_start(tune_runs):
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signals.postpone()
    with pytest.raises(Interrupted, match="SIGTERM"), StopSignals():
        pytest.fail("it starts")
    with StopSignals() as signals:
        signals.postpone()
    with StopSignals():
        pass


def test_sigterm_does_not_reach_processes_that_were_started_meanwhile_but_this_one():
    with pytest.raises(Interrupted, match="SIGTERM"), StopSignals(), hold_sigterm():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as `ray.init` does
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        child.terminate()
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    child.communicate(b"\n")
    assert child.returncode == 0


def test_the_exit_of_rays_own_handler_is_a_stop():
    with pytest.raises(Interrupted, match="SIGTERM"), StopSignals(), hold_sigterm():
        sys.exit(signal.SIGTERM)
    with pytest.raises(SystemExit), StopSignals(), hold_sigterm():
        sys.exit(2)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_what_tune_leaves_behind_does_not_stop_the_next_study():
    with StopSignals():
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
    with pytest.raises(Interrupted), StopSignals():
        signal.raise_signal(signal.SIGTERM)


def test_the_study_itself_stops_as_a_signal_would_and_says_why(tune_runs):
    with StopSignals() as signals, signals.after(0.05 / 3600):
        wait_for(tune_runs)
        assert signals.interruption.number == signal.SIGTERM
        signals.stop("another reason")  # once is enough
    assert (tune_runs, str(signals.interruption)) == ([signal.SIGUSR1], "--max-hours 1.38889e-05")


def test_without_tune_it_interrupts_with_the_reason():
    with pytest.raises(Interrupted, match="--max-hours 0") as stop, StopSignals() as signals, signals.after(0.0):
        time.sleep(20)
    assert stop.value.number == signal.SIGTERM


def test_more_hours_than_a_clock_can_wait_are_no_limit(monkeypatch):
    failed = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    with StopSignals() as signals, signals.after(1e300):
        time.sleep(0.1)
    assert not failed and signals.interruption is None


def test_what_ends_in_time_is_not_stopped(tune_runs):
    with StopSignals() as signals:
        with signals.after(0.1 / 3600):
            pass
        time.sleep(0.2)
    assert signals.interruption is None and not tune_runs


@pytest.mark.parametrize("answers", [True, False])
def test_trials_save_before_tune_is_stopped(tune_runs, answers):
    called = []

    def save():
        called.append(list(tune_runs))
        if not answers:
            raise TimeoutError("a trial does not answer")

    with StopSignals() as signals:
        signals.before_stop = save
        signal.raise_signal(signal.SIGTERM)
        wait_for(tune_runs)
    assert (called, tune_runs) == ([[]], [signal.SIGUSR1])


def test_tune_has_ended_only_when_no_thread_asks_trials_to_save(tune_runs):
    asked, ended = threading.Event(), threading.Event()

    def save():
        asked.set()
        ended.wait(20)

    with StopSignals() as signals:
        signals.before_stop = save
        signal.raise_signal(signal.SIGTERM)
        assert asked.wait(20)
        threading.Timer(0.1, ended.set).start()
        signals.tune_ended()
        assert tune_runs == [signal.SIGUSR1]
    assert signals.before_stop is None


def test_handlers_are_put_back_only_after_tune_was_stopped(tune_runs):
    ended = threading.Event()
    with StopSignals() as signals:
        signals.before_stop = lambda: ended.wait(20)
        signal.raise_signal(signal.SIGTERM)
        threading.Timer(0.1, ended.set).start()
    assert tune_runs == [signal.SIGUSR1]
