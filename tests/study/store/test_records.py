import dataclasses
import json
from pathlib import Path

import pytest

from eqssl.config import RunConfig, identity
from eqssl.files import write_atomically, write_json
from eqssl.study.search.space import Configuration, Trial
from eqssl.study.store.records import StudyFolder, TrialRecord, collapsed_parts

IDENTITY = {"study": "toy", "seeds": 2, "space": {"recon.weight": (0.1, 10.0)}}
TRIAL = Trial(Configuration.suggested({"recon.weight": 0.3162}, 0), 1)


def finished(trial: Trial, **values) -> TrialRecord:
    configuration = trial.configuration
    return TrialRecord(
        trial_id=trial.id,
        configuration=configuration.name,
        number=configuration.number,
        params=configuration.overrides,
        seed=trial.seed,
        **{"status": "COMPLETE", **values},
    )


def test_suggested_and_finished_trials_are_read_back(tmp_path):
    record = StudyFolder.open(tmp_path / "toy", IDENTITY, resume=False)
    record.create("data")
    record.trial_suggested(TRIAL)
    (record.trial_folder(TRIAL) / "checkpoint").mkdir()
    ended = finished(TRIAL, metrics={"knn": 0.5}, epochs=3)
    record.trial_ended(TRIAL, ended)

    again = StudyFolder.open(tmp_path / "toy", IDENTITY, resume=True)
    assert again.study_id == record.study_id
    assert again.configurations() == [TRIAL.configuration] and ended.trial == TRIAL
    assert again.records() == {TRIAL.id: ended}
    assert not (record.trial_folder(TRIAL) / "checkpoint").exists()


def test_a_study_of_a_version_with_other_options_goes_on_where_these_have_their_defaults(tmp_path):
    now = IDENTITY | identity(RunConfig())
    StudyFolder.open(tmp_path / "toy", now, resume=False).create("data")

    def written_by_another_version(gone: dict, defaults: dict) -> None:
        known = json.loads((tmp_path / "toy" / "study.json").read_text())
        for name, values in (("identity", gone), ("defaults", defaults)):
            known[name] = {o: v for o, v in known[name].items() if o != "recon.query_gradient"} | values
        write_json(tmp_path / "toy" / "study.json", known)

    written_by_another_version({"recon.gone": 0.5}, {"recon.gone": 0.5})
    StudyFolder.open(tmp_path / "toy", now, resume=True).create("data")
    written_by_another_version({"recon.gone": 0.5}, {"recon.gone": 0.5})
    with pytest.raises(ValueError, match=r"differs in\n  recon.query_gradient: None there, 0.9 now$"):
        StudyFolder.open(tmp_path / "toy", now | {"recon.query_gradient": 0.9}, resume=True)
    written_by_another_version({"recon.gone": 0.7}, {"recon.gone": 0.5})
    with pytest.raises(ValueError, match=r"differs in\n  recon.gone: 0.7 there, None now$"):
        StudyFolder.open(tmp_path / "toy", now, resume=True)


def test_a_failed_trial_keeps_its_last_good_checkpoint(tmp_path):
    record = StudyFolder.open(tmp_path / "toy", IDENTITY, resume=False)
    (record.trial_folder(TRIAL) / "checkpoint").mkdir(parents=True)
    record.trial_ended(TRIAL, finished(TRIAL, status="FAILED", error="the loss is not finite"))
    assert (record.trial_folder(TRIAL) / "checkpoint").exists()


def test_a_retryable_failure_is_tried_again_on_resume_and_a_lasting_one_is_not(tmp_path):
    trials = [TRIAL, Trial(Configuration.suggested({"recon.weight": 1.0}, 1), 1)]
    errors = ["RuntimeError: CUDA error (3 attempts)", "ValueError: no such weight"]
    record = StudyFolder.open(tmp_path / "toy", IDENTITY, resume=False)
    record.create("data")
    for trial, error in zip(trials, errors, strict=True):
        record.trial_ended(trial, finished(trial, status="FAILED", error=error))
    assert record.records().keys() == {trial.id for trial in trials}  # by the same command it is not
    again = StudyFolder.open(tmp_path / "toy", IDENTITY, resume=True)
    assert again.records().keys() == {trials[1].id}  # before `create` too: the forecast counts the trials to come
    again.create("data")
    assert again.records().keys() == {trials[1].id}
    again.trial_ended(TRIAL, finished(TRIAL))
    assert again.records()[TRIAL.id].status == "COMPLETE"


def test_features_on_a_line_have_collapsed():
    assert collapsed_parts({"rank": 30.0, "inv/rank": 1.2, "equi/rank": 0.0}) == ["inv", "equi"]
    assert collapsed_parts({"rank": 2.0, "spread": 0.5}) == collapsed_parts({}) == []
    assert collapsed_parts({"rank": 60.0, "spread": 1e-4}) == ["all"]  # noise around one point has full rank


def test_a_warm_start_takes_configurations_of_which_all_trials_can_be_used(tmp_path):
    ends = {
        "whole": [{}, {}], "stopped": [{}, {"status": "STOPPED"}], "failed": [{"status": "FAILED"}, {}],
        "collapsed": [{"collapsed": ["equi"]}, {}],
    }  # fmt: skip
    summary = {
        "configurations": [
            {"name": name, "number": number, "params": {"recon.view": name}, "metrics": {"knn": {"estimate": 0.5}}}
            for name, number in {**{n: i for i, n in enumerate(ends)}, "base": None}.items()
        ],
        "trials": [
            {"configuration": name, "status": "COMPLETE", "collapsed": [], **end} for name in ends for end in ends[name]
        ],
    }
    write_json(tmp_path / "earlier" / "summary.json", summary)
    record = StudyFolder.open(tmp_path / "toy", IDENTITY, resume=False)
    assert record.warm_points(str(tmp_path / "earlier"), ["knn"]) == [({"recon.view": "whole"}, {"knn": 0.5})]


def test_nothing_is_written_before_create(tmp_path):
    StudyFolder.open(tmp_path / "toy", IDENTITY, resume=False)
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_refused_without_resume(tmp_path):
    StudyFolder.open(tmp_path / "toy", IDENTITY, resume=False).create("data")
    with pytest.raises(ValueError, match="--resume"):
        StudyFolder.open(tmp_path / "toy", IDENTITY, resume=False)


def test_another_study_is_refused_with_the_differences(tmp_path):
    StudyFolder.open(tmp_path / "toy", IDENTITY, resume=False).create("data")
    with pytest.raises(ValueError, match=r"seeds: 2 there, 3 now") as refused:
        StudyFolder.open(tmp_path / "toy", {**IDENTITY, "seeds": 3}, resume=True)
    assert "space" not in str(refused.value)


def test_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no study"):
        StudyFolder.open(tmp_path, IDENTITY, resume=True)


def test_what_a_killed_command_left_is_no_study(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / ".5fd0.study.json").write_text("{}")
    StudyFolder.open(tmp_path, IDENTITY, resume=False).create("data")
    assert (tmp_path / "study.json").exists()


def test_unwritable_folder_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--output"):
        StudyFolder.open(tmp_path / "file" / "toy", IDENTITY, resume=False).create("data")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_other_data_are_refused(tmp_path):
    StudyFolder.open(tmp_path / "toy", IDENTITY, resume=False).create("data")
    with pytest.raises(ValueError, match=r"trained on other data \(data there, others now\)"):
        StudyFolder.open(tmp_path / "toy", IDENTITY, resume=True).create("others")


def test_a_study_whose_two_copies_are_damaged_is_named(tmp_path):
    StudyFolder.open(tmp_path / "toy", IDENTITY, resume=False).create("data")
    (tmp_path / "toy" / "study.json").write_text("{")
    (tmp_path / "toy" / "runs" / "study.json").write_text("{")
    with pytest.raises(ValueError, match=r"study\.json is damaged"):
        StudyFolder.open(tmp_path / "toy", IDENTITY, resume=True)


def test_a_file_that_cannot_be_written_is_waited_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("eqssl.files.RETRY_S", 0.01)
    study = StudyFolder.open(tmp_path / "toy", IDENTITY, resume=False)
    refusals = iter([OSError(28, "No space left on device")] * 3)

    def full(path, values, write=write_json):
        if error := next(refusals, None):
            raise error
        write(path, values)

    monkeypatch.setattr("eqssl.study.store.records.write_json", full)
    (study.trial_folder(TRIAL) / "checkpoint").mkdir(parents=True)
    study.trial_ended(TRIAL, finished(TRIAL))
    assert caplog.text.count("No space left on device") == 1
    assert study.records().keys() == {TRIAL.id} and (study.trial_folder(TRIAL) / "result.json").exists()


def test_a_stop_ends_the_wait_and_the_checkpoint_stays(tmp_path, monkeypatch):
    study = StudyFolder.open(tmp_path / "toy", IDENTITY, resume=False)
    full = Path("/dev/full")
    monkeypatch.setattr("eqssl.study.store.records.write_json", lambda path, values: full.write_text("x"))
    study.stopped = lambda: True
    (study.trial_folder(TRIAL) / "checkpoint").mkdir(parents=True)
    study.trial_suggested(TRIAL)
    with pytest.raises(OSError, match="before the study was stopped"):
        study.trial_ended(TRIAL, finished(TRIAL))
    assert study.records() == {} and (study.trial_folder(TRIAL) / "checkpoint").exists()


def test_whoever_lost_the_folder_writes_nothing_more(tmp_path):
    owned = [True]
    study = StudyFolder.open(tmp_path / "toy", IDENTITY, resume=False, owned=lambda: owned[0])
    study.trial_suggested(TRIAL)
    before = sorted(tmp_path.rglob("*"))
    owned[0] = False
    study.trial_suggested(Trial(Configuration.suggested({"recon.weight": 1.0}, 1), 0))
    with pytest.raises(OSError, match="was not written"):
        study.trial_ended(TRIAL, finished(TRIAL))
    assert sorted(tmp_path.rglob("*")) == before


def test_two_configurations_of_one_number_are_refused_by_name(tmp_path):
    study = StudyFolder.open(tmp_path / "toy", IDENTITY, resume=False)
    study.create("data")
    for weight in (1.0, 2.0):
        trial = Trial(Configuration.suggested({"recon.weight": weight}, 0), 0)
        write_json(study.trial_folder(trial) / "result.json", dataclasses.asdict(finished(trial)))
    with pytest.raises(ValueError, match="hold other options of configuration 0") as refused:
        StudyFolder.open(tmp_path / "toy", IDENTITY, resume=True)
    assert str(study.trial_folder(trial)) in str(refused.value)
