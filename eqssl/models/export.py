"""Encoders as folders: `config.json` and `model.safetensors`, in timm's own layout where the backbone is timm's.

`timm.create_model("local-dir:FOLDER")` then gives the backbone (pixels standardised outside, as timm has it), and
`load_encoder(FOLDER)` the whole encoder (pixels in [0, 1], split known) in every case.
"""

import dataclasses
import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from eqssl.config import EncoderConfig, MethodConfig, from_dict
from eqssl.files import as_path, check_storage, on_disk, write_atomically
from eqssl.methods import METHODS, build_method
from eqssl.methods.base import Method, Predictive, Sizes
from eqssl.models.backbones import TimmBackbone
from eqssl.models.encoder import Encoder

CONFIG, WEIGHTS, PREDICTOR = "config.json", "model.safetensors", "predictor.safetensors"


def export_encoder(encoder: Encoder, folder: str | Path, method: Method | None = None) -> Path:
    """Write an encoder and return its folder.

    Args:
        encoder: any `Encoder`.
        folder: or a URI of one; made if it is not there.
        method: that it was trained with, whose predictor goes with it where it has one.
    """
    folder, about = as_path(folder), _describe(encoder)
    _save(_weights_owner(encoder).state_dict(), folder / WEIGHTS)
    if isinstance(method, Predictive):
        about["eqssl"]["predictor"] = method.recipe
        _save(_of_predictor(method), folder / PREDICTOR)
    text = json.dumps(about, indent=2) + "\n"
    write_atomically(folder / CONFIG, lambda temporary: temporary.write_text(text))
    return folder


def _of_predictor(method: Predictive) -> dict[str, Tensor]:
    return {name: value for name, value in method.state_dict().items() if name.partition(".")[0] in method.parts}


def _save(state: dict[str, Tensor], path: Path) -> None:
    weights = {name: value.contiguous() for name, value in state.items()}
    write_atomically(path, lambda temporary: save_file(weights, temporary, metadata={"format": "pt"}))


def load_encoder(folder: str | Path) -> Encoder:
    """Return the encoder of an exported folder, or of a URI of one, on the CPU in evaluation mode.

    Raises:
        ValueError: for a folder that `export_encoder` did not write.
    """
    folder = as_path(folder)
    check_storage(folder, "the folder", write=False)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} is no exported encoder: it needs {CONFIG} and {WEIGHTS}")
    about = json.loads((folder / CONFIG).read_text()).get("eqssl")
    if about is None:
        raise ValueError(f"{folder / CONFIG} has no part `eqssl`; load it with timm.create_model('local-dir:{folder}')")
    config = from_dict(EncoderConfig, {**about["encoder"], "pretrained": False, "stem": about["stem"]})
    # Written before the grid was, when the option meant the standard stem's stride.
    if config.output_stride and config.stem == "small" and "grid" not in about:
        config = dataclasses.replace(config, output_stride=config.output_stride // 4)
    encoder = Encoder(config, about["channels"], about["image_size"], tuple(about["mean"]), tuple(about["std"]))
    with on_disk(folder / WEIGHTS) as path:
        _weights_owner(encoder).load_state_dict(load_file(path))
    return encoder.eval()


def load_predictor(folder: str | Path) -> Predictive | None:
    """Return the predictor of a method, on the CPU in evaluation mode, from the folder of the encoder it predicts with.

    Args:
        folder: that `load_encoder` takes.

    Returns:
        None for an encoder of a method that has none, or of one of one's own that is not registered here.
    """
    folder = as_path(folder)
    recipe = json.loads((folder / CONFIG).read_text())["eqssl"].get("predictor")
    if recipe is None or recipe["config"]["name"] not in METHODS:
        return None
    predictor = build_method(MethodConfig(**recipe["config"]), Sizes(**recipe["sizes"]))
    with on_disk(folder / PREDICTOR) as path:
        predictor.load_state_dict(predictor.state_dict() | load_file(path))
    return predictor.eval()


def _weights_owner(encoder: Encoder):
    backbone = encoder.backbone
    return backbone.model if isinstance(backbone, TimmBackbone) else backbone


def _describe(encoder: Encoder) -> dict:
    mean, std = encoder.mean_std
    about = {
        "encoder": dataclasses.asdict(encoder.config),
        "stem": encoder.stem,
        "channels": encoder.channels,
        "image_size": encoder.image_size,
        "mean": mean,
        "std": std,
        "grid": encoder.grid,
        "dim": encoder.dim,
        "dim_inv": encoder.dim_inv,
    }
    if not isinstance(encoder.backbone, TimmBackbone) or encoder.stem == "small":
        return {"eqssl": about}
    return {
        "architecture": encoder.config.name,
        "num_classes": 0,
        "num_features": encoder.dim,
        "model_args": encoder.backbone.arguments,
        "pretrained_cfg": {
            "input_size": [encoder.channels, encoder.image_size, encoder.image_size],
            "mean": mean,
            "std": std,
            "num_classes": 0,
        },
        "eqssl": about,
    }
