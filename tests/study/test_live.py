"""The report of a study that is still running."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from eqssl.evaluation import PROTOCOL_VERSION
from eqssl.evaluation.predictions import LABEL, Prediction, metrics_of, save_predictions
from eqssl.files import write_json
from eqssl.metrics import METRICS, Metric, register_metric, stored_properties
from eqssl.report.command import report
from eqssl.report.tables import results_table
from eqssl.study.live import current_summary, summary_of_predictions
from eqssl.study.results import summarise
from eqssl.study.store.records import PREDICTIONS, StudyFolder
from tests.report import made_up
from tests.report.conftest import STUDY, weight_records

TRIALS = made_up.records(40)


def write(path, study, records, protocol=PROTOCOL_VERSION):
    """Return the folder of a study of which these trials have ended."""
    identity = {
        "study": study.name,
        "protocol": protocol,
        "space": {option: dataclasses.asdict(values) for option, values in study.space.items()},
        "rows": study.rows,
        "objectives": study.objectives,
        "trials": 120,
        "seeds": 3,
    }
    about = {name: made_up.ABOUT[name] for name in ("concurrency", "options")}
    about |= {"question": study.question, "controls": {}, "data": made_up.ABOUT["data"] | {"num_classes": 10}}
    record = StudyFolder.open(path / "made_up", identity, resume=False)
    record.create("0123456789abcdef", about)
    for trial in records:
        write_json(record.folder / "trials" / trial.trial_id / "result.json", dataclasses.asdict(trial))
    return record.folder


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a study of which all trials but the last five have ended."""
    return write(tmp_path, made_up.STUDY, TRIALS[:-5])


def test_the_summary_is_that_of_the_trials_that_have_ended(folder):
    found = current_summary(folder)
    expected = json.loads(json.dumps(summarise(made_up.STUDY, TRIALS[:-5], made_up.ABOUT)))
    told = ("status", "wall_s", "study_id", "data")
    assert found["status"] == "running, 35 of at most 143 trials have ended"
    assert json.loads(json.dumps({k: v for k, v in found.items() if k not in told})) == {
        k: v for k, v in expected.items() if k not in told
    }


def test_a_summary_holds_until_further_trials_have_ended(folder):
    write_json(folder / "summary.json", summarise(made_up.STUDY, TRIALS[:-5], made_up.ABOUT))
    assert current_summary(folder)["status"] == "complete"
    last = TRIALS[-1]
    write_json(folder / "trials" / last.trial_id / "result.json", dataclasses.asdict(last))
    assert current_summary(folder)["status"].startswith("running, 36")


def test_a_metric_of_ones_own_keeps_its_properties_in_a_process_that_does_not_register_it(tmp_path, monkeypatch):
    mine = Metric(
        name="mine", label="my error", direction="minimize", in_main_table=True, is_compared=True, fn=lambda views: 1.0
    )
    monkeypatch.setitem(METRICS, "mine", mine)  # taken away again at the end
    trials = [dataclasses.replace(r, metrics=r.metrics | {"mine": float(r.seed)}) for r in weight_records()]
    folder = write(tmp_path, STUDY, trials)
    about = json.loads((folder / "study.json").read_text())
    write_json(folder / "study.json", about | {"about": about["about"] | {"metrics": stored_properties(["mine"])}})
    whole = json.loads(json.dumps(summarise(STUDY, trials, made_up.ABOUT)))
    for ended in (False, True):
        METRICS.pop("mine")
        if ended:
            write_json(folder / "summary.json", whole)
        report(str(folder))
        assert "my error" in (folder / "tables.md").read_text()
        assert METRICS["mine"].sign == -1
        assert current_summary(folder)["metrics"]["mine"] == whole["metrics"]["mine"]
        assert whole["metrics"]["mine"]["label"] == "my error"
    register_metric(mine)  # the process may do so itself, later
    assert METRICS["mine"].fn is not None


def test_a_damaged_result_is_left_out_of_the_report_and_left_alone(folder, caplog):
    path = folder / "trials" / TRIALS[0].trial_id / "result.json"
    path.write_bytes(path.read_bytes()[:50])
    assert current_summary(folder)["status"] == "running, 34 of at most 143 trials have ended"
    assert f"{path} is damaged and passed over" in caplog.text and path.stat().st_size == 50


@pytest.mark.slow
def test_the_command_reports_without_ray_and_names_a_wrong_folder(folder, tmp_path):
    code = (
        "import sys; from eqssl.report.command import main; code = main(); assert 'ray' not in sys.modules; exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == (folder / "tables.md").read_text(), done.stderr
    assert done.stderr.endswith(f"\npage: {folder / 'report.html'}\n")
    assert "35 of at most 143 trials have ended" in (folder / "report.html").read_text()
    wrong = subprocess.run([sys.executable, "-c", code, str(tmp_path / "no")], capture_output=True, text=True)
    assert wrong.returncode == 2 and "holds no study" in wrong.stderr


def test_a_study_of_which_nothing_has_ended_says_so(tmp_path):
    StudyFolder.open(tmp_path / "made_up", {}, resume=False).create("0")
    with pytest.raises(ValueError, match="no trial has ended yet"):
        current_summary(tmp_path / "made_up")


def said(seed):
    """Return what a classifier and a regression say of 40 examples."""
    generator, ids = torch.Generator().manual_seed(seed), torch.arange(40)
    target = torch.randn(40, 2, generator=generator)
    near = target + 0.3 * torch.randn(40, 2, generator=generator)
    classes = (target[:, :1] > 0).float()
    return [
        Prediction("knn", LABEL, ids, classes, (near[:, :1] > 0).float()),
        *(Prediction("r2", name, ids, target[:, i : i + 1], near[:, i : i + 1]) for i, name in enumerate(("dx", "dy"))),
    ]


@pytest.fixture
def predicted(tmp_path):
    """Return the folder of a study whose figures are of predictions that were saved; one of its trials failed."""
    records = [
        dataclasses.replace(record, metrics=metrics_of(said(seed)) | {"train_s": 1.0, "rank": 9.0})
        for seed, record in enumerate(weight_records())
    ]
    failed = made_up.record("weight 2", {"recon.weight": 2.0}, 0, 5, status="FAILED", metrics={}, error="?")
    folder = write(tmp_path, STUDY, [*records, failed])
    for seed, record in enumerate(records):
        save_predictions(said(seed), folder / "trials" / record.trial_id / PREDICTIONS)
    write_json(folder / "summary.json", summarise(STUDY, [*records, failed], made_up.ABOUT))
    return folder, records


def test_the_tables_of_predictions_are_those_of_the_figures_until_a_prediction_changes(predicted, capsys):
    folder, records = predicted
    report(str(folder))
    tables = capsys.readouterr().out
    report(str(folder), from_predictions=True)
    assert capsys.readouterr().out == tables and "weight 10" in tables
    summary = current_summary(folder)
    assert summary_of_predictions(folder)["trials"] == summary["trials"]
    changed = next(seed for seed, record in enumerate(records) if record.configuration == "weight 10")
    knn, *others = said(changed)
    wrong = dataclasses.replace(knn, predicted=1 - knn.target)
    save_predictions([wrong, *others], folder / "trials" / records[changed].trial_id / PREDICTIONS)
    again = summary_of_predictions(folder)
    tables = [results_table(s).frame.set_index("configuration") for s in (summary, again)]
    means = [{name: str(cell).partition(" ")[0] for name, cell in frame["kNN"].items()} for frame in tables]
    assert {name for name in means[0] if means[0][name] != means[1][name]} == {"weight 10"}
    knn = [trial["metrics"]["knn"] for trial in again["trials"] if trial["configuration"] == "weight 10"]
    assert knn == [0.0, records[changed + 1].metrics["knn"]]


def test_a_trial_without_predictions_is_named(predicted):
    folder, records = predicted
    (folder / "trials" / records[3].trial_id / PREDICTIONS).unlink()
    with pytest.raises(ValueError, match=rf"--from-predictions: trial {records[3].trial_id} .*--evaluate.level full"):
        summary_of_predictions(folder)


def test_predictions_of_another_protocol_are_refused(tmp_path):
    folder = write(tmp_path, STUDY, weight_records(), protocol=PROTOCOL_VERSION - 1)
    with pytest.raises(ValueError, match=f"protocol {PROTOCOL_VERSION - 1}; allowed: {PROTOCOL_VERSION}"):
        summary_of_predictions(folder)


def test_a_summary_without_its_trials_has_a_report_but_no_predictions(predicted):
    folder, _ = predicted
    (folder / "study.json").unlink()
    assert summary_of_predictions(folder)["trials"]  # by its copy
    (folder / "runs" / "study.json").unlink()
    assert current_summary(folder)["trials"]
    with pytest.raises(ValueError, match=r"--from-predictions: .* has no study.json"):
        summary_of_predictions(folder)


def test_a_summary_of_an_earlier_version_is_named(predicted):
    folder, _ = predicted
    summary = json.loads((folder / "summary.json").read_text())
    write_json(folder / "summary.json", {name: value for name, value in summary.items() if name != "answer"})
    with pytest.raises(ValueError, match="is of an earlier version"):
        current_summary(folder)
