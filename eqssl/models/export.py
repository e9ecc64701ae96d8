"""Encoders as folders: `config.json` and `model.safetensors`, in timm's own layout if the backbone is timm's.

`timm.create_model("local-dir:FOLDER", pretrained=True)` then returns the same features from pixels that the
caller standardises, as usual with timm; `load_encoder(FOLDER)` always returns the whole encoder (pixels in [0, 1],
parts known).
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from eqssl.config import EncoderConfig, MethodConfig, from_dict
from eqssl.files import as_path, check_readable, on_disk, write_atomically, write_json
from eqssl.methods import METHODS, build_method
from eqssl.methods.base import Method, Predictive, Sizes
from eqssl.models.encoder import Encoder
from eqssl.models.pretrained import CONFIG, WEIGHTS, read_description

PREDICTOR = "predictor.safetensors"


def export_encoder(encoder: Encoder, folder: str | Path, method: Method | None = None) -> Path:
    """Write an encoder and return its folder.

    Args:
        encoder: any `Encoder`.
        folder: path or URI; made if it is missing.
        method: of its training; its predictor, if it has one, is exported too.
    """
    folder, backbone = as_path(folder), encoder.backbone
    mean, std = encoder.mean_std
    ours: dict[str, Any] = {
        "encoder": dataclasses.asdict(encoder.config),
        "stem": backbone.stem,
        "channels": encoder.channels,
        "image_size": encoder.image_size,
        "mean": mean,
        "std": std,
        "grid": encoder.grid,
        "dim": encoder.dim,
        "dim_inv": encoder.dim_inv,
        "provenance": encoder.provenance,
    }
    about: dict[str, Any] = {"eqssl": ours}
    if obstacle := _timm_obstacle(encoder):
        # timm refuses a name that it does not know, and shows it.
        about["architecture"] = f"{encoder.config.name}: {obstacle}; load this folder by eqssl.load_encoder"
    else:
        size = [encoder.channels, encoder.image_size, encoder.image_size]
        about |= {
            "architecture": encoder.config.name,
            "num_classes": 0,
            "num_features": encoder.dim,
            "model_args": backbone.timm_args,
            "pretrained_cfg": {"input_size": size, "mean": mean, "std": std, "crop_pct": 1.0, "num_classes": 0},
        }
    _save(backbone.weights_owner.state_dict(), folder / WEIGHTS)
    if isinstance(method, Predictive):
        ours["predictor"] = method.init_args
        weights = method.state_dict().items()
        _save({name: value for name, value in weights if name.partition(".")[0] in method.parts}, folder / PREDICTOR)
    write_json(folder / CONFIG, about)
    return folder


def _save(state: dict[str, Tensor], path: Path) -> None:
    data = save({name: value.contiguous() for name, value in state.items()}, metadata={"format": "pt"})
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


@torch.no_grad()
def _timm_obstacle(encoder: Encoder) -> str | None:
    """Return why timm alone would not give the encoder's representation; None if it does."""
    backbone = encoder.backbone
    if backbone.timm_args is None:
        return "no model of timm"
    if backbone.stem != "standard":
        return "a ResNet with a stem for small images, which timm lacks"
    training = encoder.training
    side, generator = encoder.image_size, torch.Generator().manual_seed(0)
    image = torch.rand(1, encoder.channels, side, side, generator=generator).to(encoder.mean.device)
    features, pooled = encoder.eval()(image), backbone.model(encoder.standardise(image))
    encoder.train(training)
    if features.shape == pooled.shape and torch.allclose(features, pooled, rtol=1e-3, atol=1e-4):
        return None
    return "timm's features are no mean over the map"


def load_encoder(folder: str | Path) -> Encoder:
    """Return the encoder of an exported folder, or of its URI, on the CPU in evaluation mode.

    Raises:
        ValueError: for a folder that `export_encoder` did not write.
    """
    folder = as_path(folder)
    check_readable(folder, "the folder")
    about = read_description(folder).get("eqssl")
    if about is None:
        raise ValueError(f"{folder / CONFIG} has no part `eqssl`; load it with timm.create_model('local-dir:{folder}')")
    values = {**about["encoder"], "pretrained": False, "stem": about["stem"]}
    values.setdefault("equi_fraction", values.get("split"))  # its name in earlier exports
    config = from_dict(EncoderConfig, values)
    # Exports without a grid date from when the option meant the standard stem's stride.
    if config.output_stride and config.stem == "small" and "grid" not in about:
        config = dataclasses.replace(config, output_stride=config.output_stride // 4)
    encoder = Encoder(config, about["channels"], about["image_size"], tuple(about["mean"]), tuple(about["std"]))
    with on_disk(folder / WEIGHTS) as path:
        try:
            encoder.backbone.weights_owner.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{folder / WEIGHTS} is damaged ({error})") from error
    encoder.provenance = about.get("provenance", {})
    return encoder.eval()


def load_predictor(folder: str | Path) -> Predictive | None:
    """Return the predictor of a method, on the CPU in evaluation mode, from the folder of its encoder.

    Args:
        folder: as for `load_encoder`.

    Returns:
        None for an encoder of a method without a predictor, or of your own method that is not registered here.
    """
    folder = as_path(folder)
    init_args = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["eqssl"].get("predictor")
    if init_args is None or init_args["config"]["name"] not in METHODS:
        return None
    method = build_method(MethodConfig(**init_args["config"]), Sizes(**init_args["sizes"]))
    assert isinstance(method, Predictive)
    with on_disk(folder / PREDICTOR) as path:
        method.load_state_dict(method.state_dict() | load_file(path))
    return method.eval()
