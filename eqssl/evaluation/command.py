"""`eqssl evaluate MODEL`: any encoder under the one protocol."""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from eqssl.config import DataConfig, EncoderConfig, EvaluateConfig, RunConfig
from eqssl.evaluation import PROTOCOL_VERSION
from eqssl.files import as_path, make_folder, write_atomically

if TYPE_CHECKING:
    from torch import nn

    from eqssl.data.dataset import Dataset
    from eqssl.evaluation.predictions import Prediction

ROWS = ("pixels", "constant")


@dataclass(frozen=True)
class Command:
    """Evaluate a frozen encoder: kNN and linear accuracy, R2 per factor, invariance, equivariance, collapse."""

    model: Annotated[str, tyro.conf.Positional]
    """Folder of an exported encoder or its URI, a timm name, resnet_tiny, torchvision/NAME, pixels, or constant (the
    floor)."""
    data: DataConfig = field(default_factory=DataConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    protocols: tuple[Literal["eqssl", "3diebench", "augself", "finetune"], ...] = ("eqssl",)
    """Protocols: eqssl, the metrics above; 3diebench, its classification, regression and retrieval (3die/...);
    augself, how crop, colour, blur and flip of two augmented views differ (augself/...); finetune, accuracy of the
    whole encoder trained with 1 and 10 percent of the labels (finetune_1pct/...)."""
    pretrained: bool = True
    """Published weights for a model given by name; --no-pretrained: untrained, the row `random` of a table, as
    resnet_tiny is always."""
    output: str | None = None
    """JSON file, or its URI, to write."""
    predictions: str | None = None
    """Parquet file, or its URI, to write, with the predictions of every probe for every held-out image."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for options that cannot work."""
    command = tyro.cli(Command, args=arguments, prog="eqssl evaluate")
    try:
        RunConfig(data=command.data, evaluate=command.evaluate)  # its checks
        for option, file in (("--output", command.output), ("--predictions", command.predictions)):
            if file:
                make_folder(as_path(file, option).parent, option)
        result = run(command)
        if command.output:
            text = json.dumps(result, indent=2) + "\n"
            write_atomically(as_path(command.output), lambda temporary: temporary.write_text(text))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(result)
    return 0


def run(command: Command) -> dict:
    """Return the figures and all that is needed to compare them.

    Raises:
        ValueError: for a model or data that cannot be had, or that do not fit each other.
    """
    from eqssl.data import load_data
    from eqssl.evaluation.predictions import save_predictions
    from eqssl.evaluation.transforms import digest

    _check_model(command.model)
    dataset = load_data(command.data)
    _check_protocols(command.protocols, dataset)
    encoder = load_model(command.model, dataset, command.pretrained)
    named = command.model not in ROWS and not _exported(command.model)
    metrics, predictions = measure(command, encoder, dataset)
    if command.predictions:
        save_predictions(predictions, as_path(command.predictions))
    return {
        "model": command.model,
        "pretrained": command.pretrained and named and _published(command.model),
        "changes": getattr(encoder, "changes", []),
        "protocols": command.protocols,
        "protocol": PROTOCOL_VERSION,
        "transforms": digest(),
        "data": {"name": dataset.name, "digest": dataset.digest},
        "evaluate": dataclasses.asdict(command.evaluate),
        "metrics": metrics,
    }


def _check_model(model: str) -> None:
    """Refuse a name of nothing before the data are loaded."""
    if model in ROWS or not _published(model) or model.startswith("torchvision/") or _exported(model):
        return
    import timm

    if not timm.is_model(model):
        raise ValueError(
            f"MODEL is {model!r}, which is no folder; allowed: the folder of an exported encoder, a timm name, "
            f"resnet_tiny, torchvision/NAME, {', '.join(ROWS)}"
        )


def _check_protocols(protocols: tuple[str, ...], dataset: "Dataset") -> None:
    possible = {
        "eqssl": True,
        "3diebench": dataset.paired,
        "augself": True,
        "finetune": dataset.train.labels is not None,
    }
    for name in protocols:
        if not possible[name]:
            allowed = ", ".join(name for name, works in possible.items() if works)
            raise ValueError(
                f"--protocols has {name}; allowed for {dataset.name}: {allowed} "
                "(3diebench needs pairs of one object, finetune needs labels)"
            )


def measure(command: Command, encoder: "nn.Module", dataset: "Dataset") -> tuple[dict[str, float], "list[Prediction]"]:
    """Return the metrics of all protocols, and the predictions of their probes."""
    import torch

    from eqssl.evaluation.augself import augself_figures
    from eqssl.evaluation.finetune import finetune_figures
    from eqssl.evaluation.protocol import evaluate
    from eqssl.evaluation.rows import constant_figures
    from eqssl.evaluation.threediebench import threediebench_figures
    from eqssl.models.export import load_predictor

    encoder.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    own = load_predictor(command.model) if _exported(command.model) and "3diebench" in command.protocols else None
    three = partial(threediebench_figures, predictor=own)
    protocols = {"3diebench": three, "augself": augself_figures, "finetune": finetune_figures}
    figures, predictions = {}, []
    for name in command.protocols:
        if name != "eqssl":
            figures |= protocols[name](encoder, dataset, command.evaluate, predictions)
        elif command.model == "constant":
            figures |= constant_figures(dataset, command.evaluate, predictions)
        else:
            figures |= evaluate(encoder, dataset, config=command.evaluate, predictions=predictions)
    return figures, predictions


def load_model(model: str, dataset: "Dataset", pretrained: bool) -> "nn.Module":
    """Return an encoder for the dataset's images: a row that needs no training, an exported folder, or a model by name.

    An exported encoder of images of other channels or another size is shown what it was made for (`Transferred`); a
    model by name is made for the images, its features not split.

    Raises:
        ValueError: for a folder that holds no encoder, or a name that is unknown.
    """
    from eqssl.evaluation.rows import Constant, Pixels
    from eqssl.evaluation.transfer import Transferred
    from eqssl.models.encoder import Encoder
    from eqssl.models.export import load_encoder

    if model in ROWS:
        return {"pixels": Pixels, "constant": Constant}[model]()
    if not _exported(model):
        config = EncoderConfig(name=model, equi_fraction=0, pretrained=pretrained and _published(model))
        return Encoder(config, dataset.channels, dataset.image_size, dataset.mean, dataset.std)
    encoder = load_encoder(model)
    transferred = Transferred(encoder, dataset.channels, dataset.image_size)
    return transferred if transferred.changes else encoder


def _published(model: str) -> bool:
    from eqssl.models.backbones import ENCODERS

    return model not in ("resnet_tiny", *ENCODERS)


def _exported(model: str) -> bool:
    return "://" in model or Path(model).is_dir()


def show(result: dict) -> None:
    """Print the figures as a table, a column for each part of the features."""
    from rich.console import Console
    from rich.table import Table

    metrics = result["metrics"]
    parts = {"all": "", "invariant": "inv/", "equivariant": "equi/"}
    parts = {title: prefix for title, prefix in parts.items() if any(name.startswith(prefix) for name in metrics)}
    title = f"{result['model']} on {result['data']['name']} ({result['evaluate']['split']})"
    caption = "; ".join([f"protocol {result['protocol']}, transforms {result['transforms']}", *result["changes"]])
    table = Table("figure", title=title, caption=caption)
    for part in parts:
        table.add_column(part, justify="right")
    for name in metrics:
        if not name.startswith(("inv/", "equi/")):
            cells = (metrics.get(prefix + name) for prefix in parts.values())
            table.add_row(name, *("" if value is None else f"{value:.4f}" for value in cells))
    Console().print(table)
