"""`eqssl.train`: what it prints, tracks and writes."""

import json
import re
import resource

import pytest
from filelock import FileLock

import eqssl
from eqssl.config import DataConfig, EvaluateConfig, RunConfig, TrainConfig, replace
from eqssl.training.single import epoch_line

RUN = RunConfig(
    data=DataConfig(objects=8, views_per_object=4, image_size=32),
    train=TrainConfig(epochs=2, batch_size=16),
    evaluate=EvaluateConfig(train_images=16, images=8),
)


@pytest.fixture
def run(tmp_path) -> RunConfig:
    return replace(RUN, {"data.cache": str(tmp_path / "cache")})


def test_progress_is_a_line_per_epoch(run, capsys):
    result = eqssl.train(run, progress=True)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch 1/2: loss ") and "ssl " in first and first.endswith(" s left")
    assert last.startswith("epoch 2/2: loss ") and f"kNN {result.metrics['knn']:.4g}" in last and "left" not in last
    assert eqssl.train(run).metrics["loss"] == result.metrics["loss"] and capsys.readouterr().out == ""


def test_a_line_has_the_seconds_left():
    assert epoch_line({"epoch": 2.0, "train_s": 1.5, "loss": 3.25, "parameters": 9.0}, 6) == (
        "epoch 2/6: loss 3.25, 1.5 s, about 6 s left"
    )
    assert epoch_line({"epoch": 0.0, "train_s": 0.0, "knn": 0.5}, 0) == "epoch 0/0: kNN 0.5, 0.0 s"


def test_a_run_is_written_tracked_and_resumed(run, tmp_path):
    import mlflow

    store, output = f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "run")
    eqssl.train(replace(run, {"train.epochs": 1}), output=str(tmp_path / "other"))
    result = eqssl.train(run, output=output, tracking_uri=store)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["knn"] == result.metrics["knn"]
    encoder = eqssl.load_encoder(tmp_path / "run" / "encoder")
    origin = encoder.provenance
    assert origin["options"]["method.name"] == "vicreg" and origin["options"]["recon.weight"] == run.recon.weight
    assert origin["options"]["train.seed"] == 0 and origin["environment"].keys() >= {"eqssl", "torch", "python"}
    assert len(origin["data"]["digest"]) == 16
    with pytest.raises(ValueError, match="holds a run; continue it with --resume"):
        eqssl.train(run, output=output)
    assert eqssl.train(run, output=output, resume=True).metrics["loss"] == result.metrics["loss"]
    (tracked,) = mlflow.MlflowClient(store).search_runs(["1"])
    assert tracked.data.metrics["knn"] == pytest.approx(result.metrics["knn"])


def test_a_disk_that_takes_no_more_is_an_error_with_the_path_and_leaves_no_run_behind(run, tmp_path):
    output = tmp_path / "run"
    eqssl.load_data(run.data)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # bytes of a file
    try:
        with pytest.raises(OSError, match=re.escape(f"{output}/checkpoint/checkpoint.pt")):
            eqssl.train(run, output=str(output))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert eqssl.train(run, output=str(output)).epochs == 2
    (output / "checkpoint" / "checkpoint.pt").unlink()
    with pytest.raises(ValueError, match="holds a run"):  # whose last checkpoint but one is left
        eqssl.train(run, output=str(output))


def test_an_unknown_name_is_refused(run):
    with pytest.raises(ValueError, match="did you mean vicreg"):
        eqssl.train(replace(run, {"method.name": "vicregg"}))


def test_two_runs_do_not_share_a_folder(run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with FileLock(folder / ".lock"), pytest.raises(ValueError, match=f"another process is training in {folder}; wait"):
        eqssl.train(run, output=str(folder))
