"""Weights to start from: the folder of an exported encoder, of timm's `save_for_hf`, or a safetensors file.

Reading the folder's description imports no torch.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqssl.config import EncoderConfig, Stem
from eqssl.files import as_path, check_readable, on_disk, parse_json, read

if TYPE_CHECKING:
    from torch import Tensor

    from eqssl.models.backbones import Backbone

CONFIG, WEIGHTS = "config.json", "model.safetensors"
EXPORTED = ("best_encoder", "encoder")  # folders of a study and of `eqssl train`
TORCHVISION_CLASSIFIERS = ("fc", "classifier", "heads", "head")


@dataclass(frozen=True)
class Weights:
    """Stored weights of a backbone.

    Args:
        file: safetensors.
        name: of the model; empty if only a file is given.
        stem: see `Backbone`.
        mean_std: per channel, of the pixels that the weights were trained on; None if that is not stored.
    """

    file: Path
    name: str = ""
    stem: Stem = "standard"
    mean_std: tuple[tuple[float, ...], tuple[float, ...]] | None = None


NEEDED = ("encoder", "stem", "channels", "image_size", "mean", "std")  # in the description of an exported encoder


def read_description(folder: Path) -> dict[str, Any]:
    """Return config.json of a folder with weights.

    Raises:
        ValueError: for a folder without it or without weights, and for a damaged file.
    """
    text = read(folder / CONFIG)
    if text is None or not (folder / WEIGHTS).is_file():
        inside = [folder / name for name in EXPORTED if (folder / name / CONFIG).is_file()]
        hint = f"; did you mean {inside[0]}" if inside else ""
        raise ValueError(f"{folder} is not an exported encoder: it needs {CONFIG} and {WEIGHTS}{hint}")
    about = parse_json(folder / CONFIG, text)
    if not isinstance(about, dict):
        raise ValueError(f"{folder / CONFIG} describes no encoder: it is {text.decode(errors='replace')[:40]}")
    ours: Any = about.get("eqssl")
    whole = isinstance(ours, dict) and ours.keys() >= {*NEEDED} and isinstance(ours["encoder"], dict)
    if "eqssl" in about and not (whole and "name" in ours["encoder"]):
        needed = f"{', '.join(NEEDED)}, with the encoder's name"
        raise ValueError(f"{folder / CONFIG} describes no encoder: its part `eqssl` needs {needed}")
    return about


def is_folder(model: str) -> bool:
    """Return whether a model to evaluate is a folder, or a URI of one."""
    return "://" in model or as_path(model, "MODEL").is_dir()


def model_of(folder: str) -> str | None:
    """Return the name of the model in a folder that timm wrote; None for one of `export_encoder`.

    Raises:
        ValueError: for any other folder.
    """
    path = as_path(folder, "MODEL")
    check_readable(path, "MODEL")
    try:
        about = read_description(path)
    except ValueError as error:
        raise ValueError(f"MODEL: {error}") from error
    return None if "eqssl" in about else _name_in(about, path)


def _name_in(about: dict[str, Any], folder: Path) -> str:
    """Return the name of the model in timm's description."""
    if "architecture" not in about:
        raise ValueError(f"{folder / CONFIG} has neither a part `eqssl` nor timm's `architecture`")
    return about["architecture"]


def _mean_std(about: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    return (tuple(about["mean"]), tuple(about["std"])) if "mean" in about and "std" in about else None


def find_weights(config: EncoderConfig) -> Weights:
    """Return the weights at the path `config.pretrained`.

    Raises:
        ValueError: for a path without weights, or with weights of another model or stem.
    """
    source = str(config.pretrained)
    path = as_path(source, "--encoder.pretrained")
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise ValueError(f"--encoder.pretrained is {source!r}, which does not exist")
        return Weights(path, stem="standard" if config.stem == "auto" else config.stem)
    check_readable(path, "--encoder.pretrained")
    try:
        about = read_description(path)
    except ValueError as error:
        raise ValueError(f"--encoder.pretrained: {error}; a .safetensors file is allowed, too") from error
    if ours := about.get("eqssl"):
        weights = Weights(path / WEIGHTS, ours["encoder"]["name"], ours["stem"], _mean_std(ours))
    else:
        published = about.get("pretrained_cfg", about)
        weights = Weights(path / WEIGHTS, _name_in(about, path), mean_std=_mean_std(published))
    if weights.name.partition(".")[0] != config.name.partition(".")[0]:  # timm: NAME.TAG
        raise ValueError(
            f"--encoder.pretrained is {source!r}, with weights of {weights.name}; "
            f"--encoder.name is {config.name}; allowed: the same model"
        )
    if config.stem not in ("auto", weights.stem):
        raise ValueError(
            f"--encoder.stem is {config.stem!r}; allowed with --encoder.pretrained {source}: {weights.stem}"
        )
    return weights


def load_weights(backbone: "Backbone", weights: Weights, config: EncoderConfig) -> None:
    """Set a backbone's weights; a classifier among the stored ones is left out.

    Raises:
        ValueError: for a damaged file, or weights that do not fit, with an example of each difference.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with on_disk(weights.file) as path:
        try:
            state = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"--encoder.pretrained: {weights.file} is damaged ({error})") from error
    owner = backbone.weights_owner
    classifiers: tuple[str, ...] = ()
    if backbone.timm_args is not None:
        # timm's own function renames weights, and resizes the position embedding to another image size.
        convert = getattr(inspect.getmodule(type(owner)), "checkpoint_filter_fn", None)
        state = convert(state, owner) if convert else state
        named = owner.pretrained_cfg.get("classifier") or ()
        classifiers = (named,) if isinstance(named, str) else tuple(named)
    elif config.name.startswith("torchvision/") and not any(key.startswith("model.") for key in state):
        owner, classifiers = backbone.model, TORCHVISION_CLASSIFIERS
    state = {key: value for key, value in state.items() if not key.startswith(tuple(f"{of}." for of in classifiers))}
    if differences := _differences(state, owner.state_dict()):
        raise ValueError(
            f"--encoder.pretrained is {str(config.pretrained)!r}, whose weights do not fit {config.name}: {differences}"
        )
    owner.load_state_dict(state)


def _differences(stored: "dict[str, Tensor]", expected: "dict[str, Tensor]") -> str:
    """Return the differences of names and shapes, each with a count and an example; empty if there are none."""
    missing = [key for key in expected if key not in stored]
    unknown = [key for key in stored if key not in expected]
    shapes = [
        f"{key} is {tuple(stored[key].shape)}, the model's {tuple(expected[key].shape)}"
        for key in expected
        if key in stored and stored[key].shape != expected[key].shape
    ]
    kinds = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    return "; ".join(f"{len(found)} {kind}, such as {found[0]}" for kind, found in kinds.items() if found)
