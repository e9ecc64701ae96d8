"""Real studies whose folders were damaged end as the one that was left alone; see also store/test_damage.py.

The study trains once; every test damages many of its files at once, so that one resume makes all of them good.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from eqssl.config import replace
from eqssl.study import Study, StudyOptions, choice, run_study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(base):
    rows = {"pixels": None, "base": {"encoder.equi_fraction": 0.0, "recon.weight": 0.0}}
    run = replace(base, {"train.epochs": 1})
    return Study(name="toy", question="?", space={"recon.weight": choice(0.5, 1.0, 2.0)}, rows=rows, base=run, smoke={})


@pytest.fixture(scope="module")
def whole(tmp_path_factory, study):
    import ray

    ray.init(num_cpus=2, log_to_driver=False)
    output = tmp_path_factory.mktemp("whole")
    options = StudyOptions(
        run=study.base, configs=3, seeds=1, output=str(output), tracking_uri=f"sqlite:///{output}/mlflow.db", smoke=True
    )
    yield output / "toy", run_study(study, options), options
    ray.shutdown()


def certificate(summary):
    """Return all that a study found, but for times."""
    trials = {t["trial_id"]: t for t in summary["trials"]}
    timeless = {i: {f: v for f, v in t["metrics"].items() if not f.endswith("_s")} for i, t in trials.items()}
    found = {i: (t["configuration"], t["number"], t["seed"], t["status"], timeless[i]) for i, t in trials.items()}
    return found, summary["chosen"], summary["sentence"], summary["status"]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def noise(path):
    path.write_bytes(b"\x00\xff?" * (path.stat().st_size // 3 + 1))


def empty(path):
    path.write_bytes(b"")


BATCHES = {
    "one file of every trial": [
        (cut, "study.json"), (cut, "trials/0/result.json"), (noise, "trials/1/contributions.parquet"),
        (empty, "trials/2/encoder/model.safetensors"), (noise, "trials/3/trial.json"),
        (cut, "trials/4/reconstructions.npy"), (empty, "summary.json"),
    ],
    "folders": [
        (shutil.rmtree, "trials/2"), (shutil.rmtree, "trials/4"), (shutil.rmtree, "configs"),
        (shutil.rmtree, "best_encoder"), (Path.unlink, "runs/0001.json"), (noise, "report.html"),
    ],
    "the records of trials that have not ended": [
        (cut, "configs/0001.json"), (noise, "configs/0002.json"), (empty, "trials/2/result.json"),
        (empty, "trials/3/result.json"), (empty, "trials/3/trial.json"), (cut, "optuna.journal"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("batch", BATCHES)
def test_a_damaged_study_ends_as_the_one_that_was_left_alone(whole, study, tmp_path, batch):
    folder, summary, options = whole
    shutil.copytree(folder, tmp_path / "toy")
    trials = [trial["trial_id"] for trial in summary["trials"]]
    assert [trial["configuration"] for trial in summary["trials"][:2]] == ["pixels", "base"] and len(trials) == 5
    for damage, name in BATCHES[batch]:
        parts = name.split("/")
        if parts[0] == "trials":
            parts[1] = trials[int(parts[1])]
        damage((tmp_path / "toy").joinpath(*parts))
    for trial in trials:  # a checkpoint that is no checkpoint
        path = tmp_path / "toy" / "trials" / trial / "checkpoint"
        path.mkdir(parents=True, exist_ok=True)
        (path / "checkpoint.pt").write_bytes(b"PK noise")
    again = run_study(study, dataclasses.replace(options, output=str(tmp_path), resume=True))
    assert certificate(again) == certificate(summary)
    assert json.loads((tmp_path / "toy" / "summary.json").read_text())["chosen"] == summary["chosen"]
    assert (tmp_path / "toy" / "best_encoder" / "model.safetensors").read_bytes() == (
        folder / "best_encoder" / "model.safetensors"
    ).read_bytes()
