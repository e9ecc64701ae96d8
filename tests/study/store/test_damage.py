"""A study with any file of its folder damaged ends as the one that was left alone, or names the file.

The trials are made up, so that a resume takes milliseconds; for real ones see tests/study/test_damaged_study.py.
"""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eqssl.config import replace
from eqssl.study import Study, StudyOptions, uniform
from eqssl.study.options import settle
from eqssl.study.results import choose
from eqssl.study.search.schedule import Suggestions
from eqssl.study.search.space import Trial
from eqssl.study.store.records import CONTRIBUTIONS, RECONSTRUCTIONS, StudyFolder, TrialRecord, trial_outputs
from eqssl.study.table import Table

STUDY = Study(
    name="toy",
    question="?",
    space={"recon.weight": uniform(0.0, 1.0), "augment.hue": uniform(0.0, 1.0)},
    rows={"pixels": None, "base": {"recon.weight": 0.0}},
    objectives={"knn": "maximize", "r2_mean": "maximize"},
)
OPTIONS = settle(STUDY, StudyOptions(configs=13, seeds=1, sampler="tpe"))[1]
IDENTITY = {"study": "toy", "rows": dict(STUDY.rows), "configs": 13}
WHOLE = 15  # trials
RECORDS = ("trial", "result")


def resume(folder: Path, most: int = WHOLE) -> tuple[dict, object]:
    """Run the study until so many trials have ended; return what it found, and its choice."""
    record = StudyFolder.open(folder, IDENTITY, resume=folder.exists())
    suggestions = Suggestions(STUDY, OPTIONS)
    suggestions.restore(record.configurations(), record.records())
    record.create("data")
    while (trial := suggestions.next()) is not None:
        record.trial_suggested(trial)
        if len(record.records()) == most:  # which a kill interrupts
            (record.trial_folder(trial) / "checkpoint").mkdir()
            (record.trial_folder(trial) / "checkpoint" / "checkpoint.pt").write_text("state")
            break
        ended = trained(record.trial_folder(trial), trial)
        record.trial_ended(trial, ended)
        suggestions.trial_ended(trial, ended)
    records = record.records()
    table = Table(records.values(), STUDY.controls, STUDY.objectives)
    return {id: (of.configuration, of.number, of.metrics) for id, of in records.items()}, choose(STUDY, table)


def trained(folder: Path, trial: Trial) -> TrialRecord:
    """Return the record of a trial whose metrics are a function of its options, and leave its files."""
    score = int(hashlib.sha256(trial.id.encode()).hexdigest()[:6], 16) / 2**24
    if trial.configuration.overrides is not None:
        (folder / "encoder").mkdir(parents=True, exist_ok=True)
        (folder / "encoder" / "config.json").write_text(json.dumps({"eqssl": {}}))
        header = b'{"w": 1}'
        (folder / "encoder" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"w" * 99)
        np.save(folder / RECONSTRUCTIONS, np.zeros((3, 2), np.uint8))
    pq.write_table(pa.table({"metric": ["knn"] * 9, "value": [score] * 9}), folder / CONTRIBUTIONS)
    return TrialRecord(
        trial_id=trial.id,
        configuration=trial.configuration.name,
        number=trial.configuration.number,
        params=trial.configuration.overrides or {},
        seed=trial.seed,
        status="COMPLETE",
        metrics={"knn": score, "r2_mean": 1 - score},
        files=trial_outputs(folder),
    )


DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size)),
    "foreign": lambda path: path.write_text('{"name": "weight 1", "status": "COMPLETE"}'),
}


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Return what the undisturbed study finds, and its folder when 12 trials and when all have ended."""
    half, whole = (tmp_path_factory.mktemp("studies") / name for name in ("half", "whole"))
    resume(half, most=12)
    found = resume(whole)
    assert len(found[0]) == WHOLE and found[1].configuration != "base"
    return found, {"half": half, "whole": whole}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("progress", ["half", "whole"])
def test_whichever_file_is_damaged_the_study_ends_as_if_nothing_had_been(studies, tmp_path, caplog, damage, progress):
    expected, folders = studies
    files = sorted(path.relative_to(folders[progress]) for path in folders[progress].rglob("*") if path.is_file())
    trials = sorted({path.parts[1] for path in files if path.parts[0] == "trials"})
    assert len(trials) == {"half": 13, "whole": 15}[progress]
    # Of files of one kind some: those of a trial in progress, and of two that have ended.
    kept = {trials[0], trials[-1], *(path.parts[1] for path in files if path.name == "checkpoint.pt"), "0004.json"}
    files = [path for path in files if len(path.parts) == 1 or path.parts[0] == "runs" or path.parts[1] in kept]
    names = {path.name for path in files}
    assert {"study.json", "0004.json", "trial.json", "result.json", CONTRIBUTIONS, "model.safetensors"} <= names
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(folders[progress], folder)
        DAMAGES[damage](folder / file)
        caplog.clear()
        assert resume(folder) == expected, file
        copies_and_state = file.name == "checkpoint.pt" or file.parts == ("runs", "study.json")
        if damage != "deleted" and not copies_and_state:
            assert str(folder / file) in caplog.text, file


@pytest.mark.parametrize("progress", ["half", "whole"])
def test_a_removed_folder_of_a_trial_is_filled_by_the_same_trial(studies, tmp_path, progress):
    expected, folders = studies
    for trial in sorted(path.name for path in (folders[progress] / "trials").iterdir()):
        folder = tmp_path / trial
        shutil.copytree(folders[progress], folder)
        shutil.rmtree(folder / "trials" / trial)
        assert resume(folder) == expected, trial


def test_half_of_all_files_at_once(studies, tmp_path):
    """Of every number one of its two records is left."""
    expected, folders = studies
    for drawn in range(5):
        folder = tmp_path / str(drawn)
        shutil.copytree(folders["half"], folder)
        rng = np.random.default_rng(drawn)
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name not in ("study.json", "trial.json") and rng.uniform() < 0.5:
                DAMAGES[rng.choice(list(DAMAGES))](path)
        assert resume(folder) == expected


def test_the_records_of_another_study_are_named_and_not_taken(studies, tmp_path, caplog):
    """They have the same trials, such as of a smoke run, with other results; or other configurations."""
    expected, folders = studies
    folder, other = tmp_path / "toy", tmp_path / "other"
    shutil.copytree(folders["half"], folder)
    resume(other)
    for file in ("configs/0003.json", *(f"trials/{next((other / 'trials').iterdir()).name}/{n}.json" for n in RECORDS)):
        values = json.loads((other / file).read_text())
        if "metrics" in values:
            values["metrics"]["knn"] = 9.0
        (folder / file).write_text(json.dumps(values))
    different = dataclasses.replace(OPTIONS, run=replace(OPTIONS.run, {"train.seed": 7}))
    record = StudyFolder(folder, "different", IDENTITY)
    for trial in iter(Suggestions(STUDY, different).next, None):
        if trial.configuration.number == 4:
            record.trial_suggested(trial)
            record.trial_ended(trial, trained(record.trial_folder(trial), trial))
            named = record.trial_folder(trial) / "result.json"
    assert resume(folder) == expected
    assert f"{named} is damaged and set aside as result.json.damaged: it is of another study" in caplog.text
    assert f"{folder / 'configs' / '0003.json'} is damaged" in caplog.text
