"""`ray job submit` against a real head with dashboard and token authentication."""

import json

import pytest

from tests.head import Head

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def head():
    head = Head(["--num-cpus", "2"])
    yield head
    head.end()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return the options of the smoke study and the folder of its results."""
    folder = tmp_path_factory.mktemp("job")
    options = [
        "python", "studies/loss_weight.py", "--smoke", "--seeds", "1", "--output", str(folder / "results"),
        "--tracking-uri", f"sqlite:///{folder}/mlflow.db", "--data.cache", str(folder / "cache"),
    ]  # fmt: skip
    return options, folder / "results" / "loss_weight"


def test_the_smoke_study_as_a_job(head, study):
    command, folder = study
    result = head.submit("--working-dir", ".", "--", *command)
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert {trial["status"] for trial in summary["trials"]} == {"COMPLETE"}
    names = {configuration["name"] for configuration in summary["configurations"]}
    assert {"constant", "pixels", "random", "supervised", "recon-only", "base", "split-0"} < names
    assert len(names) == 7 + 5
    assert (folder / "best_encoder" / "model.safetensors").is_file()
    progress = [line for line in result.stdout.splitlines() if "seed 0: " in line]
    assert len(progress) == len(names) and not any("\x1b" in line for line in progress)


def test_a_head_started_in_the_checkout_needs_no_working_dir(head, study):
    """The literal `ray job submit -- python studies/loss_weight.py`, here going on with what the job before it did."""
    command, folder = study
    before = json.loads((folder / "summary.json").read_text())["trials"]
    (folder / "trials" / before[-1]["trial_id"] / "result.json").unlink()
    result = head.submit("--", *command, "--resume")
    assert result.returncode == 0, result.stdout + result.stderr
    after = json.loads((folder / "summary.json").read_text())["trials"]
    assert [trial["trial_id"] for trial in after] == [trial["trial_id"] for trial in before]
    assert after[:-1] == before[:-1] and after[-1]["metrics"]["r2_mean"] == before[-1]["metrics"]["r2_mean"]


def test_the_exit_code_of_an_option_that_cannot_work_comes_back(head):
    result = head.submit("--", "python", "studies/loss_weight.py", "--recon.weight", "-1")
    assert result.returncode != 0
    assert "--recon.weight is -1.0; allowed: 0 or more, finite" in result.stdout + result.stderr
