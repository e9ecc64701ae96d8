"""`python -m eqssl.evaluate MODEL`: any encoder under the one protocol."""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from eqssl.config import DataConfig, EncoderConfig, EvaluateConfig, RunConfig
from eqssl.evaluation import PROTOCOL_VERSION

if TYPE_CHECKING:
    from torch import nn

    from eqssl.data.dataset import Dataset

ROWS = ("pixels", "constant")


@dataclass(frozen=True)
class Command:
    """Evaluate a frozen encoder: kNN and linear accuracy, R2 per factor, invariance, equivariance, collapse."""

    model: Annotated[str, tyro.conf.Positional]
    """Folder of an exported encoder, a timm name, resnet_tiny, torchvision/NAME, pixels, or constant (the floor)."""
    data: DataConfig = field(default_factory=DataConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    pretrained: bool = True
    """Published weights for a model given by name; --no-pretrained: untrained, the row `random` of a table."""
    output: Path | None = None
    """JSON file to write."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for options that cannot work."""
    command = tyro.cli(Command, args=arguments, prog="python -m eqssl.evaluate")
    try:
        RunConfig(data=command.data, evaluate=command.evaluate)  # its checks
        if command.output:
            command.output.parent.mkdir(parents=True, exist_ok=True)
        result = run(command)
        if command.output:
            command.output.write_text(json.dumps(result, indent=2) + "\n")
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
    from eqssl.data import load
    from eqssl.evaluation.transforms import digest

    named = not Path(command.model).is_dir() and command.model not in ROWS
    result = {
        "model": command.model,
        "pretrained": command.pretrained and named,
        "protocol": PROTOCOL_VERSION,
        "transforms": digest(),
    }
    dataset = load(command.data)
    result["data"] = {"name": dataset.name, "digest": dataset.digest}
    result["evaluate"] = dataclasses.asdict(command.evaluate)
    return result | {"metrics": figures(command, dataset)}


def figures(command: Command, dataset: "Dataset") -> dict[str, float]:
    """Return the figures of the command's model."""
    import torch

    from eqssl.evaluation.protocol import evaluate
    from eqssl.evaluation.rows import Pixels, constant_figures

    if command.model == "constant":
        return constant_figures(dataset, command.evaluate)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = Pixels() if command.model == "pixels" else load_model(command.model, dataset, command.pretrained)
    return evaluate(encoder, dataset, config=command.evaluate, device=device)


def load_model(model: str, dataset: "Dataset", pretrained: bool) -> "nn.Module":
    """Return an encoder for the dataset's images: an exported folder, or a model by name, its features not split.

    Raises:
        ValueError: for an exported encoder of other images, or a name that is unknown.
    """
    from eqssl.encoder import Encoder
    from eqssl.export import load_encoder

    if not Path(model).is_dir():
        config = EncoderConfig(name=model, split=0, pretrained=pretrained)
        return Encoder(config, dataset.channels, dataset.image_size, dataset.mean, dataset.std)
    encoder = load_encoder(model)
    made_for = (encoder.channels, encoder.image_size)
    if made_for != (dataset.channels, dataset.image_size):
        raise ValueError(
            f"{model} was made for {made_for[0]} channels at {made_for[1]} px, and {dataset.name} has "
            f"{dataset.channels} at {dataset.image_size} px; --data.image-size sets the latter"
        )
    return encoder


def show(result: dict) -> None:
    """Print the figures as a table, a column for each part of the features."""
    from rich.console import Console
    from rich.table import Table

    metrics = result["metrics"]
    parts = {"all": "", "invariant": "inv/", "equivariant": "equi/"}
    parts = {title: prefix for title, prefix in parts.items() if any(name.startswith(prefix) for name in metrics)}
    title = f"{result['model']} on {result['data']['name']} ({result['evaluate']['split']})"
    caption = f"protocol {result['protocol']}, transforms {result['transforms']}"
    table = Table("figure", title=title, caption=caption)
    for part in parts:
        table.add_column(part, justify="right")
    for name in metrics:
        if not name.startswith(("inv/", "equi/")):
            cells = (metrics.get(prefix + name) for prefix in parts.values())
            table.add_row(name, *("" if value is None else f"{value:.4f}" for value in cells))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
