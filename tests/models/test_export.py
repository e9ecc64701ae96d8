"""Exported encoders: the round trip through files, ours and timm's."""

import json

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
     ({"name": "vit_tiny_patch16_224", "output_stride": 8}, 32, 1)],
)  # fmt: skip
def test_timm_loads_its_own_backbones(tmp_path, options, size, channels):
    encoder = make(size, channels, **options)
    export_encoder(encoder, tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(2, channels, size, size)
    features = model.forward_features(encoder.standardise(images))
    tokens = features[:, model.num_prefix_tokens :] if features.ndim == 3 else features.flatten(2).transpose(1, 2)
    assert torch.equal(tokens, encoder.tokens(images))


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
    with pytest.raises(ValueError, match="is no exported encoder"):
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
