"""The command: any model, one table, one JSON file."""

import json
import re
from dataclasses import replace

import pytest
import torch

from eqssl.config import EncoderConfig, MethodConfig
from eqssl.data import register_source
from eqssl.evaluation import PROTOCOL_VERSION
from eqssl.evaluation.command import main
from eqssl.evaluation.predictions import load_predictions, metrics_of
from eqssl.evaluation.protocol import collapse_metrics
from eqssl.evaluation.transforms import digest
from eqssl.methods import build_method
from eqssl.methods.base import Sizes
from eqssl.models.encoder import Encoder
from eqssl.models.export import export_encoder


@pytest.fixture
def command(flat_images, capsys):
    register_source("flat", lambda config: flat_images)

    def run(*arguments, code=0):
        assert main(["--data.source", "flat", *map(str, arguments)]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


def test_pixels_as_table_and_json(command, tmp_path):
    out = command("pixels", "--output", tmp_path / "new" / "pixels.json", "--evaluate.split", "test")
    result = json.loads((tmp_path / "new" / "pixels.json").read_text())
    assert result["protocol"] == PROTOCOL_VERSION and result["transforms"] == digest()
    assert result["evaluate"]["split"] == "test" and result["data"]["name"] == "flat"
    assert not result["pretrained"]
    assert f"{result['metrics']['r2/brightness']:.4f}" in out and digest() in out
    assert "invariant" not in out


def test_constant(command):
    assert "pixels" not in command("constant") and "knn" in command("constant")


def test_an_exported_encoder_has_a_column_for_each_part(command, tmp_path):
    encoder = Encoder(EncoderConfig(equi_fraction=0.5), 3, 32, (0.5,) * 3, (0.25,) * 3)
    out = command(export_encoder(encoder, tmp_path / "encoder"))
    assert "equivariant" in out and "r2_mean" in out


def test_a_name_without_published_weights_is_evaluated_untrained(command, tmp_path):
    command("resnet_tiny", "--output", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    assert not result["pretrained"] and "inv/knn" not in result["metrics"]


def test_an_encoder_of_other_images_sees_what_it_was_made_for(command, tmp_path):
    encoder = Encoder(EncoderConfig(equi_fraction=0.5), 1, 28, (0.5,), (0.25,))
    folder = export_encoder(encoder, tmp_path / "encoder")
    out = command(folder, "--output", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["changes"] == ["luma of colour images", "32 px resized to 28 px"]
    assert "luma of colour images" in " ".join(out.split()) and "inv/r2_mean" in result["metrics"]
    assert result["metrics"]["r2/brightness"] > 0.5


def test_one_file_for_two_outputs_is_refused(command, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "f")
    text = command("pixels", "--output", tmp_path / "f", "--predictions", tmp_path / "link", code=2)
    assert f"--output and --predictions are both '{tmp_path}/f'; allowed: two files" in text
    assert "--output is empty" in command("pixels", "--output", "", code=2)


def test_protocols_and_predictions(command, tmp_path):
    path = tmp_path / "new" / "predictions.parquet"
    images = ["--evaluate.images", 100, "--evaluate.train-images", 200]
    command("pixels", "--protocols", "eqssl", "augself", "finetune", "--output", tmp_path / "result.json",
            "--predictions", path, *images)  # fmt: skip
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert {"r2/brightness", "augself/r2/crop", "finetune_1pct/accuracy"} <= metrics.keys()
    again = metrics_of(load_predictions(path))
    assert again == pytest.approx({name: metrics[name] for name in again}, abs=1e-6)
    assert metrics.keys() - again.keys() == collapse_metrics(torch.rand(4, 2)).keys()


def test_a_protocol_that_the_data_cannot_serve_is_refused(command, objects):
    assert re.search(
        r"3diebench; allowed for flat: eqssl, augself, finetune", command("pixels", "--protocols", "3diebench", code=2)
    )
    register_source("flat", lambda config: objects)
    error = command("pixels", "--protocols", "eqssl", "finetune", code=2)
    assert re.search(r"finetune; allowed for objects: eqssl, 3diebench, augself", error)


def test_a_predictor_that_was_exported_is_asked_beside_the_fitted_one(command, objects, tmp_path):
    splits = {name: getattr(objects, name) for name in ("train", "val", "test")}
    known = {name: split.factors | {"light_hue": split.factors["floor_hue"]} for name, split in splits.items()}
    lit = {name: replace(split, factors=known[name]) for name, split in splits.items()}
    register_source("flat", lambda config: replace(objects, **lit))
    encoder = Encoder(EncoderConfig(), objects.channels, objects.image_size, objects.mean, objects.std)
    sizes = Sizes(inv=encoder.dim_inv, equi=encoder.dim - encoder.dim_inv, theta={"rotation": 4, "crop": 3})
    folder = export_encoder(encoder, tmp_path, build_method(MethodConfig(name="sie"), sizes))
    images = ["--evaluate.images", 40, "--evaluate.train-images", 50]
    command(folder, "--protocols", "3diebench", "--output", tmp_path / "result.json", *images)
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    own = {name.partition("own_")[2] for name in metrics if "own_" in name}
    assert own == {name.partition("/posthoc_")[2] for name in metrics if name.startswith("3die/posthoc_")}
    assert metrics["3die/own_views"] == 3
    assert all(0 <= metrics[f"3die/own_{name}"] <= 1 for name in own - {"views"})


def test_an_output_that_cannot_be_written_is_refused_first(command, tmp_path):
    (tmp_path / "file").write_text("")
    assert re.match(r"error: .*file", command("pixels", "--output", tmp_path / "file" / "result.json", code=2))


def test_options_that_the_source_does_not_read_are_refused(tmp_path, capsys):
    assert main(["pixels", "--data.path", str(tmp_path)]) == 2
    assert re.match(r"error: --data.path is .*; allowed with .*imagefolder.*, not with solids", capsys.readouterr().err)


def test_an_unknown_model_is_refused(command, tmp_path):
    error = command("results/nothing", "--data.path", tmp_path / "none", "--output", tmp_path / "result.json", code=2)
    assert error.startswith("error: MODEL is 'results/nothing', which is not a folder; allowed: ")
    assert not (tmp_path / "result.json").exists()


def test_a_folder_is_refused_as_a_file_and_as_a_model_before_the_data_are_read(command, tmp_path):
    register_source("flat", lambda config: pytest.fail("the data are read"))
    for option in ("--output", "--predictions"):
        assert f"error: {option} is '{tmp_path}', a folder; allowed: a file" in command(
            "pixels", option, tmp_path, code=2
        )
    assert f"error: MODEL: {tmp_path} is not an exported encoder: it needs config.json" in command(tmp_path, code=2)


def test_published_weights_that_are_not_to_be_had_are_refused_before_the_data_are_read(command, monkeypatch):
    register_source("flat", lambda config: pytest.fail("the data are read"))
    monkeypatch.setattr("eqssl.models.backbones._ask_hub", lambda model: (_ for _ in ()).throw(OSError("no such host")))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: None)
    error = command("resnet18", code=2)
    assert "the published weights of resnet18 are not in the cache and cannot be downloaded (no such host)" in error
    assert "--no-pretrained" in error
