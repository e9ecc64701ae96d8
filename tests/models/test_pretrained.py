"""Weights to start from: ours, timm's, a file; what does not fit is refused with the names that differ."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from eqssl.config import EncoderConfig, RunConfig, replace
from eqssl.models.encoder import Encoder
from eqssl.models.export import export_encoder, load_encoder
from eqssl.models.pretrained import NEEDED
from eqssl.names import check_names

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def make(size=64, channels=3, seed=0, mean=0.5, **options):
    torch.manual_seed(seed)
    encoder = Encoder(EncoderConfig(**options), channels, size, (mean,) * channels, (0.25,) * channels).train()
    encoder(torch.rand(4, channels, size, size))  # moves the running statistics, which have to travel too
    return encoder.eval()


@pytest.mark.parametrize(
    "options",
    [{}, {"name": "resnet18"}, {"name": "resnet18", "stem": "standard"}, {"name": "vit_tiny_patch16_224"},
     {"name": "convnext_atto"}, {"name": "torchvision/resnet18"}],
)  # fmt: skip
def test_an_exported_encoder_goes_on_with_its_weights_stem_and_normalisation(tmp_path, options):
    first = make(**options)
    folder = str(export_encoder(first, tmp_path))
    config = EncoderConfig(name=first.config.name, pretrained=folder, equi_fraction=0.25)
    again = Encoder(config, 3, 64, (0.1,) * 3, (0.9,) * 3).eval()  # of other data
    assert torch.equal(again(IMAGES), first(IMAGES)) and again.mean_std == first.mean_std
    assert again.dim_inv == round(0.75 * again.dim) and again.backbone.stem == first.backbone.stem
    assert torch.equal(load_encoder(export_encoder(again, tmp_path / "again"))(IMAGES), first(IMAGES))


def test_a_vision_transformer_goes_on_at_another_image_size(tmp_path):
    folder = str(export_encoder(make(32, name="vit_tiny_patch16_224", output_stride=8), tmp_path))
    encoder = make(64, name="vit_tiny_patch16_224", output_stride=8, pretrained=folder)
    assert encoder.grid == (8, 8) and encoder.backbone.model.pos_embed.shape[1] == 65


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_model_of_timm_goes_on_without_its_classifier(tmp_path, name, form):
    sized = {"img_size": 64} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=10, **sized).eval()
    timm.models.save_for_hf(model, tmp_path, model_args=sized, safe_serialization=True)
    path = tmp_path if form == "folder" else tmp_path / "model.safetensors"
    encoder = Encoder(EncoderConfig(name=name, pretrained=str(path)), 3, 64, (0.5,) * 3, (0.25,) * 3).eval()
    features = model.forward_features(encoder.standardise(IMAGES))
    tokens = features[:, 1:] if features.ndim == 3 else features.flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.tokens(IMAGES), tokens)
    published = model.pretrained_cfg["mean"] if form == "folder" else (0.5,) * 3
    assert encoder.mean_std[0] == pytest.approx(published)


def test_a_file_of_torchvision_goes_on(tmp_path):
    import torchvision

    model = torchvision.models.resnet18()
    save_file(model.state_dict(), tmp_path / "resnet18.safetensors")
    encoder = make(name="torchvision/resnet18", pretrained=str(tmp_path / "resnet18.safetensors"))
    assert torch.equal(encoder.backbone.model.conv1.weight, model.conv1.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet34"}, r"with weights of resnet18; --encoder.name is resnet34; allowed: the same model"),
        ({"name": "resnet18", "stem": "standard"}, r"--encoder.stem is 'standard'; allowed with .*: small"),
    ],
)
def test_another_model_or_stem_is_refused_before_anything_starts(tmp_path, options, message):
    folder = str(export_encoder(make(name="resnet18"), tmp_path))
    config = {f"encoder.{option}": value for option, value in options.items()} | {"encoder.pretrained": folder}
    with pytest.raises(ValueError, match=message):
        check_names(replace(RunConfig(), config))


def test_weights_that_do_not_fit_are_named(tmp_path):
    folder = str(export_encoder(make(32, 1), tmp_path))
    with pytest.raises(ValueError, match=r"do not fit resnet_tiny: 1 of another shape, such as patches.0.weight is "
                       r"\(32, 1, 4, 4\), the model's \(32, 3, 4, 4\)"):  # fmt: skip
        make(pretrained=folder)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"\d+ missing, such as patches.0.weight; 1 unknown, such as a$"):
        make(pretrained=str(tmp_path / "other.safetensors"))


def test_what_is_no_folder_of_weights_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--encoder.pretrained: .*nothing is not an exported encoder: it needs conf"):
        make(pretrained=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"none.safetensors', which does not exist"):
        make(pretrained=str(tmp_path / "none.safetensors"))
    folder = export_encoder(make(), tmp_path)
    result = tmp_path / "result"
    export_encoder(make(), result / "encoder")
    with pytest.raises(ValueError, match=f"{result} is not an exported .*; did you mean {result / 'encoder'};"):
        make(pretrained=str(result))
    (folder / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        make(pretrained=str(folder))
    for about in ([], {"eqssl": {}}, {"eqssl": None}, {"eqssl": dict.fromkeys(NEEDED, 1)}):
        (folder / "config.json").write_text(json.dumps(about))
        with pytest.raises(ValueError, match=r"--encoder.pretrained: .*config.json describes no encoder: "):
            make(pretrained=str(folder))
        with pytest.raises(ValueError, match=r"config.json describes no encoder: "):
            load_encoder(folder)
    (folder / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"neither a part `eqssl` nor timm's `architecture`"):
        make(pretrained=str(folder))


@pytest.mark.parametrize(
    ("arguments", "value"),
    [([], False), (["--encoder.pretrained"], True), (["--encoder.pretrained", "--train.epochs", "3"], True),
     (["--encoder.pretrained", "True"], True), (["--encoder.pretrained", "False"], False),
     (["--encoder.pretrained", "results/encoder"], "results/encoder")],
)  # fmt: skip
def test_the_option_takes_a_folder_or_nothing(arguments, value):
    import tyro

    assert tyro.cli(RunConfig, args=arguments).encoder.pretrained == value
