"""`eqssl train`, and what it writes into a bucket read by `eqssl evaluate`."""

import json

import pytest

from eqssl.evaluation.command import main as evaluate
from eqssl.evaluation.predictions import load_predictions, metrics_of
from eqssl.files import as_path, read
from eqssl.training.command import main as train

BUCKET = "s3://studies/train"


@pytest.fixture
def data(tmp_path) -> list[str]:
    options = {"objects": 8, "views-per-object": 4, "image-size": 32, "cache": tmp_path / "cache"}
    return [text for name, value in options.items() for text in (f"--data.{name}", str(value))]


@pytest.fixture
def command(data):
    """Return a run's arguments for an output and a number of epochs."""
    small = "--train.batch-size 16 --evaluate.train-images 16 --evaluate.images 8 --recon.weight 1"
    return lambda output, epochs: [*data, *small.split(), "--train.epochs", str(epochs), "--output", str(output)]


def test_a_run_in_a_bucket_is_resumed_there_and_its_encoder_evaluated(command, data, s3, tmp_path, capsys):
    assert train(command(BUCKET, 2)) == 0
    assert train(command(BUCKET, 2)) == 2
    assert "--output: s3://studies/train holds a run; continue it with --resume" in capsys.readouterr().err
    assert train([*command(BUCKET, 2), "--resume"]) == 0
    assert train(command(tmp_path / "run", 2)) == 0
    there, here = (json.loads(read(as_path(f"{folder}/metrics.json"))) for folder in (BUCKET, str(tmp_path / "run")))
    assert there["loss"] == here["loss"] and there["knn"] == here["knn"]
    assert read(as_path(f"{BUCKET}/reconstructions.png")) == (tmp_path / "run" / "reconstructions.png").read_bytes()

    written = ["--output", f"{BUCKET}/result.json", "--predictions", f"{BUCKET}/said.parquet"]
    assert evaluate([f"{BUCKET}/encoder", *data, *written]) == 0
    figures = json.loads(read(as_path(f"{BUCKET}/result.json")))["metrics"]
    again = metrics_of(load_predictions(as_path(f"{BUCKET}/said.parquet")))
    assert again["r2/floor_hue"] == pytest.approx(figures["r2/floor_hue"], rel=1e-6)


@pytest.mark.parametrize("output", ["s3://nobody/train", "file/train"])
def test_an_output_that_cannot_be_written_is_refused_before_training(
    command, s3, tmp_path, monkeypatch, capsys, output
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert train(command(output, 1)) == 2
    assert f"--output is '{output}', which cannot be written" in capsys.readouterr().err


def test_an_option_without_effect_is_refused(command, tmp_path, capsys):
    given = ["--recon.attention", "concat", "--recon.query-gradient", "0.5"]
    assert train([*command(tmp_path / "run", 1), *given]) == 2
    assert "--recon.query-gradient is 0.5; allowed with --recon.attention pooled-query" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
