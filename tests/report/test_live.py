"""The report of a study that is still running."""

import dataclasses
import json
import subprocess
import sys

import pytest

from eqssl.report.live import current_summary
from eqssl.study.record import Record, write_json
from eqssl.study.results import summarise
from tests.report import made_up

TRIALS = made_up.records(40)


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a study of which all trials but the last five have ended."""
    study = made_up.STUDY
    identity = {
        "study": study.name,
        "space": {option: dataclasses.asdict(values) for option, values in study.space.items()},
        "rows": study.rows,
        "objectives": study.objectives,
        "trials": 120,
        "seeds": 3,
    }
    about = {name: made_up.ABOUT[name] for name in ("concurrency", "options")}
    about |= {"question": study.question, "controls": {}, "data": made_up.ABOUT["data"] | {"num_classes": 10}}
    record = Record.open(tmp_path / "made_up", identity, resume=False)
    record.create("0123456789abcdef", about)
    for trial in TRIALS[:-5]:
        write_json(record.folder / "trials" / trial.trial_id / "result.json", dataclasses.asdict(trial))
    return record.folder


def test_the_summary_is_that_of_the_trials_that_have_ended(folder):
    found = current_summary(folder)
    expected = json.loads(json.dumps(summarise(made_up.STUDY, TRIALS[:-5], made_up.ABOUT)))
    told = ("status", "wall_s", "study_id", "data")
    assert found["status"] == "running, 35 of at most 137 trials have ended"
    assert json.loads(json.dumps({k: v for k, v in found.items() if k not in told})) == {
        k: v for k, v in expected.items() if k not in told
    }


def test_a_summary_holds_until_further_trials_have_ended(folder):
    write_json(folder / "summary.json", summarise(made_up.STUDY, TRIALS[:-5], made_up.ABOUT))
    assert current_summary(folder)["status"] == "complete"
    last = TRIALS[-1]
    write_json(folder / "trials" / last.trial_id / "result.json", dataclasses.asdict(last))
    assert current_summary(folder)["status"].startswith("running, 36")


def test_the_command_reports_without_ray_and_names_a_wrong_folder(folder, tmp_path):
    code = (
        "import sys; from eqssl.report.__main__ import main; code = main(); assert 'ray' not in sys.modules; exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == (folder / "tables.md").read_text(), done.stderr
    assert "35 of at most 137 trials have ended" in (folder / "report.html").read_text()
    wrong = subprocess.run([sys.executable, "-c", code, str(tmp_path / "no")], capture_output=True, text=True)
    assert wrong.returncode == 2 and "holds no study" in wrong.stderr


def test_a_study_of_which_nothing_has_ended_says_so(tmp_path):
    Record.open(tmp_path / "made_up", {}, resume=False).create("0")
    with pytest.raises(ValueError, match="no trial has ended yet"):
        current_summary(tmp_path / "made_up")
