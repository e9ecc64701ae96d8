"""Exported encoders: the round trip through files, ours and timm's."""

import json
import subprocess
import sys

import pytest
import timm
import torch

from eqssl.config import EncoderConfig, MethodConfig
from eqssl.methods import build_method
from eqssl.methods.base import Sizes
from eqssl.models.encoder import Encoder
from eqssl.models.export import export_encoder, load_encoder, load_predictor


def make(size=64, channels=3, **options):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(**options), channels, size, (0.5,) * channels, (0.25,) * channels).train()
    encoder(torch.rand(4, channels, size, size))  # moves the running statistics, which have to travel too
    return encoder.eval()


@pytest.mark.parametrize(
    "options",
    [{}, {"equi_fraction": 0.0}, {"name": "resnet18"}, {"name": "torchvision/resnet18"},
     {"name": "resnet18", "stem": "standard", "output_stride": 8}],
)  # fmt: skip
def test_what_comes_back_is_the_encoder(tmp_path, options):
    encoder = make(**options)
    again = load_encoder(export_encoder(encoder, tmp_path / "encoder"))
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(again(images), encoder(images))
    assert (again.dim_inv, again.config.name) == (encoder.dim_inv, encoder.config.name) and not again.training


@pytest.mark.parametrize(
    ("options", "size", "channels"),
    [({"name": "resnet18", "stem": "standard", "output_stride": 8}, 64, 3),
     ({"name": "vit_tiny_patch16_224", "output_stride": 8}, 32, 1), ({"name": "efficientnet_b0"}, 64, 3)],
)  # fmt: skip
def test_timm_alone_returns_the_representation(tmp_path, options, size, channels):
    encoder = make(size, channels, **options)
    folder = export_encoder(encoder, tmp_path)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(2, channels, size, size)
    torch.testing.assert_close(model(encoder.standardise(images)), load_encoder(folder)(images))
    assert (tuple(model.pretrained_cfg["mean"]), model.pretrained_cfg["crop_pct"]) == (encoder.mean_std[0], 1)


@pytest.mark.parametrize(
    ("options", "obstacle"),
    [({}, "resnet_tiny: no model of timm"), ({"name": "torchvision/resnet18"}, "resnet18: no model of timm"),
     ({"name": "resnet18"}, "resnet18: a ResNet with a stem for small images, which timm lacks"),
     ({"name": "convnext_atto"}, "convnext_atto: timm's features are no mean over the map"),
     ({"name": "deit_tiny_distilled_patch16_224"}, "timm's features are no mean over the map")],
)  # fmt: skip
def test_timm_refuses_what_it_would_load_as_another_encoder(tmp_path, options, obstacle):
    folder = export_encoder(make(**options), tmp_path)
    with pytest.raises(RuntimeError, match=f"{obstacle}; load this folder by eqssl.load_encoder"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_the_origin_travels(tmp_path):
    encoder = make()
    assert load_encoder(export_encoder(encoder, tmp_path)).provenance == {}
    encoder.provenance = {"options": {"method.name": "vicreg"}, "data": {"digest": "0123"}}
    assert load_encoder(export_encoder(encoder, tmp_path)).provenance == encoder.provenance
    assert json.loads((tmp_path / "config.json").read_text())["eqssl"]["provenance"] == encoder.provenance


def test_loading_imports_nothing_of_training_and_studies(tmp_path):
    code = f"import eqssl, sys; eqssl.load_encoder({str(export_encoder(make(), tmp_path))!r}); "
    code += "print({'ray', 'mlflow', 'optuna', 'matplotlib', 'pandas', 'sklearn', 'timm'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_the_stride_of_an_earlier_export_is_what_it_was_of_the_standard_stem(tmp_path):
    encoder = make(32, name="resnet18", output_stride=2)
    folder = export_encoder(encoder, tmp_path / "encoder")
    about = json.loads((folder / "config.json").read_text())
    del about["eqssl"]["grid"]
    about["eqssl"]["encoder"]["output_stride"] = 8
    (folder / "config.json").write_text(json.dumps(about))
    images = torch.rand(2, 3, 32, 32)
    assert encoder.grid == (16, 16) and torch.equal(load_encoder(folder)(images), encoder(images))


def test_an_earlier_export_names_the_equivariant_fraction_split(tmp_path):
    folder = export_encoder(make(equi_fraction=0.25), tmp_path)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"equi_fraction"', '"split"'))
    assert load_encoder(folder).dim_inv == 96


def test_every_user_may_read_the_weights(tmp_path):
    folder = export_encoder(make(), tmp_path)
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not an exported encoder"):
        load_encoder(tmp_path)
    export_encoder(make(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
    with pytest.raises(ValueError, match="has no part `eqssl`"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(("name", "options"), [("sie", {"factors": "rotation", "width": 24}), ("equimod", {})])
def test_a_predictor_goes_with_its_encoder(tmp_path, name, options):
    encoder = make(64, name="resnet18", stem="standard", output_stride=8)
    sizes = Sizes(inv=encoder.dim_inv, equi=encoder.dim - encoder.dim_inv, theta={"rotation": 4, "floor_hue": 1})
    method = build_method(MethodConfig(name=name, options=options), sizes)
    representation, theta = torch.randn(8, encoder.dim), torch.randn(8, sum(method.factors.values()))
    method.predict(method.embed(representation), theta)  # moves the running statistics
    folder, method = export_encoder(encoder, tmp_path, method), method.eval()
    again = load_predictor(folder)
    assert again.factors == method.factors and not again.training
    embedding = method.embed(representation)
    assert torch.equal(again.embed(representation), embedding)
    assert torch.equal(again.predict(embedding, theta), method.predict(embedding, theta))
    timm.create_model(f"local-dir:{tmp_path}", pretrained=True)  # takes the encoder's weights, not the predictor's


def test_a_method_without_a_predictor_leaves_nothing_but_the_encoder(tmp_path):
    method = build_method(MethodConfig(name="vicreg"), Sizes(inv=64))
    assert load_predictor(export_encoder(make(), tmp_path, method)) is None
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
