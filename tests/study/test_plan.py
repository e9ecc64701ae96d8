"""--dry-run: the plan of a study, within seconds and without a trace."""

import subprocess
import sys
from pathlib import Path

import pytest

from eqssl.config import RunConfig, replace
from eqssl.study import Study, log_uniform, main
from eqssl.study.search.space import Configuration, Trial
from eqssl.study.store.records import StudyFolder, TrialRecord

SCRIPT = Path(__file__).parents[2] / "studies" / "loss_weight.py"
BASE = replace(RunConfig(), {"train.epochs": 4})
STUDY = Study(
    name="toy",
    question="Is it so?",
    space={"recon.weight": log_uniform(0.1, 10.0)},
    configs=2,
    rows={"pixels": None, "base": {"recon.weight": 0.0}},
    base=BASE,
)


def shown(capsys, *arguments) -> list[str]:
    assert main(STUDY, ["--dry-run", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_dry_run_by_the_command_line_trains_writes_and_imports_nothing(tmp_path):
    code = (
        f"import sys, runpy; sys.argv = ['loss_weight.py', '--dry-run', '--configs', '2']\n"
        f"try:\n    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n    print(end.code, sorted({'torch', 'ray', 'mlflow'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    first, count, *rows, epochs, end = done.stdout.splitlines()
    assert first.startswith("How does the weight") and count == "22 trials to come in results/loss_weight"
    assert "  weight 1: seeds 0, 1; recon.weight 1" in rows
    assert "  weight 100, autoencode: seeds 0, 1; recon.weight 100; recon.attention autoencode" in rows
    assert epochs.startswith("144 epochs; how long one takes is measured") and end == "0 []"
    assert list(tmp_path.iterdir()) == []


def test_a_plan_lists_what_a_design_trains_and_counts_what_a_sampler_suggests(tmp_path, capsys):
    output = ["--output", tmp_path]
    assert shown(capsys, *output)[1:-1] == [
        f"7 trials to come in {tmp_path}/toy",
        "  pixels: seed 0; no encoder",
        "  base: seeds 0, 1; recon.weight 0",
        "  weight 0.1: seeds 0, 1; recon.weight 0.1",
        "  weight 10: seeds 0, 1; recon.weight 10",
    ]
    more = ["--sampler", "tpe", "--configs", "9", "--seeds", "3", "--seed-schedule", "halving", "--final-test", "5"]
    assert shown(capsys, *output, *more)[1:-1] == [
        f"19 trials to come in {tmp_path}/toy",
        "  pixels: seed 0; no encoder",
        "  base: seeds 0, 1, 2; recon.weight 0",
        "  9 configurations, sampled by tpe: recon.weight",
        "  seeds of a configuration: 1, of the best third 3",
        "then a final test of the choice, its controls and references with 5 seeds",
    ]
    with pytest.raises(SystemExit):
        main(STUDY, ["--dry-run", "--sampler", "gird"])
    assert main(STUDY, ["--dry-run", "--data.path", "/no/such/folder"]) == 2


def test_with_resume_the_time_is_that_of_the_trials_that_have_ended(tmp_path, capsys):
    record = StudyFolder.open(tmp_path / "toy", {"study": "toy"}, resume=False)
    record.create("data")
    trial = Trial(Configuration("base", {"recon.weight": 0.0}), 0)
    values = {"number": None, "params": {"recon.weight": 0.0}, "status": "COMPLETE"}
    ended = TrialRecord(trial_id=trial.id, configuration="base", seed=0, epochs=4, wall_s=20.0, **values)
    record.trial_ended(trial, ended)
    before = sorted(tmp_path.rglob("*"))
    assert main(STUDY, ["--dry-run", "--output", str(tmp_path)]) == 2
    lines = shown(capsys, "--resume", "--output", tmp_path)
    assert lines[1] == f"6 trials to come in {tmp_path}/toy, 1 have ended"
    assert "  base: seed 1; recon.weight 0" in lines
    assert lines[-1].startswith("20 epochs x 5 s, evaluations included") and "= 100 s" in lines[-1]
    assert sorted(tmp_path.rglob("*")) == before
