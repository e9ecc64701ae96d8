"""The study of baselines, small: every candidate is tuned, then trained again with fresh seeds beside its controls."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from eqssl.config import replace
from eqssl.study import StudyOptions
from eqssl.study.comparison import methods_for, methods_given
from eqssl.study.definition import PRETRAINED, REFERENCES
from eqssl.study.options import parse

SCRIPT = Path(__file__).parents[2] / "studies" / "baselines.py"


@pytest.fixture(scope="module")
def baselines():
    spec = importlib.util.spec_from_file_location("baselines", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("paired", [False, True])
def test_a_candidate_has_three_settings_and_is_compared_with_what_it_builds_on(baselines, paired):
    found = baselines.candidates_of(paired)
    assert ("vicreg + intermediate" in found) != paired
    assert {len(candidate.values) for candidate in found.values()} == {3}
    assert {"sie, all", "sie, one"} < {name for name, of in found.items() if of.builds_on == "vicreg"}


def methods_of(baselines, *arguments):
    study, options = parse(baselines.STUDY, arguments)
    given = methods_given(study, options, baselines.ALL)
    return methods_for(options.run.encoder, given or baselines.ALL, refuse=bool(given))


def test_some_methods_may_be_asked_for(baselines):
    for given in (["byol"], ["dino", "byol"]):
        assert methods_of(baselines, "--method.name", ",".join(given)) == given
    assert methods_of(baselines) == [m for m in baselines.ALL if m != "ibot"]
    assert methods_of(baselines, "--encoder.name", "test_vit") == list(baselines.ALL)
    for encoder in ("deit_tiny_patch16_224", "vit_small_patch16_224.dino", "davit_tiny", "maxvit_nano_rw_256"):
        assert ("ibot" in methods_of(baselines, "--encoder.name", encoder)) == encoder.startswith(("vit", "deit"))
    assert "ibot" in methods_of(baselines, "--encoder.name", "beit_base_patch16_224")  # by another name
    with pytest.raises(ValueError, match=r"--method.name has sie; allowed: simclr, .*ibot"):
        methods_of(baselines, "--method.name", "byol, sie")
    with pytest.raises(ValueError, match=r"has ibot, which masks .* --encoder.name resnet_tiny, .*: simclr, .*dino"):
        methods_of(baselines, "--method.name", "byol,ibot")


@pytest.mark.slow
def test_several_methods_are_taken_from_the_command_line(tmp_path):
    command = [sys.executable, str(SCRIPT), "--method.name", "byol,dino", "--dry-run", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {line.split(":")[0].strip() for line in done.stdout.splitlines() if line.startswith("  ")}
    assert {"byol, train.lr 0.008", "dino, train.lr 0.032"} <= rows
    assert {row.partition(",")[0] for row in rows if "train.lr" in row} == {"byol", "dino"}


def test_what_cannot_work_is_refused_before_torch_is_imported(tmp_path):
    given = {"--configs": "3", "--data.path": "/no/such/folder", "--recon.weight": "3.0", "--evaluate.split": "test"}
    for option, value in given.items():
        script = f"""
import runpy, sys
sys.argv = [{str(SCRIPT)!r}, "--encoder.name", "test_vit", "--output", {str(tmp_path)!r}, {option!r}, {value!r}]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("torch" in sys.modules)
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "False\n")
        assert done.stderr.startswith(f"error: {option} is ")


@pytest.mark.slow
def test_the_whole_study(baselines, base, tmp_path, monkeypatch):
    import ray

    ray.init(num_cpus=2, log_to_driver=False)
    monkeypatch.setattr(baselines, "ALL", ("simclr", "vicreg"))
    for values in ("RATES", "WEIGHTS", "SHARES"):
        monkeypatch.setattr(baselines, values, getattr(baselines, values)[:2])
    run = replace(base, {"train.epochs": 1})
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    options = StudyOptions(run=run, seeds=1, output=str(tmp_path), tracking_uri=tracking, smoke=True)  # no forecasts
    try:
        summary = baselines.run(dataclasses.replace(baselines.STUDY, base=run, smoke={}), options)
    finally:
        ray.shutdown()
    stages = [json.loads((tmp_path / f"baselines_{n}" / "summary.json").read_text()) for n in ("alone", "tuning")]
    assert {t["status"] for stage in (*stages, summary) for t in stage["trials"]} == {"COMPLETE"}
    assert {stage["options"]["evaluate.split"] for stage in stages} == {"val"}
    rows = {c["name"]: c for c in summary["configurations"]}
    candidates = baselines.candidates_of(paired=True)
    tuned = [name for name, candidate in candidates.items() if candidate.builds_on in ("simclr", "vicreg")]
    methods = [f"{m}{what}" for m in ("simclr", "vicreg") for what in ("", ", no-recon", ", autoencode", ", concat")]
    assert set(rows) - {"simclr, equal time", "vicreg, equal time"} == {*REFERENCES, *methods, *tuned} - {PRETRAINED}
    assert summary["options"]["evaluate.split"] == "test" and summary["options"]["train.seed"] == 1000
    chosen = [json.loads((tmp_path / f"baselines_{n}" / "choices.json").read_text()) for n in ("alone", "tuning")]
    assert {name: of["overrides"] for stage in chosen for name, of in stage.items()} == {
        name: rows[name]["params"] for name in ("simclr", "vicreg", *tuned)
    }
    assert {of["accurate"] for of in chosen[0].values()} == {None}
    assert {of["accurate"] for of in chosen[1].values()} <= {True, False}
    epoch_s = {name: of["epoch_s"] for stage in chosen for name, of in stage.items()}
    longer = {m: epoch_s[f"{m} + reconstruction"] / epoch_s[m] for m in ("simclr", "vicreg")}
    assert all(0.8 < share < 4 for share in longer.values())
    assert all((f"{m}, equal time" in rows) == (share > 1) for m, share in longer.items())
    with_recon = rows["simclr + reconstruction"]["params"]
    assert with_recon["recon.weight"] in baselines.WEIGHTS
    assert with_recon["train.lr"] == rows["simclr"]["params"]["train.lr"]
