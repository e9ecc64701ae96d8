"""`ray job submit` against a real head with dashboard and token authentication."""

import json
import subprocess
import sys
import time

import pytest

from tests.head import ROOT, Head

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def head():
    head = Head(["--num-cpus", "2"], environment={"RAY_JOB_STOP_WAIT_TIME_S": "60"})
    yield head
    head.end()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return the options of the smoke study and the folder of its results."""
    folder = tmp_path_factory.mktemp("job")
    options = [
        "python", "studies/loss_weight.py", "--smoke", "--seeds", "1", "--output", str(folder / "results"),
        "--train.epochs", "24",  # so that the job still trains when the command that stops it gets there
        "--tracking-uri", f"sqlite:///{folder}/mlflow.db", "--data.cache", str(folder / "cache"),
    ]  # fmt: skip
    return options, folder / "results" / "loss_weight_smoke"


@pytest.fixture(scope="module")
def stopped(head, study):
    """Stop a job after three trials; return what it said."""
    command, folder = study
    sent = head.submit("--submission-id", "first", "--no-wait", "--working-dir", ".", "--", *command)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    deadline = time.monotonic() + 300
    while len(list(folder.glob("trials/*/result.json"))) < 3:
        assert time.monotonic() < deadline, head.job("logs", "first").stdout
        time.sleep(0.1)
    assert head.job("stop", "first").returncode == 0
    return head.job("logs", "first").stdout


def test_a_stopped_job_saves_its_state(stopped, study):
    _, folder = study
    assert "stopped by SIGTERM: continue with the same command and --resume" in stopped
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "stopped" and len(summary["trials"]) >= 3
    assert json.loads((folder / "runs" / "0001.json").read_text())["ended"] and not (folder / ".ray").exists()
    progress = [line for line in stopped.splitlines() if "seed 0: " in line]
    assert len(progress) == len(summary["trials"]) and not any("\x1b" in line for line in progress)


def test_a_head_started_in_the_checkout_needs_no_working_dir(head, stopped, study):
    """The literal `ray job submit -- python studies/loss_weight.py`, here going on with the job before it."""
    command, folder = study
    before = {trial["trial_id"]: trial for trial in json.loads((folder / "summary.json").read_text())["trials"]}
    result = head.submit("--", *command, "--resume")
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert {trial["status"] for trial in summary["trials"]} == {"COMPLETE"}
    assert before.items() <= {trial["trial_id"]: trial for trial in summary["trials"]}.items()
    names = {configuration["name"] for configuration in summary["configurations"]}
    assert {"constant", "pixels", "random", "supervised", "recon-only", "base", "no-recon"} < names
    assert len(names) == len(summary["trials"]) == 8 + 2 * 3
    assert (folder / "best_encoder" / "model.safetensors").is_file()


def test_the_exit_code_of_an_option_that_cannot_work_comes_back(head):
    result = head.submit("--", "python", "studies/loss_weight.py", "--recon.weight", "-1")
    assert result.returncode != 0
    assert "--recon.weight is -1.0; allowed: 0 or more, finite" in result.stdout + result.stderr


def test_another_token_is_refused(head):
    result = head.submit("--", "true", environment={"RAY_AUTH_TOKEN": "0" * 32})
    assert result.returncode != 0
    assert "token" in result.stdout + result.stderr


def test_a_study_that_cannot_join_says_so_at_once(head, tmp_path):
    environment = head.environment | {"RAY_ADDRESS": head.gcs, "RAY_AUTH_TOKEN": "0" * 32}
    command = [sys.executable, "studies/loss_weight.py", "--smoke", "--output", str(tmp_path / "results")]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "error: Ray" in result.stderr and "token" in result.stderr
    assert not (tmp_path / "results").exists()
