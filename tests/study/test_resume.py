"""A study that is killed and stopped on the way ends like one that was not."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from eqssl.config import RunConfig, replace
from eqssl.training import checkpoint
from eqssl.training.loop import train
from tests.head import kill_session, session

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STUDY = """
import sys
sys.path.insert(0, {root!r})
from eqssl.study import Study, log_uniform, main

ROWS = {{"pixels": None, "base": {{"encoder.equi_fraction": 0.0, "recon.weight": 0.0}}}}
if __name__ == "__main__":
    sys.exit(main(Study(name="toy", question="?", space={{"recon.weight": log_uniform(0.1, 1.0)}}, rows=ROWS)))
"""
EPOCHS = 4
# Its one epoch takes a minute or more, and its first step makes a file.
UNHURRIED = """
import sys
import time
sys.path.insert(0, {root!r})
from eqssl import register_method
from eqssl.methods.vicreg import VICReg
from eqssl.study import Study, main


class Unhurried(VICReg):
    def forward(self, pair):
        time.sleep(1)
        open({marker!r}, "w").close()
        return super().forward(pair)


if __name__ == "__main__":
    register_method("unhurried", Unhurried)
    sys.exit(main(Study(name="toy", question="?", space={{}}, rows={{}}, configs=1)))
"""


class Process:
    """The study as a command of its own, in a session of its own."""

    started: ClassVar[list[subprocess.Popen]] = []

    def __init__(self, folder: Path, cache: str, *more: str, study: str = STUDY, **values: str):
        script = folder / "toy.py"
        script.write_text(study.format(root=str(ROOT), marker=str(folder / "results" / "toy" / "begun")))
        options = {"data.cache": cache, "data.objects": 16, "train.batch-size": 32, "train.epochs": EPOCHS}
        options |= {"evaluate.train-images": 64, "evaluate.images": 16, "seeds": 1, "configs": 2}
        options |= {"tracking-uri": f"sqlite:///{folder}/mlflow.db", "output": folder / "results"}
        options |= {name.replace("_", "-"): value for name, value in values.items()}
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self.log = (folder / "log.txt").open("a+")
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.process = subprocess.Popen(
            [sys.executable, script, *arguments, *more],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=environment | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self.started.append(self.process)

    def wait_for(self, pattern: str, folder: Path, count: int) -> None:
        """Wait until the study's folder has so many files of a pattern."""
        deadline = time.monotonic() + 400  # of a busy machine
        while len(list((folder / "results" / "toy").glob(pattern))) < count:
            assert time.monotonic() < deadline
            assert self.process.poll() is None, self.text()
            time.sleep(0.05)

    def end(self, number: int | None = None) -> int:
        """Send a signal, SIGTERM to all of Ray's processes too, and wait for the exit code."""
        if number == signal.SIGTERM:  # systemd and Slurm signal a control group, GNU timeout a group, the child twice
            for pid in [self.process.pid, *session(self.process)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        elif number is not None:
            self.process.send_signal(number)
        return self.process.wait(240)

    def text(self) -> str:
        self.log.seek(0)
        return self.log.read()


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left():
    yield
    for process in Process.started:
        kill_session(process)


@pytest.fixture(scope="module")
def story(tmp_path_factory, base):
    """Kill the study in the middle of a trial, stop it after two, finish it; return its folder and what it said."""
    folder, cache = tmp_path_factory.mktemp("story"), base.data.cache
    first = Process(folder, cache)
    first.wait_for("trials/*/checkpoint/checkpoint.pt", folder, 1)
    codes = [first.end(signal.SIGKILL)]
    second = Process(folder, cache, "--resume")
    second.wait_for("trials/*/result.json", folder, 2)
    start = time.monotonic()
    codes.append(second.end(signal.SIGTERM))
    stopped_s = time.monotonic() - start
    third = Process(folder, cache, "--resume")
    codes.append(third.end())
    return folder, codes, stopped_s, third.text()


def test_exit_codes_tell_what_happened(story):
    _, codes, stopped_s, text = story
    assert codes == [-signal.SIGKILL, 128 + signal.SIGTERM, 0], text
    assert stopped_s < 20
    assert "continue with the same command and --resume" in text
    assert "\x1b[" not in text


def test_every_trial_is_there_once_and_as_if_never_interrupted(story):
    folder, _, _, _ = story
    summary = json.loads((folder / "results" / "toy" / "summary.json").read_text())
    trials = {t["configuration"]: t for t in summary["trials"]}
    assert len(summary["trials"]) == 4
    assert trials.keys() == {"pixels", "base", "weight 0.1", "weight 1"}
    torch.set_num_threads(1)
    for name in ("base", "weight 0.1", "weight 1"):
        options = {option: value for option, value in summary["options"].items() if option in flat_options()}
        alone = train(replace(RunConfig(), {**options, **trials[name]["params"]})).metrics
        timeless = {figure: value for figure, value in alone.items() if not figure.endswith("_s")}
        assert {figure: trials[name]["metrics"][figure] for figure in timeless} == timeless
        assert trials[name]["epochs"] == EPOCHS


def flat_options() -> set[str]:
    from eqssl.config import flatten

    return set(flatten(RunConfig()))


def test_mlflow_has_every_trial_once_with_increasing_steps(story):
    from mlflow import MlflowClient

    folder, _, _, _ = story
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    ids = [run.data.tags["trial_id"] for run in runs if run.data.tags["kind"] == "trial"]
    assert len(ids) == len(set(ids)) == len(runs) - 1 == 4
    for run in runs:
        if run.data.tags["kind"] == "trial" and run.data.tags["configuration"] != "pixels":
            steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
            assert steps == sorted(set(steps))
            assert steps[-1] == EPOCHS


def test_a_changed_study_is_refused_with_the_difference(story, base):
    folder, _, _, _ = story
    other = Process(folder, base.data.cache, "--resume", "--train.lr", "0.5")
    assert other.end() == 2
    assert "train.lr: 0.001 there, 0.5 now" in other.text()


SEARCH = {"configs": "6", "seeds": "3", "sampler": "tpe", "pruner": "halving", "concurrency": "1"}
SEARCH |= {"seed-schedule": "halving"}


def certificate(folder: Path) -> dict[str, tuple]:
    """Return trial id -> all that a trial gave, but for times."""
    summary = json.loads((folder / "results" / "toy" / "summary.json").read_text())
    trials = {t["trial_id"]: t for t in summary["trials"]}
    assert len(trials) == len(summary["trials"]) <= 4 + 10  # fewer if fewer survive than a stage may have
    timeless = {i: {f: v for f, v in t["metrics"].items() if not f.endswith("_s")} for i, t in trials.items()}
    return {i: (t["configuration"], t["status"], t["epochs"], t["history"], timeless[i]) for i, t in trials.items()}


def test_a_hundred_queued_trials_hold_the_driver_under_a_gigabyte_and_a_half(tmp_path, base):
    process = Process(tmp_path, base.data.cache, configs="100", **{"train.epochs": "1"})
    process.wait_for("trials/*/result.json", tmp_path, 3)
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    peak_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert process.end(signal.SIGTERM) == 143
    assert re.search(r"^\[3/10\d\]", process.text(), re.MULTILINE)
    assert peak_kb < 1.5 * 1024**2


def test_a_study_that_is_stopped_saves_the_trials_that_run_within_an_epoch(tmp_path, base):
    options = {"study": UNHURRIED, "train.epochs": "1", "train.batch_size": "8"}
    options |= {"method.name": "unhurried", "data.objects": "60"}
    process = Process(tmp_path, base.data.cache, "--yes", configs="1", **options)
    process.wait_for("trials/*/trial.json", tmp_path, 1)
    (tmp_path / "results" / "toy" / "begun").unlink()  # by the steps of the forecast
    process.wait_for("begun", tmp_path, 1)
    time.sleep(3)
    start = time.monotonic()
    assert process.end(signal.SIGTERM) == 143, process.text()
    assert time.monotonic() - start < 60  # idle 15; Ray's own processes end slowly on a busy machine
    (path,) = (tmp_path / "results" / "toy").glob("trials/*/checkpoint")
    state = checkpoint.load(path)
    assert state["run"]["epoch"] == 0 and state["run"]["step"] > 0
    again = Process(tmp_path, base.data.cache, "--yes", "--resume", configs="1", **options)
    assert again.end() == 0, again.text()
    (trial,) = json.loads((tmp_path / "results" / "toy" / "summary.json").read_text())["trials"]
    assert trial["resumed_s"] > 0 and trial["status"] == "COMPLETE"


def test_a_search_that_was_killed_anywhere_ends_as_the_uninterrupted_one(tmp_path_factory, base):
    whole, cut = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("cut")
    uninterrupted = Process(whole, base.data.cache, **SEARCH)  # meanwhile, on a core of its own
    for resumed, count, number in ((False, 5, signal.SIGKILL), (True, 10, signal.SIGINT)):
        process = Process(cut, base.data.cache, *["--resume"] * resumed, **SEARCH)
        process.wait_for("trials/*/result.json", cut, count)
        assert process.end(number) in (-number, 128 + number), process.text()
    last = Process(cut, base.data.cache, "--resume", **SEARCH)
    assert last.end() == 0, last.text()
    assert uninterrupted.end() == 0, uninterrupted.text()
    assert certificate(cut) == certificate(whole)
    assert {outcome[1] for outcome in certificate(whole).values()} == {"COMPLETE", "STOPPED"}
