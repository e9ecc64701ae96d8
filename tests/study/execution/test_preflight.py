"""What is found wrong beforehand: by the options alone, by a node with the folder, by a worker with the data."""

import os
import threading
from dataclasses import replace as change

import pytest

from eqssl.config import replace
from eqssl.data import SOURCES
from eqssl.data.synthetic import solids
from eqssl.study import Study, StudyOptions, log_uniform
from eqssl.study.execution.preflight import JOB_FOLDERS, check_node, check_options, temporary_places, try_run
from eqssl.study.execution.setup import StudySetup
from eqssl.study.options import settle
from eqssl.study.store.lock import RunLock


@pytest.fixture
def lock(tmp_path):
    with RunLock(tmp_path / "study") as lock:
        yield lock


def test_the_study_s_own_folder_is_accepted_and_left_as_it_was(lock, tmp_path):
    assert check_node(str(tmp_path / "study"), lock.run.token) is None
    assert os.listdir(tmp_path / "study") == ["runs"]


def test_a_heartbeat_that_is_just_being_written_is_waited_for(lock, tmp_path):
    path = tmp_path / "study" / "runs" / "0001.json"
    text = path.read_text()
    path.write_text("")
    threading.Timer(0.2, path.write_text, [text]).start()
    assert check_node(str(tmp_path / "study"), lock.run.token) is None


def test_a_local_folder_of_the_same_name_is_told_from_a_shared_one(lock, tmp_path):
    other = tmp_path / "other"
    with RunLock(other) as earlier:
        (other / "study.json").write_text("{}")
        earlier.renew()
    for folder in (other, tmp_path / "nowhere"):
        wrong = check_node(str(folder), lock.run.token)
        assert f"--output: {folder}, seen from " in wrong and "a folder that all share, or s3://..." in wrong


def test_a_folder_that_cannot_be_written_is_named_with_the_reason(lock, tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    wrong = check_node(str(tmp_path / "study"), lock.run.token)
    assert "cannot be written" in wrong and "No space left on device" in wrong


@pytest.mark.parametrize(("objective", "allowed"), [("equivariance", False), ("spread", True)])
def test_halving_compares_by_what_a_quick_evaluation_gives(lock, base, tmp_path, objective, allowed):
    setup = StudySetup(str(tmp_path / "study"), ("linear", objective))
    found = try_run(setup, replace(base, {"evaluate.level": "full"}), lock.run.token, 1, "halving")
    wrong = f"--objectives has {objective}; allowed at level quick, at which --pruner halving compares trials"
    assert ("error" not in found) if allowed else found["error"].startswith(wrong)


def test_halving_that_could_end_no_trial_is_refused_but_when_all_is_tiny(base, tmp_path):
    study = Study(name="toy", question="?", space={"recon.weight": log_uniform(0.1, 1.0)})
    given = StudyOptions(run=replace(base, {"train.epochs": 3}), pruner="halving", output=str(tmp_path))
    study, few = settle(study, given)
    with pytest.raises(ValueError, match="--pruner is halving"):
        check_options(study, few)
    check_options(study, change(few, smoke=True))
    check_options(study, change(few, pruner="none"))


def test_a_search_does_not_choose_on_test(base, tmp_path):
    study = Study(name="toy", question="?", space={"recon.weight": log_uniform(0.1, 1.0)})
    given = StudyOptions(run=replace(base, {"evaluate.split": "test"}), output=str(tmp_path))
    study, on_test = settle(study, given)
    with pytest.raises(ValueError, match=r"--evaluate.split is test; allowed in toy, which chooses: val; --final-test"):
        check_options(study, on_test)
    check_options(change(study, space={}), on_test)


@pytest.mark.parametrize("labelled", [True, False])
def test_objects_of_which_no_factor_is_known_are_asked_for_their_class_alone(
    lock, base, tmp_path, monkeypatch, labelled
):
    def plain(config):
        data = solids.load(config)
        splits = {name: getattr(data, name) for name in ("train", "val", "test")}
        splits = {name: change(of, factors={}, labels=of.labels if labelled else None) for name, of in splits.items()}
        return change(data, num_classes=data.num_classes if labelled else 0, **splits)

    monkeypatch.setitem(SOURCES, "plain", plain)
    setup = StudySetup(str(tmp_path / "study"), ("linear", "r2_mean"))
    found = try_run(setup, replace(base, {"data.source": "plain"}), lock.run.token, 1)
    if labelled:
        assert "error" not in found and not found["known"]
        study = Study(name="toy", question="?", space={}).for_data(labelled=True, known=found["known"])
        assert study.objectives == {"linear": "maximize"}
        assert "supervised" in study.rows and "supervised-factors" not in study.rows
    else:
        assert found["error"].startswith("--data.source solids has neither labels nor a factor between the views of an")


@pytest.mark.parametrize("objectives", [("linear",), ("linear", "r2_mean")])
def test_an_objective_that_needs_labels_is_refused_or_left_out_where_there_are_none(
    lock, base, tmp_path, monkeypatch, objectives
):
    def unlabelled(config):
        data = solids.load(config)
        return change(data.map_splits(lambda split: change(split, labels=None)), num_classes=0)

    monkeypatch.setitem(SOURCES, "unlabelled", unlabelled)
    setup, run = StudySetup(str(tmp_path / "study"), objectives), replace(base, {"data.source": "unlabelled"})
    found = try_run(setup, run, lock.run.token, 1)
    text = "--objectives has linear, which needs labels; --data.source solids has none"
    if len(objectives) == 1:
        assert found["error"] == f"{text}; allowed: r2_mean, for example"
    else:
        assert f"{text}: left out" in found["warnings"]


@pytest.mark.parametrize(("objects", "warned"), [(16, True), (4000, False)])
def test_few_held_out_images_are_warned_of(objects, warned, caplog):
    from eqssl.config import EvaluateConfig
    from eqssl.study.execution.preflight import _warn_of_few_images

    class Data:
        val = range(objects)

    _warn_of_few_images(EvaluateConfig(split="val", images=10_000), Data())
    assert [record.getMessage().startswith("metrics are of 16 images of the eval split (val); below 500") for record in
            caplog.records] == [True] * warned  # fmt: skip
    caplog.clear()
    _warn_of_few_images(EvaluateConfig(split="val", images=300), Data())
    assert ("metrics are of 300" in caplog.text) is not warned


def test_relative_places_of_a_submitted_job_are_warned_of(tmp_path, monkeypatch):
    folder = tmp_path / JOB_FOLDERS / "_ray_pkg_1"
    folder.mkdir(parents=True)
    relative = StudyOptions(output="results", tracking_uri="sqlite:///mlflow.db")
    monkeypatch.chdir(tmp_path)
    assert temporary_places(relative) == []
    monkeypatch.chdir(folder)
    assert [text.split(" ")[0] for text in temporary_places(relative)] == ["--output", "--tracking-uri"]
    kept = StudyOptions(output="s3://bucket/results", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert temporary_places(kept) == []
    assert temporary_places(change(kept, output=str(tmp_path), tracking_uri="http://localhost:5000")) == []
