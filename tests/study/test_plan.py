"""--dry-run: the plan of a study, within seconds and without a trace."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from eqssl.config import RunConfig, replace
from eqssl.study import Study, StudyOptions, choice, log_uniform, main, run_study, uniform
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


def shown(capsys, *arguments, study=STUDY) -> list[str]:
    assert main(study, ["--dry-run", *map(str, arguments)]) == 0
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


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.epochs": uniform(1, 10)}, r"train.epochs has a range from 1 to 10, .* allowed: choice\(...\)"),
        ({"train.batch_size": log_uniform(16, 40)}, r"train.batch_size has a range from 16 to 40"),
        ({"train.seed": choice(0, 1)}, r"train.seed is in the space; allowed: --seeds"),
        ({"recon.weight": choice("1", "10")}, r"--recon.weight is '1'; allowed: a finite number, 0 or more"),
    ],
)
def test_a_space_that_cannot_be_trained_is_refused_before_anything_starts(space, message, tmp_path):
    study = dataclasses.replace(STUDY, space=space)
    with pytest.raises(ValueError, match=message):
        run_study(study, StudyOptions(output=str(tmp_path), dry_run=True))
    row = dataclasses.replace(STUDY, rows={"base": {"train.seed": 3}})
    with pytest.raises(ValueError, match=r"row base of study toy has train.seed"):
        run_study(row, StudyOptions(output=str(tmp_path), dry_run=True))


def test_seeds_beyond_the_largest_are_refused_before_the_search(tmp_path):
    base = replace(BASE, {"train.seed": 4294966500})
    options = StudyOptions(run=base, output=str(tmp_path), dry_run=True)
    assert run_study(STUDY, options)["status"] == "planned"
    with pytest.raises(ValueError, match=r"--train.seed is 4294966500; .*--final-test 2, .*: 0 to 4294966294"):
        run_study(STUDY, dataclasses.replace(options, final_test=2))
    last = replace(BASE, {"train.seed": 2**32 - 1})
    with pytest.raises(ValueError, match=r"--train.seed is 4294967295; allowed with --seeds 2"):
        run_study(STUDY, dataclasses.replace(options, run=last))


def test_a_plan_of_an_unset_option_is_the_studys_and_names_what_runs(tmp_path, capsys):
    study = dataclasses.replace(STUDY, seeds=3, sampler="random")
    run_study(study, StudyOptions(output=str(tmp_path), dry_run=True), console=Console(width=200))
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "Is it so? (vicreg, resnet_tiny; data: solids)"
    assert "  base: seeds 0, 1, 2; recon.weight 0" in lines and any("sampled by random" in line for line in lines)
    varied = dataclasses.replace(STUDY, space={"method.name": choice("simclr", "byol")})
    assert shown(capsys, study=varied)[0] == "Is it so? (resnet_tiny; data: solids)"


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
