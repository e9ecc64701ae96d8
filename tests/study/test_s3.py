"""A study whose data and results lie in a bucket is the study of a local folder, whatever happens on the way."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

import eqssl
from eqssl.config import replace
from eqssl.data import load_data
from eqssl.evaluation.command import Command, run
from eqssl.files import as_path, find, read
from eqssl.methods import register_method
from eqssl.methods.vicreg import VICReg
from eqssl.report.command import main as report
from eqssl.study import Study, StudyOptions, choice, run_study
from eqssl.study.execution.preflight import check_options
from eqssl.study.options import settle
from eqssl.study.store.records import StudyFolder

pytestmark = pytest.mark.slow
BUCKET, OUTAGE_S = "s3://studies/results", 4.0


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(s3):
    import ray

    # Its processes know the server from the environment.
    ray.init(num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def sets(base) -> tuple[str, str]:
    """Return the same images as a local folder and in the bucket."""
    load_data(base.data)
    local = next(Path(base.data.cache).glob("*/train-*.parquet")).parent
    bucket = as_path("s3://studies/data")
    for file in local.iterdir():
        bucket.fs.put_file(str(file), (bucket / file.name).path)
    return str(local), str(bucket)


def without_s(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.endswith("_s")}


def metrics(summary: dict) -> dict[str, dict[str, float]]:
    assert {trial["status"] for trial in summary["trials"]} == {"COMPLETE"}
    return {trial["trial_id"]: without_s(trial["metrics"]) for trial in summary["trials"]}


def mortal(marker: Path) -> type[VICReg]:
    """Return VICReg whose process is killed half-way, once for a marker."""

    class Mortal(VICReg):
        def __init__(self, sizes):
            super().__init__(sizes)

        def forward(self, pair):
            if self.progress >= 0.5 and not os.path.exists(marker):
                open(marker, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(pair)

    return Mortal


@pytest.fixture(scope="module")
def studies(tmp_path_factory, base, sets, s3):
    """Run the study on local folders, then in the bucket, where a process is killed and the store is away a while."""
    folder = tmp_path_factory.mktemp("studies")
    marker = folder / "killed"
    register_method("mortal", mortal(marker))
    local, bucket = sets
    # A relative path is the command's, wherever Ray has its processes.
    base = replace(base, {"method.name": "mortal", "data.source": "parquet", "data.path": Path(local).name})
    study = Study(name="toy", question="?", space={"recon.weight": choice(1.0, 2.0)}, rows={}, base=base, smoke={})
    options = StudyOptions(
        run=base, seeds=1, concurrency=1, smoke=True,  # without a forecast's steps
        output=str(folder / "results"), tracking_uri=f"sqlite:///{folder}/mlflow.db",
    )  # fmt: skip
    marker.touch()
    with contextlib.chdir(Path(local).parent):
        unharmed = run_study(study, options)
    marker.unlink()

    def outage() -> None:
        while not find(as_path(BUCKET), "toy/trials/*/result.json"):
            time.sleep(0.1)
        s3.away()
        time.sleep(OUTAGE_S)
        s3.back()

    thread = threading.Thread(target=outage)
    thread.start()
    options = dataclasses.replace(options, run=replace(base, {"data.path": bucket}), output=BUCKET)
    harmed = run_study(study, options)
    thread.join()
    assert marker.exists()
    return folder / "results" / "toy", unharmed, harmed, study, options


def names(folder) -> set[str]:
    """Return the files of a study."""
    if isinstance(folder, Path):
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name.removeprefix(f"{folder.path}/") for name in folder.fs.find(folder.path)}


def test_results_are_the_same_to_the_bit_and_so_are_the_files(studies, sets):
    local, unharmed, harmed, _, _ = studies
    assert metrics(harmed) == metrics(unharmed)
    told = [warning.replace(sets[1], Path(sets[0]).name) for warning in harmed["data"]["warnings"]]
    assert harmed["data"] | {"warnings": told} == unharmed["data"]  # a warning names the path
    (error,) = names(as_path(BUCKET) / "toy") - names(local)  # of the process that was killed
    assert error.endswith("/error.txt") and names(local) < names(as_path(BUCKET) / "toy")
    assert len(as_path(BUCKET).fs.find("studies/results")) == len(names(local)) + 1
    assert "attention.png" in names(local) and any(name.endswith("/attention.npz") for name in names(local))


def test_a_resume_trains_what_is_missing(studies):
    _, unharmed, harmed, study, options = studies
    folder = as_path(BUCKET) / "toy"
    kept, lost = (folder / "trials" / trial["trial_id"] / "result.json" for trial in harmed["trials"])
    lost.unlink()
    before = read(kept)
    with pytest.raises(ValueError, match="--output: s3://studies/results/toy holds a study; continue it with --resume"):
        run_study(study, options)
    again = run_study(study, dataclasses.replace(options, resume=True))
    assert metrics(again) == metrics(unharmed)
    assert read(kept) == before and read(lost)


def test_encoder_evaluation_and_report_are_read_from_the_bucket(studies, monkeypatch, capsys):
    local, _, _, _, options = studies
    mine, theirs = (eqssl.load_encoder(f"{folder}/best_encoder") for folder in (local, f"{BUCKET}/toy"))
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    figures = [
        run(Command(f"{folder}/best_encoder", options.run.data, options.run.evaluate))["metrics"]
        for folder in (local, f"{BUCKET}/toy")
    ]
    assert without_s(figures[0]) == without_s(figures[1])
    (as_path(BUCKET) / "toy" / "report.html").unlink()
    monkeypatch.setattr("sys.argv", ["report", f"{BUCKET}/toy"])
    assert report() == 0
    assert "weight 1" in capsys.readouterr().out
    assert b"<html" in read(as_path(BUCKET) / "toy" / "report.html")


def test_a_search_learns_from_the_bucket(studies, tmp_path):
    _, _, _, study, options = studies
    options = dataclasses.replace(options, output=str(tmp_path), warm_start=f"{BUCKET}/toy", sampler="tpe")
    study, options = settle(study, options)
    check_options(study, options)
    with pytest.raises(ValueError, match="--sampler is grid; allowed with --warm-start: tpe, gp, nsga2, nsga3"):
        check_options(study, dataclasses.replace(options, sampler="grid"))
    points = StudyFolder.open(tmp_path / "toy", {}, resume=False).warm_points(options.warm_start, study.objectives)
    assert [params for params, _ in points] == [{"recon.weight": 1.0}, {"recon.weight": 2.0}]
    with pytest.raises(ValueError, match=r"--warm-start is 's3://studies/none'"):
        check_options(study, dataclasses.replace(options, warm_start="s3://studies/none"))


def test_two_workers_share_the_bucket_and_leave_nothing_of_ray(studies):
    _, _, _, study, options = studies
    base = replace(options.run, {"train.epochs": 1})
    study = dataclasses.replace(study, name="two", space={}, rows={}, base=base)
    options = dataclasses.replace(options, run=base, concurrency=None, workers_per_trial=2)
    (trial,) = run_study(study, options)["trials"]
    assert trial["status"] == "COMPLETE", trial["error"]
    found = names(as_path(BUCKET) / "two")
    assert "summary.json" in found and not any(name.startswith(".") for name in found)
