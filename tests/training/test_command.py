"""`eqssl train`, and what it writes into a bucket read by `eqssl evaluate`."""

import json
import signal

import pytest

from eqssl.evaluation.command import main as evaluate
from eqssl.evaluation.predictions import load_predictions, metrics_of
from eqssl.files import as_path, read
from eqssl.training import checkpoint
from eqssl.training.command import main as train
from eqssl.training.context import LoggingContext

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


@pytest.mark.parametrize(("moment", "saved"), [("start", None), ("epoch", (1, 1)), ("evaluation", (2, 0))])
def test_a_signal_ends_a_run_with_its_state_saved_and_resume_ends_as_an_uninterrupted_one(
    command, tmp_path, monkeypatch, capsys, moment, saved
):
    stopped, whole = ([*command(tmp_path / run, 2), "--data.objects", "24"] for run in ("stopped", "whole"))
    should_checkpoint = LoggingContext.should_checkpoint

    def stop(*arguments, **values):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # as GNU timeout does

    def stop_in_the_second_epoch(context):
        due = should_checkpoint(context)
        if not due and (tmp_path / "stopped" / "checkpoint").exists():
            stop()
            return should_checkpoint(context)
        return due

    with monkeypatch.context() as patch:
        if moment == "start":
            patch.setattr(LoggingContext, "load", stop)
        elif moment == "epoch":
            patch.setattr(LoggingContext, "should_checkpoint", stop_in_the_second_epoch)
        else:
            patch.setattr("eqssl.training.loop.evaluate", stop)
        assert train(stopped) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM: continue with the same command and --resume" in capsys.readouterr().err
    state = checkpoint.load(tmp_path / "stopped" / "checkpoint")
    assert (state and (state["epoch"], state["step"])) == saved
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert train([*stopped, "--resume"]) == train(whole) == 0
    found, expected = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("stopped", "whole"))
    timeless = {name: value for name, value in expected.items() if not name.endswith("_s")}
    assert {name: found[name] for name in timeless} == timeless
