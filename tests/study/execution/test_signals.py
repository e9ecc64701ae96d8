import signal
import time

import pytest

from eqssl.study.execution.signals import Interrupted, StopSignals


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
def test_first_signal_stops_tune_and_the_second_everything(tune_runs, number):
    with StopSignals() as signals:
        signal.raise_signal(number)
        wait_for(tune_runs)
        assert (signals.interruption.number, tune_runs) == (number, [signal.SIGUSR1])
        with pytest.raises(Interrupted) as second:
            signal.raise_signal(number)
    assert second.value.number == number


def test_without_tune_the_first_signal_interrupts():
    with pytest.raises(Interrupted, match="SIGTERM"), StopSignals():
        signal.raise_signal(signal.SIGTERM)


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
