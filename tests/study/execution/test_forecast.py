"""Forecasts: their arithmetic, the timing behind them, and who is asked about them."""

import io
import os
import pty
import subprocess
import sys
import time
from dataclasses import replace as change
from pathlib import Path

import pytest
import torch
from rich.console import Console

from eqssl.config import replace
from eqssl.data import load_data, register_source
from eqssl.study import StudyOptions
from eqssl.study.execution.preflight import approve, duration, time_epoch, try_run
from eqssl.study.execution.setup import StudySetup
from eqssl.study.store.lock import RunLock
from eqssl.training.context import LocalContext
from eqssl.training.loop import Run

ROOT = Path(__file__).parents[3]
ASK = """
import sys
from rich.console import Console
from eqssl.study import StudyOptions
from eqssl.study.execution.preflight import approve

try:
    approve(1, {wall_s}, 1, StudyOptions(yes={yes}), Console(quiet={quiet}, highlight=False))
    print("started")
except ValueError as error:
    print(error)
"""


def test_the_forecast_is_the_arithmetic_that_it_shows():
    console = Console(file=io.StringIO(), width=60)
    approve(60, 25.0, 2, StudyOptions(), console)
    assert console.file.getvalue() == (
        "forecast: 60 epochs x 25 s / 2 at a time = 12 min, starts and evaluations not counted\n"
    )


@pytest.mark.parametrize(("seconds", "text"), [(90, "90 s"), (600, "10 min"), (9000, "2.5 hours")])
def test_durations_are_told_in_the_unit_that_fits(seconds, text):
    assert duration(seconds) == text


def test_a_forecast_above_the_limit_is_refused_with_both():
    console, options = Console(file=io.StringIO()), StudyOptions(max_hours=0.5, yes=True)
    approve(1, 1800.0, 1, options, console)
    with pytest.raises(ValueError, match=r"--max-hours is 0.5, and the forecast is 2.5 hours"):
        approve(5, 1800.0, 1, options, console)
    with pytest.raises(ValueError, match=r"--max-hours is -1"):
        StudyOptions(max_hours=-1.0)


def on_terminal(answer: str, **values) -> str:
    """Return what is shown to someone at a terminal who types this."""
    ours, theirs = pty.openpty()
    script = ASK.format(**{"wall_s": 3600.0, "yes": False, "quiet": False} | values)
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdin=theirs, stdout=theirs) as process:
        os.close(theirs)
        os.write(ours, answer.encode())
        process.wait(60)
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    return shown


@pytest.mark.parametrize(
    ("answer", "end"), [("y\n", "started"), ("n\n", "not started"), ("\n", "not started"), ("\x04", "not started")]
)
def test_on_a_terminal_a_long_study_asks(answer, end):
    shown = on_terminal(answer)
    assert "continue? [y/N]" in shown and end in shown.rpartition("[y/N]")[2]
    assert ("not started" in shown) == (end == "not started")


@pytest.mark.parametrize("values", [{"wall_s": 1800.0}, {"yes": True}, {"quiet": True}])
def test_nobody_is_asked_about_a_short_study_or_with_yes_or_where_nothing_is_shown(values):
    shown = on_terminal("n\n", **values)
    assert "continue?" not in shown and "started" in shown and "not started" not in shown


def test_without_a_terminal_it_goes_on():
    script = ASK.format(wall_s=3600.0, yes=False, quiet=False)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, input="n\n", capture_output=True, text=True)
    assert done.stdout.startswith("forecast: ") and done.stdout.endswith("started\n")


@pytest.mark.slow
def test_the_timing_is_that_of_real_epochs(base):
    """Judged by a source so slow that nothing else counts."""
    torch.set_num_threads(1)
    config, image_s = replace(base, {"train.epochs": 9, "train.batch_size": 8}), 0.02
    data = load_data(config.data)

    class Slow:
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def take(self, indices):
            time.sleep(image_s * len(indices))
            return self.images.take(indices)

    slow = change(data, train=change(data.train, images=Slow(data.train.images)))
    timed_s = time_epoch(config, slow, workers=1, gpu=False)
    run = Run(config, LocalContext(), slow)
    run.next_epoch()
    epoch_s = run.next_epoch()["train_s"]
    assert epoch_s > 2 * image_s * len(data.train)
    assert timed_s == pytest.approx(epoch_s, rel=0.4)
    assert time_epoch(config, slow, workers=2, gpu=False) == pytest.approx(timed_s / 2, rel=0.4)


def test_what_is_compiled_is_compiled_before_it_is_timed(base, monkeypatch):
    """Judged by a compiler that takes two seconds and changes nothing."""
    monkeypatch.setattr("eqssl.study.execution.preflight.STEPS_S", 0.2)
    compiled = []

    def slow(*sizes):
        def encode(encoder, images):
            if not compiled:
                time.sleep(2)
                compiled.append(True)
            return encoder.tokens(images)

        return encode

    monkeypatch.setattr("eqssl.models.model.compiled_tokens", slow)
    config = replace(base, {"train.compile": True, "train.batch_size": 8})
    assert time_epoch(config, load_data(config.data), workers=1, gpu=False) < 2 and compiled


def test_a_worker_s_share_is_cut_into_as_many_parts_as_the_batch(base):
    config = replace(base, {"train.batch_size": 30, "train.grad_accum_steps": 3})  # of 15 images, or of 7
    data = load_data(config.data)
    for workers in (2, 4):
        assert time_epoch(config, data, workers=workers, gpu=False) > 0


@pytest.mark.parametrize("epochs", [0, 3])
def test_one_step_an_epoch_can_be_timed(base, epochs):
    data = load_data(base.data)
    config = replace(base, {"train.batch_size": len(data.train), "train.epochs": epochs})
    assert time_epoch(config, data, workers=1, gpu=False) > 0


def test_a_step_that_fails_costs_the_forecast_and_not_the_study(base, tmp_path):
    data = load_data(base.data)

    class Broken:
        def __len__(self):
            return len(data.train)

        def take(self, indices):
            raise RuntimeError("the disk is on fire")

    register_source("broken", lambda config: change(data, train=change(data.train, images=Broken())))
    run = replace(base, {"data.source": "broken"})
    with RunLock(tmp_path / "study") as lock:
        setup, token = StudySetup(folder=str(tmp_path / "study")), lock.run.token
        found, untimed = (try_run(setup, run, token, 1, timed=timed) for timed in (True, False))
    assert found["epoch_s"] is None and found["name"] == "solids"
    assert "no forecast" in found["warnings"][-1] and "the disk is on fire" in found["warnings"][-1]
    assert untimed["warnings"] == found["warnings"][:-1]
